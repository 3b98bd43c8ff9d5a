"""Made-up batches are sound: runs cover the pixels, owners are labels, the same positions give the same
batch.
"""

from itertools import islice

import torch

from maskshards.train.bench.synthetic import synthetic_batch, synthetic_batches


def test_runs_cover_every_image_and_name_its_labels() -> None:
    batch = synthetic_batch(3, 20, height=48, width=50)
    assert batch.pixels.shape == (3 * 48 * 50 * 3,)
    for i in range(3):
        ends = batch.run_ends[batch.run_offsets[i] : batch.run_offsets[i + 1]]
        owners = batch.run_owners[batch.run_offsets[i] : batch.run_offsets[i + 1]]
        begin = torch.cat((torch.tensor([i * 48 * 50]), ends[:-1]))
        assert (ends > begin).all()
        assert int(ends[-1]) == (i + 1) * 48 * 50
        assert set(owners.tolist()) >= set(range(1, len(batch.labels[i]) + 1))
        assert int(owners.max()) <= len(batch.labels[i])
        assert batch.labels[i] == tuple(sorted(set(batch.labels[i])))
        assert batch.labels[i][-1] < 20


def test_positions_decide_the_batch() -> None:
    first, again, other = (synthetic_batch(2, 5, first=p, height=12, width=12) for p in (4, 4, 6))
    assert torch.equal(first.pixels, again.pixels)
    assert not torch.equal(first.pixels, other.pixels)
    assert other.positions == (6, 7)


def test_the_stream_repeats_a_few_distinct_batches() -> None:
    keys = [batch.keys for batch in islice(synthetic_batches(1, 3, pin=False, distinct=2), 4)]
    assert keys == [("synthetic_0",), ("synthetic_1",), ("synthetic_0",), ("synthetic_1",)]
