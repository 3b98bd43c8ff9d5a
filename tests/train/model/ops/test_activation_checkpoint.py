"""Recomputing saves memory and changes no number: not outputs, gradients or batch statistics."""

import torch
from torch import Tensor

from maskshards.train.model.ops.activation_checkpoint import Recomputing, set_recompute
from maskshards.train.model.segmenter import Segmenter
from tests.train.model.tiny_segmenter import tiny_segmenter


def step(segmenter: Segmenter, autocast: bool = False) -> tuple[list[Tensor], int]:
    """Gradients and batch statistics after one training step, and how many bytes waited for the backward
    pass.
    """
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    decoder = segmenter.decoder.train()
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
    ):
        predictions = decoder(images, segmenter.features(images), decoder.draw_drops([0, 1], 0))
        loss = sum(
            p.mask_logits.float().square().mean() + p.class_logits.float().square().mean()
            for p in predictions
        )
    bytes_kept = sum(kept.values())
    loss.backward()  # type: ignore[union-attr]
    grads = [p.grad for p in decoder.parameters() if p.grad is not None]
    assert len(grads) == len(list(decoder.parameters()))
    return [*grads, *(b for b in decoder.buffers())], bytes_kept


def test_gradients_and_statistics_are_the_same_and_memory_is_saved() -> None:
    for autocast in (False, True):
        plain, much = step(tiny_segmenter(checkpointing=False), autocast)
        again, little = step(tiny_segmenter(checkpointing=True), autocast)
        for a, b in zip(plain, again, strict=True):
            assert torch.equal(a, b)
        assert little < 0.8 * much


def test_the_switch_reaches_every_part() -> None:
    segmenter = tiny_segmenter(checkpointing=True)
    parts = [m for m in segmenter.modules() if isinstance(m, Recomputing)]
    assert len(parts) == 3  # adapter, pixel decoder, query decoder
    assert all(part.recompute for part in parts)
    set_recompute(segmenter, False)
    assert not any(part.recompute for part in parts)
