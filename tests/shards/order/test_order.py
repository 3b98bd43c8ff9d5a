"""The order against a slow list-building twin, and its promises: exactly once, any world, few shards at a
time.
"""

import tracemalloc
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskshards.shards.order.order import (
    KEPT_PERMUTATIONS,
    MOST_IN_BATCH,
    MOST_POSITION,
    MOST_SEED,
    ORDER_VERSION,
    SAMPLE_ORDER,
    SHARD_ORDER,
    Order,
    World,
    checked_world,
    micro_batch_positions,
    num_micro_steps,
    permutation,
    random_words,
    whole_number,
)

GOLDEN_WORDS = [3913060013971590327, 15144682768195723541]
GOLDEN_PERMUTATION = [0, 7, 6, 2, 5, 3, 1, 4]
GOLDEN_ORDER = "3.1 0.1 2.3 2.2 3.0 0.0 2.0 2.1 0.2 0.0 3.1 2.0 2.3 0.1 3.0 2.2 2.1 0.2"

shard_sizes = st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(sum)


def slow_epoch(sizes, seed, epoch, global_batch):
    """The epoch as the definition says it: build the base list, cut it into lanes, deal from the lanes in
    turn.
    """
    base = []
    for shard in permutation(len(sizes), SHARD_ORDER, seed, epoch):
        base += [
            (int(shard), int(i)) for i in permutation(sizes[shard], SAMPLE_ORDER, seed, epoch, int(shard))
        ]
    lanes, start = [], 0
    for lane in range(global_batch):
        length = len(base) // global_batch + (lane < len(base) % global_batch)
        lanes.append(base[start : start + length])
        start += length
    return [lanes[q % global_batch][q // global_batch] for q in range(len(base))]


@settings(max_examples=200, deadline=None)
@given(shard_sizes, st.integers(0, 2**64 - 1), st.integers(1, 30))
def test_three_epochs_equal_the_slow_twin_and_hold_every_sample_once(sizes, seed, global_batch):
    num_samples = sum(sizes)
    order = Order(sizes, seed, global_batch)
    shards, indices = order.samples(np.arange(3 * num_samples))
    got = list(zip(shards.tolist(), indices.tolist(), strict=True))
    everything = {(shard, index) for shard, size in enumerate(sizes) for index in range(size)}
    for epoch in range(3):
        part = got[epoch * num_samples : (epoch + 1) * num_samples]
        assert part == slow_epoch(sizes, seed, epoch, global_batch)
        assert len(part) == len(everything)
        assert set(part) == everything


@settings(max_examples=100, deadline=None)
@given(shard_sizes, st.integers(0, 5), st.integers(1, 12), st.integers(0, 60))
def test_a_single_position_equals_the_whole(sizes, seed, global_batch, position):
    shards, indices = Order(sizes, seed, global_batch).samples(np.array([0, position]))
    alone = Order(sizes, seed, global_batch).samples(np.array([position]))
    assert (alone[0][0], alone[1][0]) == (shards[1], indices[1])


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(0, 3))
def test_ranks_and_micro_steps_partition_each_global_batch(num_ranks, micro_steps, batch_per_rank, step):
    global_batch = num_ranks * micro_steps * batch_per_rank
    positions = [
        micro_batch_positions(step, m, World(r, num_ranks), batch_per_rank, global_batch).tolist()
        for r in range(num_ranks)
        for m in range(num_micro_steps(global_batch, batch_per_rank, num_ranks))
    ]
    flat = [position for batch in positions for position in batch]
    assert flat == list(
        range(step * global_batch, (step + 1) * global_batch)
    )  # rank-major: contiguous per rank


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 6, 8])
def test_the_global_sequence_is_the_same_for_every_world(num_ranks):
    sizes, seed, global_batch = [5, 0, 1, 17, 8], 3, 24
    order = Order(sizes, seed, global_batch)
    for batch_per_rank in (1, 24 // num_ranks):
        micro_steps = num_micro_steps(global_batch, batch_per_rank, num_ranks)
        got = [
            order.samples(micro_batch_positions(step, m, World(r, num_ranks), batch_per_rank, global_batch))
            for step in range(4)
            for r in range(num_ranks)
            for m in range(micro_steps)
        ]
        want = Order(sizes, seed, global_batch).samples(np.arange(4 * global_batch))
        assert np.array_equal(np.concatenate([shards for shards, _ in got]), want[0])
        assert np.array_equal(np.concatenate([indices for _, indices in got]), want[1])


def test_no_slot_returns_to_a_shard_within_an_epoch():
    sizes, global_batch = [7, 3, 11, 5, 9, 2], 4
    num_samples = sum(sizes)
    shards, _ = Order(sizes, 1, global_batch).samples(np.arange(num_samples))
    for lane in range(global_batch):
        read = shards[lane::global_batch]
        visited = [read[0], *(now for before, now in pairwise(read) if now != before)]
        assert len(visited) == len(set(visited))


def test_one_shard_has_another_order_each_epoch_and_seed():
    orders = set()
    for seed in range(2):
        _, indices = Order([12], seed, 4).samples(np.arange(25 * 12))
        orders |= {tuple(row) for row in indices.reshape(25, 12).tolist()}
    assert len(orders) == 50


def test_first_places_are_uniform_over_epochs():
    _, indices = Order([8], 0, 8).samples(np.arange(4000 * 8))
    counts = Counter(indices.reshape(4000, 8)[:, 0].tolist())
    chi_square = sum((counts[i] - 500) ** 2 / 500 for i in range(8))
    assert chi_square < 24.3  # 7 degrees of freedom, p = 0.001; the draw is fixed, so this never flickers


@settings(max_examples=100, deadline=None)
@given(shard_sizes, st.integers(0, 9), st.integers(1, 30))
def test_dropping_ends_epochs_with_batches_and_repeats_nothing(sizes, seed, global_batch):
    num_samples, full = sum(sizes), sum(sizes) // global_batch * global_batch
    if full == 0:
        with pytest.raises(ValueError, match="leaves nothing"):
            Order(sizes, seed, global_batch, "drop")
        return
    order = Order(sizes, seed, global_batch, "drop")
    positions = np.arange(3 * full)
    assert order.epochs(positions).tolist() == np.repeat([0, 1, 2], full).tolist()
    shards, indices = order.samples(positions)
    for epoch in range(3):
        part = slice(epoch * full, (epoch + 1) * full)
        got = list(zip(shards[part].tolist(), indices[part].tolist(), strict=True))
        assert len(set(got)) == full
        if full == num_samples:
            assert got == slow_epoch(sizes, seed, epoch, global_batch)


def test_dropping_leaves_out_other_samples_in_each_epoch():
    left = set()
    for epoch in range(30):
        _, indices = Order([5, 6], 0, 4, "drop").samples(np.arange(epoch * 8, epoch * 8 + 8))
        shards, _ = Order([5, 6], 0, 4, "drop").samples(np.arange(epoch * 8, epoch * 8 + 8))
        everything = {(shard, index) for shard, size in ((0, 5), (1, 6)) for index in range(size)}
        left |= everything - set(zip(shards.tolist(), indices.tolist(), strict=True))
    assert len(left) == 11


@settings(max_examples=60, deadline=None)
@given(shard_sizes, st.integers(1, 9), st.sampled_from(["carry", "drop"]), st.data())
def test_next_shards_are_those_that_the_lanes_enter(sizes, global_batch, epoch_end, data):
    """In any epoch, for one position and for several in any epochs, and never a shard without a sample."""
    if epoch_end == "drop" and sum(sizes) < global_batch:
        return
    order = Order(sizes, 2, global_batch, epoch_end)
    each = order.epoch_samples
    shards, _ = order.samples(np.arange(3 * each))

    def entered(position):
        epoch, offset = divmod(position, each)
        lane = shards[epoch * each : (epoch + 1) * each][offset % global_batch :: global_batch]
        entry = offset // global_batch
        return {int(shard) for shard in [s for s in lane[entry:] if s != lane[entry]][:1]}

    for position in range(3 * each):
        assert set(order.next_shards(np.array([position])).tolist()) == entered(position)
    some = data.draw(st.lists(st.integers(0, 3 * each - 1), min_size=1, max_size=6))
    assert order.next_shards(np.array(some)).tolist() == sorted(set().union(*map(entered, some)))


def test_no_positions_enter_no_shards():
    order, none = Order([3, 2], 0, 2), np.array([], np.int64)
    assert order.next_shards(none).tolist() == []
    assert [found.tolist() for found in order.samples(none)] == [[], []]


def test_what_is_kept_of_the_order_is_bounded():
    """A rank that passes through a million shards keeps the permutations of the last few thousand."""
    order = Order([1] * (KEPT_PERMUTATIONS + 50), 0, 1)
    first, again = (order.samples(np.arange(order.num_samples)) for _ in range(2))
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    assert len(order._permutations) == KEPT_PERMUTATIONS
    for epoch in range(5):
        order.epoch(epoch)
    assert len(order._epochs) == 2


def test_the_permutations_that_are_let_go_are_those_not_used_for_longest(monkeypatch):
    monkeypatch.setattr("maskshards.shards.order.order.KEPT_PERMUTATIONS", 2)
    order = Order([1, 1, 1], 0, 1)
    places = {int(order.samples(np.array([position]))[0][0]): position for position in range(3)}
    for shard, kept in ((0, [0]), (1, [0, 1]), (0, [1, 0]), (2, [0, 2])):
        order.samples(np.array([places[shard]]))
        assert [shard for _, shard in order._permutations][-len(kept) :] == kept


@given(shard_sizes, st.integers(1, 30), st.integers(1, 40))
def test_steps_of_epochs_hold_all_their_positions_and_no_more_batches(sizes, global_batch, epochs):
    steps = Order(sizes, 0, global_batch).num_steps(epochs)
    assert (steps - 1) * global_batch < epochs * sum(sizes) <= steps * global_batch


def test_the_drawn_words_never_change():
    """Data sets are resumed by these numbers: if this fails, ORDER_VERSION must rise."""
    assert ORDER_VERSION == 1
    assert [int(word) for word in random_words(2, 1, 0, 0)] == GOLDEN_WORDS
    assert permutation(8, SAMPLE_ORDER, 7, 3, 5).tolist() == GOLDEN_PERMUTATION
    shards, indices = Order([3, 0, 4, 2], 11, 4).samples(np.arange(18))
    assert [f"{s}.{i}" for s, i in zip(shards, indices, strict=True)] == GOLDEN_ORDER.split()


def test_a_key_is_two_words_of_32_bits():
    for key in (0, 1, 2**32 - 1, 2**32, 2**33 + 7, 2**63, 2**64 - 1):
        seeds = np.random.SeedSequence([2, *divmod(key, 2**32)[::-1], 5, 0])
        assert random_words(3, 2, key, 5).tolist() == np.random.Philox(seeds).random_raw(3).tolist()


def test_keys_are_separate_words():
    assert random_words(1, 2, 0, 1) != random_words(1, 2, 1, 0)
    assert random_words(1, 1, 5, 5) != random_words(1, 2, 5, 5)
    assert random_words(1, 1, 5) != random_words(1, 1, 5, 0, 0)
    assert random_words(1, 1, 1 << 32, 0) != random_words(1, 1, 1, 0)


def test_a_plan_of_a_hundred_million_samples_makes_no_list_of_them():
    tracemalloc.start()
    order = Order(np.full(390_625, 256), 0, 4096)
    shards, indices = order.samples(np.arange(50_000_000, 50_000_256))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 50_000_000  # bytes; a byte for each sample would be twice that
    assert len(set(zip(shards.tolist(), indices.tolist(), strict=True))) == 256
    assert order.epoch(0).starts.nbytes + order.epoch(0).shard_order.nbytes < 8_000_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((16, 3, 2), "a batch_per_rank of 1, 2, 4, 8 would fit, or a global_batch of 12, 18$"),
        ((16, 2, 3), r"a global_batch of 12, 18 would fit \(a multiple of 6\)$"),
        ((2, 4, 1), "a batch_per_rank of 1, 2 would fit, or a global_batch of 4$"),
        ((0, 1, 1), "must be positive"),
    ],
)
def test_what_does_not_divide_is_refused_with_what_would_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        num_micro_steps(*arguments)


def test_a_world_is_made_of_plain_integers_and_nothing_else_is_one():
    world = World(np.int64(1), np.uint8(2))
    assert (type(world.rank), type(world.num_ranks)) == (int, int)
    assert checked_world(world) is world
    assert World() == World(0, 1)
    for wrong in ((0, 1), None, 1):
        with pytest.raises(ValueError, match=r"expected World\(rank, num_ranks\)"):
            checked_world(wrong)
    for wrong in ((-1, 2), (0, 0), (1.0, 2), (0, "2")):
        with pytest.raises(ValueError, match="rank"):
            World(*wrong)


def test_nonsense_is_refused():
    for epochs in (0, -1, 1.5, None):
        with pytest.raises(ValueError, match="epochs"):
            Order([1], 0, 1).num_steps(epochs)
    with pytest.raises(ValueError, match="list of counts"):
        Order([[1, 2]], 0, 1)
    with pytest.raises(ValueError, match="every shard is empty"):
        Order([0, 0], 0, 4)
    with pytest.raises(ValueError, match="none negative"):
        Order([1, -1], 0, 4)
    with pytest.raises(ValueError, match="at least 1"):
        Order([1], 0, 0)
    with pytest.raises(ValueError, match="one of carry, drop"):
        Order([1], 0, 1, "pad")
    with pytest.raises(ValueError, match="rank 2 of 2"):
        World(2, 2)
    with pytest.raises(ValueError, match="negative"):
        Order([1], 0, 1).samples(np.array([-1]))
    with pytest.raises(ValueError, match="micro_step 2 of 2"):
        micro_batch_positions(0, 2, World(), 2, 4)
    for seed in (-1, 1 << 64):
        with pytest.raises(ValueError, match="cannot key a draw"):
            Order([1], seed, 1).samples(np.array([0]))
    assert Order([1], (1 << 64) - 1, 1).samples(np.array([0]))[1].tolist() == [0]


def test_whole_numbers_are_taken_from_numpy_too_and_nothing_else_is():
    for value in (3, np.int64(3), np.uint8(3), True + 2):
        found = whole_number(value, "seed", 0, 3)
        assert (found, type(found)) == (3, int)
    for value in (4, -1, 3.0, np.float64(3), "3", None, [3]):
        with pytest.raises(ValueError, match=r"^seed is "):
            whole_number(value, "seed", 0, 3)


def test_the_largest_seed_and_position_are_taken_and_the_next_are_not():
    assert whole_number(2**64 - 1, "seed", 0, MOST_SEED) == 2**64 - 1
    assert whole_number(2**62 - 1, "position") == 2**62 - 1
    with pytest.raises(ValueError, match="seed"):
        whole_number(2**64, "seed", 0, MOST_SEED)
    with pytest.raises(ValueError, match="position"):
        whole_number(2**62, "position")


def test_steps_and_batches_beyond_any_are_refused_before_their_positions_are_counted():
    last = MOST_POSITION // 4 - 1
    assert micro_batch_positions(last, 0, World(), 4, 4).max() <= MOST_POSITION
    for step in (last + 1, 2**63 - 1, 2**63, 10**30, -1):
        with pytest.raises(ValueError, match=f"step is {step}; expected a whole number from 0 to {last}"):
            micro_batch_positions(step, 0, World(), 4, 4)
    assert num_micro_steps(MOST_IN_BATCH, 1, 1) == MOST_IN_BATCH
    for size in (MOST_IN_BATCH + 1, 2**62 - 1, 2**63, 10**30):
        with pytest.raises(ValueError, match=f"global_batch is {size}; expected a whole number from 1"):
            num_micro_steps(size, 3, 2)
