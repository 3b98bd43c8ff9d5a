"""The measured step trains like a step should, and both ways of doing it agree where they must."""

from itertools import islice

import pytest
import torch

from maskshards.train.bench.hardware import count_syncs
from maskshards.train.bench.step import build_bench_step, build_loss
from maskshards.train.bench.synthetic import synthetic_batches
from maskshards.train.config.load import load_config
from maskshards.train.config.schema import TrainConfig
from maskshards.train.model.ops.deformable_attention import DeformableAttention
from maskshards.train.tracking.phase_timer import PhaseClock

pytestmark = pytest.mark.usefixtures("shallow")
CPU = torch.device("cpu")
TINY = [
    "config=configs/config-ade20k-m2f-training.yaml", "datasets.root=synthetic", "output_dir=unused", "bs=1",
    "model.dino_hub=dinov3_tiny16", "model.weights=random", "decoder_head.hidden_dim=32",
    "decoder_head.ffn_dim=32", "decoder_head.num_queries=12", "decoder_head.num_classes=6",
    "m2f_train.num_points=64", "transforms.train.img_size=64", "transforms.train.crop_size=[64,64]",
]  # fmt: skip


def tiny(*more: str) -> TrainConfig:
    return load_config([*TINY, *more])


def test_a_step_changes_the_head_and_marks_every_phase() -> None:
    bench = build_bench_step(tiny(), CPU)
    before = [p.detach().clone() for p in bench.segmenter.decoder.parameters()]
    phases = bench.run(synthetic_batches(1, 6, pin=False), warmup=0, steps=1)
    assert list(phases) == [
        "wait", "copy", "crop", "backbone", "adapter", "pixel decoder", "query decoder", "loss", "backward",
        "optimiser", "step",
    ]  # fmt: skip
    assert phases["step"] == pytest.approx(sum(phases.values()) - phases["step"], rel=0.1)
    after = list(bench.segmenter.decoder.parameters())
    assert sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) > 0.9 * len(after)


def test_a_step_that_looks_ahead_computes_the_same() -> None:
    losses = []
    for ahead in (False, True):
        bench = build_bench_step(tiny(), CPU)
        bench.looks_ahead = ahead
        batches, clock = islice(synthetic_batches(1, 6, pin=False), 3), PhaseClock(CPU)
        losses.append([float(bench.step(batches, clock)) for _ in range(3)])
        assert bench.prepared is None
        assert list(batches) == []
    assert losses[0] == losses[1]


@pytest.mark.parametrize("mode", ["default", "graph"])
def test_costs_from_features_train_as_those_from_masks_do(mode: str) -> None:
    """The first steps: later a rounding may have changed a match."""
    losses = []
    for word in ("masks", "features"):
        bench = build_bench_step(tiny(f"m2f_train.costs_from={word}", f"compile_mode={mode}"), CPU)
        batches, clock = synthetic_batches(1, 6, pin=False), PhaseClock(CPU)
        losses.append([float(bench.step(batches, clock)) for _ in range(2)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_reference_step_computes_the_same_function() -> None:
    """Other points are drawn, so the losses agree on average only; the predictions agree exactly enough."""
    losses = []
    for reference in (False, True):
        torch.manual_seed(0)
        bench = build_bench_step(tiny("m2f_train.num_points=2000"), CPU, reference=reference)
        (batch,) = islice(synthetic_batches(1, 6, pin=False), 1)
        losses.append(float(bench.step(iter([batch]), PhaseClock(CPU))))
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_the_reference_knows_none_of_our_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        "maskshards.train.bench.step.compile_in_place",
        lambda _, what, *, mode: asked.append(f"{what} {mode}"),
    )
    ours = [
        "compile=model",
        "compile_mode=reduce-overhead",
        "activation_checkpointing=True",
    ]
    bench = build_bench_step(tiny(*ours), CPU, reference=True)
    assert asked == ["none default"]
    kinds = [m for m in bench.segmenter.decoder.modules() if isinstance(m, DeformableAttention)]
    assert kinds
    assert not any(m.fused or m.resample for m in kinds)
    assert not bench.config.activation_checkpointing


def test_the_measured_step_is_compiled_as_the_config_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        "maskshards.train.bench.step.compile_in_place",
        lambda _, what, *, mode: asked.append(f"{what} {mode}"),
    )
    build_bench_step(tiny("compile=backbone"), CPU)
    assert asked == ["backbone default"]


def test_the_linear_head_has_its_own_phases_and_loss() -> None:
    config = tiny("decoder_head.type=linear", "decoder_head.backbone_out_layers=LAST")
    phases = build_bench_step(config, CPU).run(synthetic_batches(1, 6, pin=False), warmup=0, steps=1)
    assert "linear head" in phases
    assert build_loss(config, CPU, False) is not None


@pytest.mark.gpu
def test_a_step_waits_for_the_device_at_the_matchers_copy_only() -> None:
    """PyTorch's sync debug mode does not see that one: it waits for an event."""
    device = torch.device("cuda")
    bench = build_bench_step(tiny("model_dtype=BFLOAT16"), device)
    batches = synthetic_batches(1, 6, pin=True)
    for _ in range(3):
        bench.step(batches, PhaseClock(device))
    assert count_syncs(lambda: bench.step(batches, PhaseClock(device)), device) == 0
    torch.cuda.set_sync_debug_mode("error")
    try:
        bench.step(batches, PhaseClock(device))
    finally:
        torch.cuda.set_sync_debug_mode("default")
