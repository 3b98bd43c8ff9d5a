"""A compiled training step gives what the eager one gives, in one graph a piece, and evaluation stays
eager.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskshards.train.model.compile import begin_step, compile_in_place, uses_cuda_graphs
from maskshards.train.model.heads import pixel_decoder, query_decoder
from maskshards.train.model.heads.pixel_decoder import PixelDecoder
from maskshards.train.model.heads.prediction import Prediction
from maskshards.train.model.ops import deformable_attention
from maskshards.train.model.ops.activation_checkpoint import set_recompute
from maskshards.train.model.segmenter import Segmenter
from maskshards.train.tracking.phase_timer import PhaseClock, mark_after
from tests.train.model.tiny_segmenter import tiny_segmenter

# Dynamo looks at .grad of everything that goes into a graph and hides this warning from people itself, but it
# cannot hide what a test turned into an error.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

CPU = torch.device("cpu")
PIECES = ("backbone block", "adapter", "pixel decoder", "query decoder")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Any:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


def tiny(kind: str = "m2f", device: torch.device = CPU) -> Segmenter:
    segmenter = tiny_segmenter(kind, device=device)
    segmenter.decoder.train()
    return segmenter


def step(segmenter: Segmenter, autocast: torch.dtype | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """Two maps of each prediction, and gradients of all parameters followed by the batch statistics."""
    decoder = segmenter.decoder
    decoder.zero_grad(set_to_none=True)
    device = next(decoder.parameters()).device
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.autocast(device.type, autocast, enabled=autocast is not None):
        predictions = decoder(images, segmenter.features(images), decoder.draw_drops([0, 1], 0))
    total(predictions).backward()
    grads = [p.grad.clone() for p in decoder.parameters() if p.grad is not None]
    assert len(grads) == len(list(decoder.parameters()))
    maps = [m.detach().float().clone() for p in predictions for m in (p.class_logits, p.mask_logits)]
    return maps, [*grads, *(b.clone() for b in decoder.buffers())]


def total(predictions: list[Prediction]) -> Tensor:
    losses = [p.mask_logits.float().square().mean() + p.class_logits.float().mean() for p in predictions]
    return torch.stack(losses).sum()


@pytest.mark.parametrize(
    ("backend", "layers"),
    [
        ("aot_eager", (1, 3)),  # every layer is traced anew; each kind, and each level of the pyramid, once
        pytest.param(
            "inductor",
            (pixel_decoder.NUM_LAYERS, query_decoder.NUM_LAYERS),
            marks=[
                pytest.mark.slow,
                pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning"),
            ],
        ),
    ],
)
def test_a_compiled_step_equals_the_eager_one_without_a_graph_break(
    backend: str, layers: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixel_decoder, "NUM_LAYERS", layers[0])
    monkeypatch.setattr(query_decoder, "NUM_LAYERS", layers[1])
    expected = [step(segmenter) for segmenter in [tiny()] for _ in range(2)]
    segmenter = tiny()
    keys = list(segmenter.state_dict())
    compile_in_place(segmenter, "model", backend=backend, fullgraph=True)
    assert list(segmenter.state_dict()) == keys
    adapter, head = segmenter.decoder.segmentation_model
    clock = PhaseClock(CPU)
    remove_hooks = mark_after(
        clock, {"adapter": adapter, "pixels": head.pixel_decoder, "query": head.predictor}
    )
    for maps, tensors in expected:
        clock.start()
        found = step(segmenter)
        assert len(maps) == 2 * (layers[1] + 1)
        for ours, theirs in zip(found[0], maps, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        for ours, theirs in zip(found[1], tensors, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    remove_hooks()
    assert list(clock.medians_ms(0)) == ["adapter", "pixels", "query", "step"]  # in both steps
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == len(PIECES)
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize("precision", ["mixed", "reference"])
def test_recomputed_and_resampled_layers_compile_into_the_same_graph(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixel_decoder, "NUM_LAYERS", 1)
    monkeypatch.setattr(deformable_attention, "KEPT_BUDGET", 0)
    torch.manual_seed(0)
    decoder = PixelDecoder(16, 32, precision, ffn_dim=32)
    set_recompute(decoder, True)
    pyramid = tuple(torch.randn(2, 16, side, side) for side in (16, 8, 4, 2))

    def gradients(forward: Any) -> list[Tensor]:
        decoder.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            features, maps = forward(pyramid)
        sum(m.float().square().mean() for m in (features, *maps)).backward()  # type: ignore[union-attr]
        return [p.grad for p in decoder.parameters() if p.grad is not None]

    expected = gradients(decoder)
    found = gradients(torch.compile(decoder.forward, backend="aot_eager", fullgraph=True, dynamic=False))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=1e-3)


def refuse(graph: Any, inputs: Any) -> Any:
    """A backend that shows whether anything is compiled at all."""
    raise AssertionError("compiled")


@pytest.mark.parametrize("kind", ["m2f", "linear"])
@pytest.mark.parametrize("what", ["backbone", "model"])
def test_only_training_is_compiled(kind: str, what: str) -> None:
    segmenter = tiny(kind)
    images = [torch.randn(n, 3, side, 64) for n, side in ((1, 32), (3, 64), (2, 70))]
    expected = [segmenter.scores(x) for x in images]
    compile_in_place(segmenter, what, backend=refuse)
    for x, scores in zip(images, expected, strict=True):
        assert torch.equal(segmenter.scores(x), scores)
    with pytest.raises(Exception, match="compiled"):
        segmenter.features(images[0])


def test_nothing_is_compiled_where_nothing_is_asked_for() -> None:
    segmenter = tiny()
    compile_in_place(segmenter, "none", backend=refuse)
    assert not segmenter.compiled
    assert segmenter.features(torch.randn(1, 3, 32, 32))


def test_the_pieces_are_all_that_trains() -> None:
    for kind, number in (("m2f", 3), ("linear", 1)):
        segmenter = tiny(kind)
        pieces = segmenter.decoder.pieces()
        assert len(pieces) == number
        assert list(nn.ModuleList(pieces).parameters()) == list(segmenter.decoder.parameters())


def test_steps_are_parted_in_the_modes_that_replay_cuda_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(1))
    for mode, parted in (("default", False), ("reduce-overhead", True), ("max-autotune", True)):
        begun.clear()
        begin_step(mode)
        assert bool(begun) is uses_cuda_graphs(mode) is parted


@pytest.mark.gpu
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore:TensorFloat32 tensor cores",
    "ignore:Please use the new API settings to control TF32",
)
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_step_on_cuda_equals_the_eager_one(mode: str) -> None:
    """Under bfloat16 autocast, with the fused kernels in the graph; three steps, so that CUDA graphs are
    recorded and replayed. A fused program rounds less often, and rounding tips places of attention masks, so
    only the first prediction, which no mask has touched, is held tightly.
    """
    device = torch.device("cuda")
    eager, compiled = tiny(device=device), tiny(device=device)
    compile_in_place(compiled, "model", mode=mode, fullgraph=True)
    for _ in range(3):
        expected = step(eager, torch.bfloat16)
        compiled.decoder.zero_grad(set_to_none=True)
        begin_step(mode)
        found = step(compiled, torch.bfloat16)
        distances = [relative(ours, theirs) for ours, theirs in zip(found[0], expected[0], strict=True)]
        assert max(distances[:2]) < 0.03
        assert max(distances) < 0.2
        assert all(tensor.isfinite().all() for tensor in found[1])
        grads = len(list(eager.decoder.parameters()))
        ours, theirs = (torch.cat([g.flatten() for g in side[1][:grads]]) for side in (found, expected))
        assert torch.cosine_similarity(ours, theirs, dim=0) > 0.98
    assert torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] == 0


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())
