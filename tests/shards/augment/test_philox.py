"""Philox against numpy's own, and the separation of the words that key it."""

import numpy as np
import pytest

from maskshards.shards.augment.philox import key_digest, philox, uniforms

ONES = 2**64 - 1


def numpys_philox(counter, key):
    """numpy steps its counter before the first block, so the oracle starts one below (with borrow)."""
    number = (sum(word << 64 * i for i, word in enumerate(counter)) - 1) % 2**256
    words = np.array([number >> 64 * i & ONES for i in range(4)], np.uint64)
    return np.random.Philox(counter=words, key=np.array(key, np.uint64)).random_raw(4)


@pytest.mark.parametrize(
    ("counter", "key"),
    [
        ((0, 0, 0, 0), (0, 0)),
        ((ONES,) * 4, (ONES, ONES)),
        ((7, 1, 0xDEADBEEF12345678, 0), (42, 3)),
        ((0, 2**63, 2**32, 2**33 - 1), (2**32 - 1, 2**63 + 1)),
    ],
)
def test_equals_numpys_philox(counter, key):
    got = philox(np.array([counter], np.uint64), np.array([key], np.uint64))
    np.testing.assert_array_equal(got[0], numpys_philox(counter, key))


def test_many_counters_at_once_equal_one_by_one():
    noise = np.random.default_rng(0)
    counters = noise.integers(0, ONES, (5, 3, 4), dtype=np.uint64)
    keys = noise.integers(0, ONES, (5, 3, 2), dtype=np.uint64)
    together = philox(counters, keys)
    for i in range(5):
        for j in range(3):
            np.testing.assert_array_equal(
                together[i, j], numpys_philox(counters[i, j].tolist(), keys[i, j].tolist())
            )


def test_uniforms_are_numpys_doubles_of_the_same_words():
    digest = key_digest("a/b_1")
    noise = np.concatenate([numpys_philox((block, 9, digest, 0), (3, 5)) for block in range(2)])
    np.testing.assert_array_equal(uniforms(3, [5], [digest], 9, 7)[0], (noise[:7] >> np.uint64(11)) / 2**53)


def test_each_word_changes_the_stream_and_none_stands_in_for_another():
    base = {"seed": 1, "epochs": [2], "digests": [3], "operations": 4}
    streams = [uniforms(**base, count=8)]
    for change in ({"seed": 2}, {"epochs": [1]}, {"epochs": [3]}, {"digests": [4]}, {"operations": 3}):
        streams.append(uniforms(**(base | change), count=8))
    # Swapped neighbours: a sum of words, the usual mistake, could not tell these apart.
    streams.append(uniforms(2, [1], [3], 4, 8))
    assert len(np.unique(np.concatenate(streams))) == 8 * len(streams)


def test_a_row_depends_on_its_own_sample_only():
    together = uniforms(0, [4, 5, 5], [10, 11, 12], 1, 6)
    np.testing.assert_array_equal(together[1], uniforms(0, [5], [11], 1, 6)[0])
    np.testing.assert_array_equal(together[:, :3], uniforms(0, [4, 5, 5], [10, 11, 12], 1, 3))


def test_moments_are_those_of_the_uniform_distribution():
    numbers = uniforms(0, [0] * 1000, list(range(1000)), 0, 40).ravel()
    assert 0 <= numbers.min() < 0.001
    assert 0.999 < numbers.max() < 1
    assert abs(numbers.mean() - 1 / 2) < 0.005
    assert abs(numbers.var() - 1 / 12) < 0.002


def test_key_digest_is_fixed_for_ever():
    # A changed digest would change every augmentation of every run.
    assert key_digest("ADE_train_00000001") == 0xE3276AC4F5A3730D


@pytest.mark.parametrize(("seed", "epoch"), [(-1, 0), (2**64, 0), (0, -1)])
def test_words_that_do_not_fit_are_refused(seed, epoch):
    with pytest.raises(ValueError, match="expected whole numbers"):
        uniforms(seed, [epoch], [0], 0, 1)


def test_no_samples_no_numbers():
    assert uniforms(0, [], [], 0, 5).shape == (0, 5)


def test_operations_may_differ_by_row():
    together = uniforms(0, [1, 1], [2, 2], [5, 6], 9)
    for row, operation in enumerate((5, 6)):
        np.testing.assert_array_equal(together[row], uniforms(0, [1], [2], operation, 9)[0])
