"""A whole batch at once against `unpack_runs` image by image, for right runs and for damaged ones."""

import numpy as np
import pytest
import zstandard

from maskshards.shards.errors import RunsError
from maskshards.shards.format.batch_runs import join_runs, unpack_batch
from maskshards.shards.format.rle import HEADER, LabelledRuns, encode_label_map, pack_runs, unpack_runs


def class_map(random, height, width, classes):
    coarse = random.choice([*classes, 65535], (height // 3 + 1, width // 4 + 1))
    return np.kron(coarse, np.ones((3, 4), int))[:height, :width].astype(np.uint16)


def made(seed, count):
    """(payloads, heights, widths, runs) of random maps; some of one class, some of none, some of many."""
    random = np.random.default_rng(seed)
    kinds = [[7], [], [0, 1, 149], list(range(0, 508, 2)), [3, 65534]]
    maps = [
        class_map(random, *random.integers(1, 60, 2).tolist(), kinds[int(random.integers(len(kinds)))])
        for _ in range(count)
    ]
    runs = [encode_label_map(one) for one in maps]
    payloads = [pack_runs(own, *one.shape) for own, one in zip(runs, maps, strict=True)]
    return payloads, [one.shape[0] for one in maps], [one.shape[1] for one in maps], runs


def check(found, runs):
    assert found.labels == tuple(tuple(own.labels.tolist()) for own in runs)
    assert found.offsets == tuple(np.cumsum([0, *(len(own.lengths) for own in runs)]).tolist())
    start = 0
    for i, own in enumerate(runs):
        part = slice(*found.offsets[i : i + 2])
        np.testing.assert_array_equal(found.ends[part] - start, np.cumsum(own.lengths, dtype=np.int64))
        np.testing.assert_array_equal(found.owners[part], own.owners)
        start = found.ends[found.offsets[i + 1] - 1]


@pytest.mark.parametrize("seed", range(20))
def test_a_batch_is_its_images_one_after_the_other(seed):
    payloads, heights, widths, runs = made(seed, 1 + seed % 6)
    check(unpack_batch(payloads, heights, widths, zstandard.ZstdDecompressor()), runs)
    check(join_runs(runs), runs)


def test_long_runs_are_cut_and_accepted():
    flat = np.full((400, 400), 5, np.uint16)
    runs = encode_label_map(flat)
    assert len(runs.lengths) == 3
    payloads = [pack_runs(runs, 400, 400)] * 2
    check(unpack_batch(payloads, [400] * 2, [400] * 2, zstandard.ZstdDecompressor()), [runs] * 2)


def damaged(random, payload):
    """The payload with one byte changed inside the frame: checksums of zstd do not see it."""
    data = bytearray(zstandard.ZstdDecompressor().decompress(payload))
    place = int(random.integers(len(data)))
    data[place] = int(random.integers(256)) if random.random() < 0.5 else data[place] ^ 1
    if random.random() < 0.2:
        data = data[: int(random.integers(HEADER.size + 1, len(data) + 1))]
    return zstandard.ZstdCompressor(write_checksum=True).compress(bytes(data))


def test_refused_is_what_is_refused_image_by_image():
    random, refused = np.random.default_rng(9), 0
    for round_number in range(600):
        payloads, heights, widths, _ = made(round_number % 40, 3)
        number = int(random.integers(3))
        payloads[number] = damaged(random, payloads[number])
        decompressor = zstandard.ZstdDecompressor()
        try:
            runs = [unpack_runs(*each, decompressor) for each in zip(payloads, heights, widths, strict=True)]
        except RunsError:
            refused += 1
            with pytest.raises(RunsError):
                unpack_batch(payloads, heights, widths, decompressor)
        else:
            check(unpack_batch(payloads, heights, widths, decompressor), runs)
    assert 200 < refused < 600


def test_more_labels_than_a_byte_holds_are_refused():
    many = np.arange(300, dtype=np.uint16).reshape(15, 20)
    runs = encode_label_map(many)
    with pytest.raises(RunsError, match="header"):
        unpack_batch([pack_runs(runs, 15, 20)], [15], [20], zstandard.ZstdDecompressor())
    few = LabelledRuns(np.array([1], np.uint16), np.array([300], np.uint16), np.array([1], np.uint8))
    with pytest.raises(RunsError, match="254"):
        join_runs([few, runs])


def test_more_pixels_than_31_bits_count_are_refused_and_never_wrap_around():
    """17 images of the largest size: 2^27 pixels each, in runs that are as long as runs can be."""
    height, width = 1 << 13, 1 << 14
    lengths = np.full((height * width) // 65535 + 1, 65535, np.uint16)
    lengths[-1] = height * width % 65535
    one = LabelledRuns(np.array([3], np.uint16), lengths, np.ones(len(lengths), np.uint8))
    payload = pack_runs(one, height, width)
    for count in (15, 16, 17, 33):
        sizes = [height] * count, [width] * count
        if count == 15:
            check(unpack_batch([payload] * count, *sizes, zstandard.ZstdDecompressor()), [one] * count)
            check(join_runs([one] * count), [one] * count)
            continue
        with pytest.raises(RunsError):
            unpack_batch([payload] * count, *sizes, zstandard.ZstdDecompressor())
        with pytest.raises(RunsError, match="lower batch_per_rank"):
            join_runs([one] * count)
