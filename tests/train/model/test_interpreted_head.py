"""A whole head with every kernel, in Triton's interpreter, against the same head without one: predictions and
all gradients.
"""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.train.model.interpreted import cases_of
from tests.train.model.tiny_segmenter import tiny_segmenter

pytest.importorskip("triton")

CASES: dict[str, dict[str, bool]] = {
    "as by default": {},
    "chosen otherwise": {"stencil": True, "points_first": True},
}
SIDE = 64


class Calls(TorchDispatchMode):
    """How often each operator of ours was called."""

    def __init__(self) -> None:
        super().__init__()
        self.ours: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        room, name = func._schema.name.split("::")
        if room == "maskshards":
            self.ours[name] += 1
        return func(*args, **(kwargs or {}))


def errors(name: str) -> dict[str, Any]:
    """Relative errors in norm of masks, classes and gradients, and the calls of our operators."""
    from maskshards.train.bench.variants import set_switches
    from maskshards.train.model.heads import pixel_decoder, query_decoder
    from maskshards.train.model.ops.deformable_attention import DeformableAttention
    from maskshards.train.model.ops.fused import set_fused

    pixel_decoder.NUM_LAYERS = query_decoder.NUM_LAYERS = 2
    torch.manual_seed(0)
    segmenter = tiny_segmenter()
    decoder = segmenter.decoder.train()
    for module in decoder.modules():  # fresh heads look at exact centres, where the gradient has a step
        if isinstance(module, DeformableAttention):
            torch.nn.init.normal_(module.sampling_offsets.bias)
    images = torch.randn(1, 3, SIDE, SIDE)

    def answers() -> list[Tensor]:
        decoder.zero_grad()
        predictions = decoder(images, segmenter.features(images))
        maps = [
            torch.stack([getattr(p, part) for p in predictions]) for part in ("mask_logits", "class_logits")
        ]
        sum(m.square().mean() for m in maps).backward()
        grads = [p.grad.flatten() for p in decoder.parameters() if p.grad is not None]
        return [*(m.detach() for m in maps), torch.cat(grads)]

    set_fused(decoder, False)
    plain = answers()
    set_fused(decoder, True)
    set_switches(decoder, CASES[name])
    with Calls() as calls:
        fused = answers()
    parts = zip(("masks", "classes", "gradients"), fused, plain, strict=True)
    return {part: float((a - b).norm() / b.norm()) for part, a, b in parts} | dict(calls.ours)


@pytest.mark.slow
def test_a_head_with_every_kernel_equals_the_head_without() -> None:
    found = cases_of(__file__)
    for name, switches in CASES.items():
        for part in ("masks", "classes", "gradients"):
            assert found[name][part] < 1e-4, (name, part)
        for called, times in {"group_norm_last": 5, "fused_attention": 8, "doubled": 1}.items():
            assert found[name][called] == found[name][f"{called}_backward"] == times, (name, called)
        assert found[name].get("token_stencil", 0) == (6 if switches else 0)
