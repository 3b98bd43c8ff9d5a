"""Plans are arithmetic: the loader's tests hold them against the order, these test evaluation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskshards.shards.order.batch_plans import evaluation_plans
from maskshards.shards.order.order import World


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(sum),
    st.integers(1, 5),
    st.integers(1, 7),
    st.none() | st.integers(1, 30),
)
def test_evaluation_takes_each_sample_once_in_equal_steps(sizes, batch_per_rank, num_ranks, max_samples):
    sizes = np.array(sizes)
    everything = [(part, place) for part, size in enumerate(sizes) for place in range(size)]
    seen, steps = [], set()
    for rank in range(num_ranks):
        plans = evaluation_plans(sizes, batch_per_rank, World(rank, num_ranks), max_samples)
        steps.add(len(plans))
        for plan in plans:
            rows = list(zip(plan.parts, plan.places, plan.valid, plan.positions, strict=True))
            assert len(rows) == batch_per_rank
            assert all(everything[position] == (part, place) for part, place, _, position in rows)
            seen += [(part, place) for part, place, valid, _ in rows if valid]
    assert seen == everything[:max_samples]
    assert len(steps) == 1


def test_nothing_to_evaluate_is_refused():
    with pytest.raises(ValueError, match="cannot evaluate 0 samples"):
        evaluation_plans(np.array([3]), 2, World(), 0)
