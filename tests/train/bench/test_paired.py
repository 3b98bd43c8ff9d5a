"""Paired measurements: turns alternate, warm-up is left out, ratios are of pairs."""

import pytest
import torch

from maskshards.train.bench.paired import attention_ms, in_turns
from maskshards.train.config.load import load_config

CPU = torch.device("cpu")


def test_works_take_turns_and_warm_up_is_left_out() -> None:
    calls: list[tuple[str, int]] = []

    def maker(name: str):  # type: ignore[no-untyped-def]
        def make(turn: int):  # type: ignore[no-untyped-def]
            calls.append((name, turn))
            return lambda: torch.ones(1, requires_grad=True).sum()

        return make

    figures = in_turns({"a": maker("a"), "b": maker("b")}, CPU, warmup=1, steps=2)
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert set(figures) == {
        *(f"{name} {phase}" for name in "ab" for phase in ("forward", "backward", "both")),
        "forward ratio", "backward ratio", "both ratio",
    }  # fmt: skip
    assert figures["a both"] == pytest.approx(figures["a forward"] + figures["a backward"], rel=0.5)


def test_attention_is_measured_at_the_pixel_decoders_shape() -> None:
    config = load_config(
        [
            "config=configs/config-ade20k-m2f-training.yaml", "datasets.root=synthetic", "output_dir=unused",
            "bs=1", "decoder_head.num_queries=12",
            "model.dino_hub=dinov3_tiny16", "model.weights=random", "decoder_head.hidden_dim=32",
            "transforms.train.crop_size=[64,64]",
        ]
    )  # fmt: skip
    figures = attention_ms(config, CPU, 0, 1)
    assert figures["fused forward"] > 0
    assert figures["plain backward"] > 0
