"""Variants of one model: switched on for the body, back afterwards, and nothing built again."""

from itertools import islice

import pytest
import torch

from maskshards.train.bench.step import BenchStep, build_bench_step
from maskshards.train.bench.synthetic import synthetic_batches
from maskshards.train.bench.variants import Variant, measured, switched, tflop_per_image
from maskshards.train.config.load import load_config
from maskshards.train.model.heads.pixel_decoder import PixelDecoder
from maskshards.train.model.ops.deformable_attention import DeformableAttention
from maskshards.train.tracking.phase_timer import PhaseClock

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bench() -> BenchStep:
    config = load_config(
        [
            "config=configs/config-ade20k-m2f-training.yaml", "datasets.root=synthetic", "output_dir=unused",
            "bs=1", "model.dino_hub=dinov3_tiny16", "model.weights=random", "decoder_head.hidden_dim=32",
            "decoder_head.ffn_dim=32", "decoder_head.num_queries=12", "decoder_head.num_classes=6",
            "m2f_train.num_points=64", "transforms.train.img_size=64", "transforms.train.crop_size=[64,64]",
        ]
    )  # fmt: skip
    return build_bench_step(config, CPU)


def state(bench: BenchStep) -> tuple[object, ...]:
    attention = [
        (m.fused, m.resample) for m in bench.segmenter.decoder.modules() if isinstance(m, DeformableAttention)
    ]
    precision = [m.precision for m in bench.segmenter.decoder.modules() if isinstance(m, PixelDecoder)]
    compiled = [name for name, m in bench.segmenter.named_modules() if "forward" in vars(m)]
    return attention, precision, compiled, bench.segmenter.compiled, torch.get_float32_matmul_precision()


def test_a_reference_step_is_switched_on_and_back(bench: BenchStep) -> None:
    before = state(bench)
    with switched(bench, Variant(reference=True, tf32=True)) as other:
        attention, precision, _, _, products = state(other)
        assert set(attention) == {(False, False)}
        assert precision == ["reference"]
        assert products == "high"
        assert other.segmenter is bench.segmenter
        assert other.loss is not bench.loss
    assert state(bench) == before


def test_a_compiled_model_is_eager_afterwards(bench: BenchStep) -> None:
    before, calls = state(bench), []

    def backend(graph, inputs):  # type: ignore[no-untyped-def]
        calls.append(1)
        return graph

    with switched(bench, Variant(compile="model"), {"backend": backend}) as other:
        assert other.segmenter.compiled
        assert len(state(bench)[2]) == 3  # type: ignore[arg-type]
        assert other.config.compile == "model"
    assert state(bench) == before
    bench.step(islice(synthetic_batches(1, 6, pin=False), 1), PhaseClock(CPU))
    assert not calls


def test_it_is_put_back_after_an_exception(bench: BenchStep) -> None:
    before = state(bench)
    with pytest.raises(RuntimeError, match="memory"), switched(bench, Variant(reference=True)):
        raise RuntimeError("out of memory")
    assert state(bench) == before


def test_a_measured_variant_has_rate_phases_and_arithmetic(bench: BenchStep) -> None:
    batches = synthetic_batches(1, 6, pin=False)
    tflop = tflop_per_image(bench, batches, 1)
    found = measured(bench, batches, 1, warmup=0, steps=1, tflop=tflop)
    assert found["images_per_s"] == pytest.approx(1000 / found["phases_ms"]["step"])
    assert found["tflop_per_s"] == pytest.approx(tflop * found["images_per_s"])
    assert found["peak_gib"] is None
    assert found["syncs"] is None
