"""Labelled runs against loops over pixels, the exact bytes of the layout, and refusals of everything else."""

import os
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from maskshards.shards.errors import RunsError
from maskshards.shards.format.rle import (
    IGNORE,
    MAX_PIXELS,
    LabelledRuns,
    binary_mask,
    check_runs,
    decode_label_map,
    encode_label_map,
    pack_runs,
    unpack_runs,
)

class_maps = hnp.arrays(
    np.uint16,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=24),
    elements=st.sampled_from([0, 1, 2, 149, 300, 65534, IGNORE]),
)


def runs_by_loop(class_map):
    """The definition, pixel by pixel: [(length, class id)], neighbours differing, cut at 65,535."""
    runs = []
    for value in class_map.ravel().tolist():
        if runs and runs[-1][1] == value and runs[-1][0] < 65535:
            runs[-1][0] += 1
        else:
            runs.append([1, value])
    return [tuple(run) for run in runs]


def as_pairs(runs):
    table = [IGNORE, *runs.labels.tolist()]
    return [
        (length, table[owner])
        for length, owner in zip(runs.lengths.tolist(), runs.owners.tolist(), strict=True)
    ]


def frame(payload):
    return zstandard.ZstdCompressor(level=1).compress(payload)


@given(class_maps)
def test_runs_are_those_of_the_loop_and_every_direction_returns(class_map):
    height, width = class_map.shape
    runs = encode_label_map(class_map)
    assert as_pairs(runs) == runs_by_loop(class_map)
    assert runs.labels.tolist() == sorted(set(class_map.ravel().tolist()) - {IGNORE})
    assert np.array_equal(decode_label_map(runs, height, width), class_map)
    assert unpack_runs(pack_runs(runs, height, width), height, width) == runs
    table = [IGNORE, *runs.labels.tolist()]
    for owner, label in enumerate(table):
        assert np.array_equal(binary_mask(runs, owner, height, width), class_map == label)
    assert runs.areas().tolist() == [(class_map == label).sum() for label in table]


@pytest.mark.parametrize("num_pixels", [65534, 65535, 65536, 131070, 131071, 200000])
def test_long_runs_are_cut_at_65535_and_come_back(num_pixels):
    class_map = np.full((1, num_pixels + 2), 7, np.uint16)
    class_map[0, [0, -1]] = IGNORE
    runs = encode_label_map(class_map)
    assert as_pairs(runs) == runs_by_loop(class_map)
    packed = pack_runs(runs, *class_map.shape)
    assert np.array_equal(
        decode_label_map(unpack_runs(packed, *class_map.shape), *class_map.shape), class_map
    )


@pytest.mark.parametrize(
    ("num_labels", "kind"), [(0, np.uint8), (254, np.uint8), (255, np.uint16), (3000, np.uint16)]
)
def test_owners_take_one_byte_up_to_254_labels(num_labels, kind):
    class_map = np.append(np.arange(num_labels, dtype=np.uint16) * 2, np.uint16(IGNORE))[None]
    runs = encode_label_map(class_map)
    assert runs.owners.dtype == kind
    assert unpack_runs(pack_runs(runs, *class_map.shape), *class_map.shape) == runs


def test_the_bytes_are_those_of_the_document():
    class_map = np.full((300, 300), 9, np.uint16)
    class_map[0, :5] = IGNORE
    class_map[299, 290:] = 4
    payload = zstandard.ZstdDecompressor().decompress(pack_runs(encode_label_map(class_map), 300, 300))
    lengths = [5, 65535, 90000 - 5 - 65535 - 10, 10]
    expected = struct.pack("<4sHHIII", b"MSR1", 0, 2, 300, 300, 4) + struct.pack("<2H", 4, 9)
    expected += bytes(n & 255 for n in lengths) + bytes(n >> 8 for n in lengths) + bytes([0, 2, 2, 1])
    assert payload == expected


def test_the_bytes_of_wide_owners_are_those_of_the_document():
    class_map = np.arange(600, dtype=np.uint16).reshape(20, 30)[::-1]  # a view whose rows lie backwards
    payload = zstandard.ZstdDecompressor().decompress(pack_runs(encode_label_map(class_map), 20, 30))
    owners = (class_map.ravel() + 1).tolist()
    expected = struct.pack("<4sHHIII", b"MSR1", 1, 600, 20, 30, 600) + struct.pack("<600H", *range(600))
    expected += bytes([1] * 600) + bytes(600) + bytes(k & 255 for k in owners) + bytes(k >> 8 for k in owners)
    assert payload == expected


def test_packing_declares_the_content_size_and_a_checksum():
    data = pack_runs(encode_label_map(np.zeros((4, 4), np.uint16)), 4, 4)
    frame_parameters = zstandard.get_frame_parameters(data)
    assert frame_parameters.content_size == 20 + 2 + 3
    assert frame_parameters.has_checksum


GOOD = encode_label_map(np.array([[1, 1, 2], [2, 3, IGNORE]], np.uint16))
u8, u16 = (lambda *v: np.array(v, np.uint8)), (lambda *v: np.array(v, np.uint16))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (LabelledRuns(u16(1, 2, 2), GOOD.lengths, GOOD.owners), "not ascending"),
        (LabelledRuns(u16(1, 2, IGNORE), GOOD.lengths, GOOD.owners), "not ascending"),
        (LabelledRuns(GOOD.labels, u16(2, 2, 1), GOOD.owners), "4 owners"),
        (LabelledRuns(GOOD.labels, u16(2, 2, 1, 2), GOOD.owners), "cover 7 pixels"),
        (LabelledRuns(GOOD.labels, u16(2, 3, 0, 1), GOOD.owners), "run 2 is empty"),
        (LabelledRuns(GOOD.labels, GOOD.lengths, u8(1, 2, 3, 4)), "owner 4 of 3"),
        (LabelledRuns(GOOD.labels, GOOD.lengths, u8(1, 2, 1, 0)), "owns no pixel"),
        (LabelledRuns(GOOD.labels, GOOD.lengths, u8(3, 2, 3, 0)), "owns no pixel"),  # the first
        (LabelledRuns(u16(1, 2), GOOD.lengths, u8(1, 2, 2, 0)), "runs 1 and the next"),
        (LabelledRuns(GOOD.labels, GOOD.lengths, GOOD.owners.astype(np.uint16)), "uint16 with 3 labels"),
        (LabelledRuns(u16(), u16(), u8()), "cover 0 pixels"),
        (LabelledRuns(GOOD.labels.astype(np.int64), GOOD.lengths, GOOD.owners), "runs are int64, uint16"),
        (LabelledRuns(GOOD.labels, GOOD.lengths.astype(np.int64), GOOD.owners), "runs are uint16, int64"),
    ],
)
def test_runs_that_are_not_canonical_are_refused_in_both_directions(bad, says):
    with pytest.raises(RunsError, match=says):
        check_runs(bad, 2, 3)
    with pytest.raises(RunsError, match=says):
        pack_runs(bad, 2, 3)
    kinds = [array.dtype for array in (bad.labels, bad.lengths, bad.owners)]
    if kinds == [np.uint16, np.uint16, np.uint8] and len(bad.lengths) == len(bad.owners) > 0:  # a payload's
        with pytest.raises(RunsError, match=says):
            unpack_runs(frame(raw_payload(bad)), 2, 3)


def raw_payload(runs):
    """The payload of any runs of a 2x3 image, uncompressed, as the document lays it out."""
    header = struct.pack("<4sHHIII", b"MSR1", 0, len(runs.labels), 2, 3, len(runs.lengths))
    low, high = (runs.lengths & 255).astype(np.uint8), (runs.lengths >> 8).astype(np.uint8)
    return b"".join((header, *(part.tobytes() for part in (runs.labels, low, high, runs.owners))))


def test_runs_are_equal_if_all_arrays_are_in_type_and_value():
    assert raw_payload(GOOD) == good_payload()
    assert encode_label_map(decode_label_map(GOOD, 2, 3)) == GOOD
    others = {
        "labels": u16(1, 2, 4),
        "lengths": u16(1, 3, 1, 1),
        "owners": u8(1, 2, 3, 1),
    }
    for name, values in others.items():
        assert replace(GOOD, **{name: values}) != GOOD
        assert replace(GOOD, **{name: getattr(GOOD, name).astype(np.int64)}) != GOOD
    assert (GOOD == GOOD.labels.tolist()) is False


def good_payload(**changes):
    """The payload of GOOD, uncompressed, with header fields changed."""
    fields = {"magic": b"MSR1", "flags": 0, "labels": 3, "height": 2, "width": 3, "runs": 4, **changes}
    lengths = GOOD.lengths.astype(np.uint8).tobytes() + bytes(4)
    return struct.pack("<4sHHIII", *fields.values()) + GOOD.labels.tobytes() + lengths + GOOD.owners.tobytes()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"magic": b"MSR2"}, "another format or version"),
        ({"flags": 1}, "flags 0x1"),
        ({"flags": 2}, "flags 0x2"),
        ({"height": 3}, "3x3 image, expected 3x2"),
        ({"labels": 2}, "do not"),
        ({"runs": 1 << 31}, "do not"),
    ],
)
def test_headers_that_lie_are_refused(changes, says):
    assert unpack_runs(frame(good_payload()), 2, 3) == GOOD
    with pytest.raises(RunsError, match=says):
        unpack_runs(frame(good_payload(**changes)), 2, 3)


def test_a_zstd_bomb_is_refused_before_it_expands():
    bomb = frame(bytes(200_000_000))
    assert len(bomb) < 30_000
    with pytest.raises(RunsError, match="claim 200000000 bytes"):
        unpack_runs(bomb, 512, 512)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not zstd",
        pack_runs(GOOD, 2, 3)[:-1],
        pack_runs(GOOD, 2, 3) + b"\0",
        pack_runs(GOOD, 2, 3) * 2,
        zstandard.ZstdCompressor(write_content_size=False).compress(good_payload()),
        b"\x50\x2a\x4d\x18" + struct.pack("<I", 4) + b"skip" + pack_runs(GOOD, 2, 3),
    ],
    ids=["empty", "noise", "cut", "trailing byte", "two frames", "no content size", "skippable frame"],
)
def test_anything_but_one_whole_frame_is_refused(data):
    with pytest.raises(RunsError):
        unpack_runs(data, 2, 3)


@given(st.integers(0, 10**6), st.integers(0, 7))
def test_a_flipped_bit_of_the_frame_is_refused_or_changes_nothing(place, bit):
    data = bytearray(pack_runs(GOOD, 2, 3))
    data[place % len(data)] ^= 1 << bit
    try:
        assert unpack_runs(bytes(data), 2, 3) == GOOD
    except RunsError:
        pass


@pytest.mark.parametrize(
    ("num_bytes", "says"),
    [
        (20, "claim 20 bytes, expected 21 to 56"),
        (21, "another format"),
        (20 + 2 * 6 + 4 * 6, "another format"),
        (20 + 2 * 6 + 4 * 6 + 1, "claim 57 bytes, expected 21 to 56"),
    ],
)
def test_a_payload_holds_more_than_a_header_and_no_more_than_its_pixels_need(num_bytes, says):
    with pytest.raises(RunsError, match=says):
        unpack_runs(frame(bytes(num_bytes)), 2, 3)


def test_no_image_needs_more_labels_than_there_are_class_ids():
    largest = 20 + 2 * 65535 + 4 * 300 * 300
    for num_bytes, says in ((largest, "another format"), (largest + 1, f"claim {largest + 1} bytes")):
        with pytest.raises(RunsError, match=says):
            unpack_runs(frame(bytes(num_bytes)), 300, 300)


@pytest.mark.parametrize(
    "shape", [(0, 4), (4, 0), (-2, -3), (2**27 + 1, 1), (1, 2**27 + 1), (1 << 31, 1 << 31)]
)
def test_sizes_beyond_the_limit_are_refused(shape):
    assert MAX_PIXELS == 2**27
    data = pack_runs(GOOD, 2, 3)
    for take in (
        lambda: unpack_runs(data, *shape),
        lambda: pack_runs(GOOD, *shape),
        lambda: decode_label_map(GOOD, *shape),
        lambda: binary_mask(GOOD, 1, *shape),
    ):
        with pytest.raises(RunsError, match="at least 1x1 and at most 134217728 pixels"):
            take()
    if 0 <= min(shape) < 2:
        with pytest.raises(RunsError, match="at least 1x1 and at most 134217728 pixels"):
            encode_label_map(np.broadcast_to(np.uint16(0), shape))


@pytest.mark.parametrize("shape", [(2**27, 1), (1, 2**27), (3, 3)])
def test_runs_are_of_an_image_of_one_size(shape):
    """The largest sizes are asked for, and what is wrong with these runs is not their size."""
    height, width = shape
    with pytest.raises(RunsError, match=f"runs are of a 3x2 image, expected {width}x{height}"):
        unpack_runs(pack_runs(GOOD, 2, 3), height, width)
    for take in (decode_label_map, pack_runs, check_runs, lambda runs, *size: binary_mask(runs, 1, *size)):
        with pytest.raises(RunsError, match=f"runs cover 6 pixels, the image has {width}x{height}"):
            take(GOOD, height, width)


def test_one_pixel_is_an_image():
    for value in (0, IGNORE):
        class_map = np.full((1, 1), value, np.uint16)
        assert (
            decode_label_map(unpack_runs(pack_runs(encode_label_map(class_map), 1, 1), 1, 1), 1, 1) == value
        )


def test_owners_that_an_image_has_not_are_refused():
    for owner in (-1, 4):
        with pytest.raises(RunsError, match=f"owner {owner} of an image with 3 labels"):
            binary_mask(GOOD, owner, 2, 3)


def test_a_label_without_a_pixel_has_no_area():
    assert LabelledRuns(u16(1, 2), u16(6), u8(1)).areas().tolist() == [0, 6, 0]


def test_a_class_map_of_another_type_is_refused():
    for wrong in (np.zeros((2, 2), np.int64), np.zeros(4, np.uint16)):
        with pytest.raises(RunsError, match="expected 2-d uint16"):
            encode_label_map(wrong)


def test_real_label_maps_come_back_pixel_for_pixel():
    root = os.environ.get("MASKSHARDS_TEST_DATA")
    if not root:
        pytest.skip("MASKSHARDS_TEST_DATA is not set")
    paths = sorted(Path(root, "ade20k/annotations").rglob("*.png"))
    assert paths
    for path in paths:
        with Image.open(path) as picture:
            class_map = np.asarray(picture).astype(np.uint16) - np.uint16(1)  # 0 wraps to IGNORE
        packed = pack_runs(encode_label_map(class_map), *class_map.shape)
        assert np.array_equal(
            decode_label_map(unpack_runs(packed, *class_map.shape), *class_map.shape), class_map
        )


@pytest.mark.parametrize("count", [1, 2, 254, 255, 256])
def test_bytes_give_the_runs_of_the_same_map_in_two_bytes(count):
    values = np.random.default_rng(count).permutation(np.resize(np.arange(count), 1200)).astype(np.uint8)
    narrow = encode_label_map(values.reshape(30, 40))
    assert narrow == encode_label_map(values.reshape(30, 40).astype(np.uint16))
    assert encode_label_map(np.zeros((300, 400), np.uint8)) == encode_label_map(
        np.zeros((300, 400), np.uint16)
    )


def test_a_kept_compressor_writes_what_a_fresh_one_of_level_6_writes():
    """Another level gives other bytes, and a shard built anew would be another shard."""
    for seed in range(5):
        runs = encode_label_map(np.random.default_rng(seed).integers(0, 9, (20 + seed, 30)).astype(np.uint16))
        data = pack_runs(runs, 20 + seed, 30)
        payload = zstandard.ZstdDecompressor().decompress(data)
        fresh = {
            level: zstandard.ZstdCompressor(level=level, write_checksum=True).compress(payload)
            for level in (5, 6, 7)
        }
        assert data == fresh[6]
        assert len({*fresh.values()}) == 3
