"""Choices and mixtures against a brute-force look at the samples; they stream as exactly as a whole split."""

from collections import Counter

import pytest

from maskshards.shards.errors import ManifestError
from maskshards.shards.format.manifest import Split, open_split
from maskshards.shards.loading.loader import Loader
from maskshards.shards.order.order import World
from maskshards.shards.order.selection import Choice, mixture, whole


@pytest.fixture(scope="module")
def split(make_split):
    return open_split(str(make_split("selection", [8, 0, 13, 6]).folder))


@pytest.fixture(scope="module")
def other(make_split):
    return open_split(str(make_split("other", [5, 4], seed=3).folder))


def entries(split):
    return [
        split.index(shard).entry(row)
        for shard, info in enumerate(split.manifest.shards)
        for row in range(info.samples)
    ]


def keys_of(selection):
    found = []
    for number, part in enumerate(selection.parts):
        for place in range(part.num_samples):
            split, shard, row = selection.locate(number, place)
            found.append(selection.splits[split].index(shard).keys[row])
    return found


def test_a_whole_split_is_its_shards(split):
    selection = whole(split)
    assert selection.shard_samples.tolist() == [8, 0, 13, 6]
    assert selection.locate(2, 1) == (0, 2, 1)
    assert selection.fingerprint == split.manifest.fingerprint
    assert selection.classes == split.manifest.classes
    assert keys_of(selection) == [entry.key for entry in entries(split)]


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        (Choice(classes=(3,)), lambda e: 3 in e.class_ids),
        (Choice(classes=(0, 149)), lambda e: {0, 149} & set(e.class_ids)),
        (Choice(min_side_px=30), lambda e: min(e.height, e.width) >= 30),
        (Choice(max_side_px=45), lambda e: max(e.height, e.width) <= 45),
        (
            Choice(min_side_px=25, max_side_px=50, classes=(7,)),
            lambda e: min(e.height, e.width) >= 25 and max(e.height, e.width) <= 50 and 7 in e.class_ids,
        ),
    ],
)
def test_a_choice_takes_what_it_says(split, choice, wanted):
    expected = [entry.key for entry in entries(split) if wanted(entry)]
    assert 0 < len(expected) < 27
    assert keys_of(mixture([(split, choice)])) == expected


def test_smaller_fractions_are_part_of_larger_ones(split):
    chosen = [set(keys_of(mixture([(split, Choice(fraction=f))]))) for f in (0.2, 0.5, 0.9, 1.0)]
    assert chosen[0] < chosen[1] < chosen[2] < chosen[3]
    assert 7 <= len(chosen[1]) <= 20


def test_weights_repeat_each_sample(split, other):
    counts = Counter(keys_of(mixture([(split, Choice(weight=2)), (other, Choice(weight=0.5))])))
    assert [counts[entry.key] for entry in entries(split)] == [2] * 27
    assert {counts[entry.key] for entry in entries(other)} == {0, 1}
    counts = Counter(keys_of(mixture([(split, Choice(weight=2.5))])))
    assert {counts[entry.key] for entry in entries(split)} == {2, 3}


def test_a_mixture_streams_elastically_and_resumes(split, other):
    selection = mixture([(split, Choice(fraction=0.6, weight=1.5)), (other, Choice(classes=(0, 3)))])

    def stream(num_ranks, position, end):
        rows = []
        for rank in range(num_ranks):
            with Loader(
                selection,
                batch_per_rank=12 // num_ranks,
                global_batch=12,
                position=position,
                end=end,
                world=World(rank, num_ranks),
                seed=2,
            ) as loader:
                rows += [row for batch in loader for row in zip(batch.positions, batch.keys, strict=True)]
        return sorted(rows)

    reference = stream(1, 0, 96)
    assert stream(4, 0, 36) + stream(2, 36, 60) + stream(3, 60, 96) == reference
    size = int(selection.shard_samples.sum())
    assert Counter(key for _, key in reference[:size]) == Counter(keys_of(selection))


def test_fingerprints_tell_choices_apart(split, other):
    choices = [Choice(), Choice(weight=2), Choice(fraction=0.5), Choice(classes=(1,)), Choice(min_side_px=9)]
    prints = {mixture([(split, choice), (other, Choice())]).fingerprint for choice in choices[:3]}
    prints |= {mixture([(split, choice)]).fingerprint for choice in (choices[0], choices[2], choices[4])}
    prints |= {mixture([(other, Choice()), (split, Choice())]).fingerprint}
    assert len(prints) == 7


def test_what_does_not_go_together_is_refused(split):
    fewer = Split(open_split(split.base).manifest, split.store)
    object.__setattr__(fewer.manifest, "classes", ("one",))
    with pytest.raises(ManifestError, match="same list of classes"):
        mixture([(split, Choice()), (fewer, Choice())])
    with pytest.raises(ManifestError, match="no sample is left"):
        mixture([(split, Choice(min_side_px=1000))])
    with pytest.raises(ValueError, match="at least one split"):
        mixture([])
    for wrong in ({"fraction": 0.0}, {"fraction": 1.5}, {"weight": 0.0}, {"weight": -1}):
        with pytest.raises(ValueError, match="must be in"):
            Choice(**wrong)


def test_a_split_without_samples_is_named(make_split):
    with pytest.raises(ManifestError, match=r"it holds no sample$"):
        whole(open_split(make_split("hollow", [0, 0]).folder))
