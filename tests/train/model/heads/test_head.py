"""What every head answers, asked of each in turn."""

import re
from pathlib import Path

import pytest
import torch

from maskshards.train.config.model import DecoderConfig
from maskshards.train.config.schema import TrainConfig
from maskshards.train.model.heads.head import Decoder, beside
from maskshards.train.model.heads.registry import HEADS
from maskshards.train.model.heads.rules import HEAD_RULES

ROOT = Path(__file__).resolve().parents[4]
SIZE_PX, CLASSES, WIDTH = 64, 3, 32


def built(name: str) -> Decoder:
    settings = DecoderConfig(name, num_classes=CLASSES, hidden_dim=32, ffn_dim=32, num_queries=5)
    torch.manual_seed(0)
    return HEADS[name].build(WIDTH, 4, settings, "mixed")


@pytest.mark.parametrize("name", HEADS)
def test_a_decoder_scores_whole_images_from_what_it_answers(name: str) -> None:
    decoder = built(name).eval()
    images = torch.randn(2, 3, SIZE_PX, SIZE_PX)
    features = tuple(torch.randn(2, WIDTH, SIZE_PX // 16, SIZE_PX // 16) for _ in range(4))
    assert decoder.draw_drops([0, 1], 0) is None
    scores = decoder.scores(decoder(images, features), (SIZE_PX, SIZE_PX))
    assert (scores.shape, scores.dtype) == ((2, CLASSES, SIZE_PX, SIZE_PX), torch.float32)


@pytest.mark.parametrize("name", HEADS)
def test_the_parts_that_are_timed_and_compiled_hold_all_that_is_trained(name: str) -> None:
    decoder = built(name)
    everything = {id(parameter) for parameter in decoder.parameters()}
    for parts in (decoder.phases().values(), decoder.pieces()):
        assert {id(parameter) for part in parts for parameter in part.parameters()} == everything
    assert all(key.startswith("segmentation_model.") for key in decoder.state_dict())


@pytest.mark.parametrize("name", HEADS)
def test_a_head_has_a_loss(name: str) -> None:
    head = HEADS[name]
    assert isinstance(
        head.loss(TrainConfig(decoder_head=DecoderConfig(name, num_classes=CLASSES))).brings_flag, bool
    )


def test_nothing_outside_the_heads_asks_which_head_it_has() -> None:
    question = re.compile(rf"[!=]= ?[\"'](?:{'|'.join(HEAD_RULES)})[\"']|in \([\"']m2f")
    asked = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in (ROOT / "train").rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if question.search(line) and "anneal_strategy" not in line
    ]
    assert asked == []


def test_nothing_dropped_is_nothing_moved() -> None:
    assert beside(None, torch.ones(1)) is None
