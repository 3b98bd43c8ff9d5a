"""Variants of one model: switched on for the body, back afterwards, and nothing built again."""

from itertools import islice

import pytest
import torch

from maskshards.train.bench.step import Rig, build_rig
from maskshards.train.bench.synthetic import synthetic_batches
from maskshards.train.bench.variants import Variant, measured, switched, tflop_per_image
from maskshards.train.config.load import load_config
from maskshards.train.model.heads.pixel_decoder import PixelDecoder
from maskshards.train.model.ops.deformable_attention import DeformableAttention
from maskshards.train.tracking.phase_timer import PhaseClock

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rig() -> Rig:
    config = load_config(
        [
            "config=configs/config-ade20k-m2f-training.yaml", "datasets.root=synthetic", "output_dir=unused",
            "bs=1", "model.dino_hub=dinov3_tiny16", "model.weights=random", "decoder_head.hidden_dim=32",
            "decoder_head.ffn_dim=32", "decoder_head.num_queries=12", "decoder_head.num_classes=6",
            "m2f_train.num_points=64", "transforms.train.img_size=64", "transforms.train.crop_size=[64,64]",
        ]
    )  # fmt: skip
    return build_rig(config, CPU)


def state(rig: Rig) -> tuple[object, ...]:
    attention = [
        (m.fused, m.resample) for m in rig.segmenter.decoder.modules() if isinstance(m, DeformableAttention)
    ]
    precision = [m.precision for m in rig.segmenter.decoder.modules() if isinstance(m, PixelDecoder)]
    compiled = [name for name, m in rig.segmenter.named_modules() if "forward" in vars(m)]
    return attention, precision, compiled, rig.segmenter.compiled, torch.get_float32_matmul_precision()


def test_a_reference_step_is_switched_on_and_back(rig: Rig) -> None:
    before = state(rig)
    with switched(rig, Variant(reference=True, tf32=True)) as other:
        attention, precision, _, _, products = state(other)
        assert set(attention) == {(False, False)}
        assert precision == ["reference"]
        assert products == "high"
        assert other.segmenter is rig.segmenter
        assert other.loss is not rig.loss
    assert state(rig) == before


def test_a_compiled_model_is_eager_afterwards(rig: Rig) -> None:
    before, calls = state(rig), []

    def backend(graph, inputs):  # type: ignore[no-untyped-def]
        calls.append(1)
        return graph

    with switched(rig, Variant(compile="model"), {"backend": backend}) as other:
        assert other.segmenter.compiled
        assert len(state(rig)[2]) == 3  # type: ignore[arg-type]
        assert other.config.compile == "model"
    assert state(rig) == before
    rig.step(islice(synthetic_batches(1, 6, pin=False), 1), PhaseClock(CPU))
    assert not calls


def test_it_is_put_back_after_an_exception(rig: Rig) -> None:
    before = state(rig)
    with pytest.raises(RuntimeError, match="memory"), switched(rig, Variant(reference=True)):
        raise RuntimeError("out of memory")
    assert state(rig) == before


def test_a_measured_variant_has_rate_phases_and_arithmetic(rig: Rig) -> None:
    batches = synthetic_batches(1, 6, pin=False)
    tflop = tflop_per_image(rig, batches, 1)
    found = measured(rig, batches, 1, warmup=0, steps=1, tflop=tflop)
    assert found["images_per_s"] == pytest.approx(1000 / found["phases_ms"]["step"])
    assert found["tflop_per_s"] == pytest.approx(tflop * found["images_per_s"])
    assert found["peak_gib"] is None
    assert found["syncs"] is None
