"""The word for all that was read: the same however samples are dealt, another for another sample or crop."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from maskshards.shards.augment.crop import CropDraws, CropSettings, draw_crops
from maskshards.shards.batch import CropBatch, RaggedBatch
from maskshards.shards.order.order import World
from maskshards.train.distributed.ranks import Ranks
from maskshards.train.tracking.data_order import OrderChain, order_digest, wrapped

ALONE = Ranks(World(), torch.device("cpu"))
KEYS = tuple(f"scene{number}" for number in range(8))
Sample = tuple[CropBatch, CropDraws]


class Summed(Ranks):
    """One rank whose message to the others is answered with the sums given at once."""

    def __init__(self, others: list[list[int]]) -> None:
        super().__init__(World(0, 1 + len(others)), torch.device("cpu"))
        object.__setattr__(self, "others", others)
        object.__setattr__(self, "messages", [])

    def sum(self, values: Tensor) -> Tensor:
        self.messages.append(len(values))  # type: ignore[attr-defined]
        for theirs in self.others:  # type: ignore[attr-defined]
            values += torch.tensor(theirs)
        return values


def samples(
    keys: Sequence[str] = KEYS, first: int = 0, seed: int = 3, settings: CropSettings | None = None
) -> Sample:
    empty, size = torch.empty(0), len(keys)
    positions = tuple(range(first, first + size))
    batch = RaggedBatch(
        pixels=empty, run_ends=empty, run_owners=empty, run_offsets=(), heights=(), widths=(), labels=(),
        keys=tuple(keys), positions=positions, epochs=(0,) * size, valid=(True,) * size,
    )  # fmt: skip
    crops = CropBatch(empty, empty, empty, tuple(keys), positions)
    return crops, draw_crops(batch, seed, settings or CropSettings())


def digest(dealt: Sequence[Sample]) -> int:
    total = 0
    for crops, draws in dealt:
        total = wrapped(total + order_digest(crops, draws))
    return total


def test_a_digest_knows_positions_and_keys_but_not_the_dealing() -> None:
    whole = order_digest(*samples())
    dealt = [samples((key,), first=place) for place, key in enumerate(KEYS)]
    random.Random(1).shuffle(dealt)
    assert digest(dealt) == whole
    assert wrapped(digest(dealt[:3]) + digest(dealt[3:])) == whole
    assert order_digest(*samples(KEYS[::-1])) != whole
    assert order_digest(*samples(first=1)) != whole
    assert -(2**63) <= whole < 2**63


@pytest.mark.parametrize("name", ["ratios", "down", "right", "flips", "brightness", "hue", "contrast_early"])
def test_a_digest_knows_every_number_of_a_crop(name: str) -> None:
    crops, draws = samples()
    before = order_digest(crops, draws)
    owner = draws if name in CropDraws.__dataclass_fields__ else draws.colour
    assert owner is not None
    values = getattr(owner, name).copy()
    values[-1] = ~values[-1] if values.dtype == np.bool_ else np.nextafter(values[-1], 9, dtype=values.dtype)
    if name == "contrast_early":  # it moves the contrast, which has to be there to be moved
        assert draws.colour is not None
        draws.colour.contrast[-1] = 0.75
        before = order_digest(crops, draws)
    other = replace(owner, **{name: values})
    assert (
        order_digest(crops, other if isinstance(other, CropDraws) else replace(draws, colour=other)) != before
    )


def test_a_digest_is_of_what_was_drawn() -> None:
    assert order_digest(*samples(seed=4)) != order_digest(*samples(seed=3))
    plain = CropSettings(photometric="none")
    assert order_digest(*samples(settings=plain)) != order_digest(*samples())


def test_a_chain_hashes_each_step_onto_those_before() -> None:
    def twin(start: bytes, steps: list[int]) -> str:
        word = hashlib.blake2b(start, digest_size=8).digest()
        for step in steps:
            word = hashlib.blake2b(word + step.to_bytes(8, "little", signed=True), digest_size=8).digest()
        return word.hex()

    chain, steps = OrderChain(), [5, -7, 2**63 - 1]
    assert chain.resolve(ALONE) == twin(b"from step 0 of ", [])
    for step in steps:
        chain.add(step)
    assert chain.resolve(ALONE) == chain.resolve(ALONE) == chain.word == twin(b"from step 0 of ", steps)
    assert OrderChain(step=4).word == twin(b"from step 4 of ", [])


def test_a_chain_does_not_care_when_it_is_looked_at_or_continued() -> None:
    steps = [random.Random(2).randrange(-(2**63), 2**63) for _ in range(6)]
    whole = OrderChain()
    for step in steps:
        whole.add(step)
    looked = OrderChain()
    for step in steps[:4]:
        looked.add(step)
        looked.resolve(ALONE)
    again = OrderChain(looked.word, 4)
    for step in steps[4:]:
        again.add(step)
    assert again.resolve(ALONE) == whole.resolve(ALONE)


def test_a_difference_anywhere_shows_at_the_end() -> None:
    words = set()
    for steps in ([1, 2, 3], [1, 5, 3], [2, 1, 3], [0, 3, 3], [1, 2, 3, 0], [3, 3]):
        chain = OrderChain()
        for step in steps:
            chain.add(step)
        words.add(chain.resolve(ALONE))
    assert len(words) == 6


def test_ranks_sum_their_steps_in_one_message() -> None:
    mine, theirs = [2**62, 1, 9], [2**62, 5, -9]
    alone, ranks = OrderChain(), Summed([theirs])
    for one, other in zip(mine, theirs, strict=True):
        alone.add(wrapped(one + other))
    chain = OrderChain()
    for one in mine:
        chain.add(one)
    assert chain.resolve(ranks) == alone.resolve(ALONE)
    chain.resolve(ranks)
    assert ranks.messages == [3]  # type: ignore[attr-defined]
