"""Means over steps and ranks, and what counts in none."""

import math

import pytest
import torch

from maskshards.shards.order.order import World
from maskshards.train.distributed.ranks import Ranks
from maskshards.train.tracking.meter import Meter

ALONE = Ranks(World(), torch.device("cpu"))


def test_meter_gives_means_and_starts_anew() -> None:
    meter = Meter(clip_norm=1.0)
    for loss, norm in ((2.0, 0.5), (4.0, 3.0)):
        meter.add("loss", torch.tensor(loss))
        meter.add_step(torch.tensor(norm), images=8, wait_ms=1.0)
    figures = meter.take(ALONE)
    assert (figures["loss"], figures["steps"]) == (3.0, 2)
    assert figures["grad_norm"] == pytest.approx(1.75)
    assert figures["clipped"] == 0.5
    assert figures["images_per_s"] == pytest.approx(16 / figures["seconds"])
    assert figures["wait_share"] == pytest.approx(0.002 / figures["seconds"])
    assert (meter.steps, meter.images, meter.sums) == (0, 0, {})


def test_a_step_that_was_left_out_counts_as_skipped_and_in_no_mean() -> None:
    meter = Meter(clip_norm=1.0)
    for loss, norm in ((1.0, 0.5), (math.nan, math.nan), (3.0, 2.5)):
        meter.add("loss", torch.tensor(loss) / 2)
        meter.add("loss", torch.tensor(loss) / 2)
        meter.add_step(torch.tensor(norm), images=2, wait_ms=0.0)
    figures = meter.take(ALONE)
    assert (figures["loss"], figures["grad_norm"], figures["clipped"]) == (2.0, 1.5, 0.5)
    assert figures["skipped"] == 1
    meter.add("loss", torch.tensor(math.nan))
    meter.add_step(torch.tensor(math.inf), images=2, wait_ms=0.0)
    figures = meter.take(ALONE)
    assert math.isnan(figures["loss"])
    assert figures["skipped"] == 1
