"""Keys, member names and JSON of a sample, both ways, and what is refused on the way back."""

import hashlib
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskshards.shards.errors import SampleError
from maskshards.shards.format.record import (
    MAX_IMAGE_BYTES,
    MAX_JSON_BYTES,
    Record,
    check_key,
    escape_key,
    from_members,
    read_facts,
    split_name,
    to_members,
)
from maskshards.shards.format.rle import encode_label_map, pack_runs


def record(**changes):
    runs = encode_label_map(np.array([[4, 4, 65535], [1, 4, 4]], np.uint16))
    facts = {"key": "folder/ADE_1", "image": b"bytes", "image_format": "jpg", "height": 2, "width": 3}
    return Record(**{**facts, "runs": runs, "source": {"name": "å.jpg", "pixels": 6}, **changes})


def with_json(**changes):
    """The members of `record()` with fields of the JSON changed; a field set to ... is left out."""
    (image, text, runs) = to_members(record())
    facts = {**json.loads(text[1]), **changes}
    facts = {name: value for name, value in facts.items() if value is not ...}
    return [image, (text[0], json.dumps(facts).encode()), runs]


def test_members_are_image_json_runs_and_come_back():
    members = to_members(record())
    assert [name for name, _ in members] == ["folder/ADE_1.jpg", "folder/ADE_1.json", "folder/ADE_1.rle.zst"]
    assert members[0][1] == b"bytes"
    assert json.loads(members[1][1]) == {
        "version": 1,
        "height": 2,
        "width": 3,
        "class_ids": [1, 4],
        "areas": [1, 4],
        "source": {"name": "å.jpg", "pixels": 6},
    }
    assert members[2][1] == pack_runs(record().runs, 2, 3)
    assert from_members(members) == record()


@pytest.mark.parametrize("shape", [(1, 4), (4, 1), (1, 1)])
@pytest.mark.parametrize("image", [b"x", b"longer"])
def test_the_smallest_samples_come_back(shape, image):
    """One byte, one row, one column, and class 0."""
    runs = encode_label_map(np.zeros(shape, np.uint16))
    one = record(image=image, height=shape[0], width=shape[1], runs=runs, image_format="png")
    assert from_members(to_members(one)) == one


def test_facts_are_ascii_of_at_most_a_mebibyte():
    text = to_members(record())[1][1]
    assert text.isascii()
    assert MAX_JSON_BYTES == 1 << 20
    room = MAX_JSON_BYTES - len(to_members(record(source={"note": ""}))[1][1])
    longest = record(source={"note": "x" * room})
    assert from_members(to_members(longest)) == longest
    with pytest.raises(SampleError, match=f"facts of {MAX_JSON_BYTES + 1} bytes"):
        to_members(record(source={"note": "x" * (room + 1)}))


def test_facts_that_json_cannot_say_are_not_written():
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_members(record(source={"score": float("nan")}))


def test_images_have_from_one_byte_to_a_gibibyte(monkeypatch):
    assert MAX_IMAGE_BYTES == 1 << 30
    monkeypatch.setattr("maskshards.shards.format.record.MAX_IMAGE_BYTES", 5)
    image, facts, runs = to_members(record(image=b"12345"))
    assert from_members([image, facts, runs]) == record(image=b"12345")
    for data in (b"", b"123456"):
        with pytest.raises(SampleError, match=f"image of {len(data)} bytes, expected 1 to 5"):
            to_members(record(image=data))
        with pytest.raises(SampleError, match=f"image of {len(data)} bytes, expected 1 to 5"):
            from_members([(image[0], data), facts, runs])


@pytest.mark.parametrize(("height", "width"), [(1 << 27, 1), (1, 1 << 27)])
def test_facts_may_claim_the_largest_image_and_no_larger_one(height, width):
    text = b'{"version": 1, "height": %d, "width": %d, "class_ids": [0], "areas": [0], "source": {}}'
    assert read_facts(text % (height, width))["height"] == height
    with pytest.raises(ValueError, match="at most 134217728 pixels"):
        read_facts(text % (height + 1, width + 1))


def test_equal_facts_in_another_order_give_equal_bytes():
    one, two = record(source={"a": 1, "b": 2}), record(source={"b": 2, "a": 1})
    assert to_members(one) == to_members(two)


@given(st.text(min_size=1, max_size=300))
def test_every_stem_has_a_key_of_the_grammar_that_fits_a_tar(stem):
    if re.search("^/|//|/$", stem):
        with pytest.raises(SampleError, match="rename"):
            escape_key(stem)
        return
    try:
        stem.encode()
    except UnicodeEncodeError:
        return  # no file system gives such a name
    key = escape_key(stem)
    assert re.fullmatch(r"[A-Za-z0-9_/%-]+", key)
    assert split_name(key + ".rle.zst") is not None
    check_key(key)


@pytest.mark.parametrize(
    ("stem", "key"),
    [
        ("ADE_train_00000036", "ADE_train_00000036"),
        ("a/b-c", "a/b-c"),
        ("v1.2 final~", "v1%2E2%20final%7E"),
        ("naïve", "na%C3%AFve"),
        ("..", "%2E%2E"),
        ("100%", "100%25"),
        ("\udcff", "%FF"),  # a file name that is not UTF-8
    ],
)
def test_keys_by_example(stem, key):
    assert escape_key(stem) == key


def test_long_stems_stay_apart_and_keep_their_beginning():
    one, two = escape_key("ü" * 200 + "1"), escape_key("ü" * 200 + "2")
    assert one != two
    assert one.startswith("%C3%BC%C3%BC")
    assert escape_key("x" * 92) == "x" * 92
    assert len(escape_key("x" * 93)) < 92


def test_a_long_key_is_the_same_in_every_version():
    digest = hashlib.sha256(b"x" * 93).hexdigest()
    assert escape_key("x" * 93) == "x" * 56 + "-" + digest[:32]


def test_long_names_split_at_a_slash_as_ustar_wants():
    assert split_name("d/" + "f" * 100) == ("d", "f" * 100)
    assert split_name("/" + "f" * 100) is None
    assert split_name("/".join(("a" * 40, "b" * 40, "c" * 40))) == ("a" * 40, "b" * 40 + "/" + "c" * 40)
    assert split_name("a" * 100) == ("", "a" * 100)
    assert split_name("a" * 101) is None
    assert split_name("d" * 155 + "/" + "f" * 100) == ("d" * 155, "f" * 100)
    assert split_name("d" * 156 + "/" + "f" * 100) is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"key": "../escape"}, "holds other characters"),
        ({"key": "/etc/passwd"}, "holds other characters"),
        ({"key": "a.b"}, "holds other characters"),
        ({"key": "x" * 93}, "too long"),
        ({"image_format": "webp"}, "'webp'"),
        ({"image": b""}, "0 bytes"),
        ({"height": 3}, "cover 6 pixels"),
        ({"source": {"note": "x" * MAX_JSON_BYTES}}, "at most"),
    ],
)
def test_records_that_break_the_format_are_not_written(changes, says):
    with pytest.raises(SampleError, match=says):
        to_members(record(**changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": 2}, "version 2"),
        ({"version": ...}, "version None"),
        ({"height": True}, "height True"),
        ({"height": -2}, "height -2"),
        ({"height": 0}, "height 0"),
        ({"width": 0}, "width 0"),
        ({"areas": [1, -1]}, "no list of numbers 'areas'"),
        ({"width": 3.0}, "width 3.0"),
        ({"height": 1 << 20, "width": 1 << 20}, "at most"),
        ({"height": 3, "width": 2}, "3x2 image"),
        ({"class_ids": [1, 5]}, "not those of the runs"),
        ({"areas": [1, 3]}, "not those of the runs"),
        ({"areas": [1, None]}, "no list of numbers 'areas'"),
        ({"class_ids": "14"}, "no list of numbers 'class_ids'"),
        ({"source": []}, "no object 'source'"),
    ],
)
def test_json_that_lies_is_refused_with_shard_and_key(changes, says):
    with pytest.raises(SampleError, match=says) as caught:
        from_members(with_json(**changes), shard="t-00001.tar")
    assert (caught.value.shard, caught.value.key) == ("t-00001.tar", "folder/ADE_1")


def test_fields_that_a_later_version_added_are_ignored():
    assert from_members(with_json(photographer="me")) == record()


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[" * 100_000, b"\xff", b"[]", b'"x"', b" " * (MAX_JSON_BYTES + 1)]
)
def test_json_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="JSON"):
        read_facts(text)


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["k.jpg"],
        ["k.jpg", "k.rle.zst", "k.json"],
        ["k.jpg", "j.json", "k.rle.zst"],
        ["k.gif", "k.json", "k.rle.zst"],
        ["k.jpg", "k.json", "k.rle.zst", "k.pth"],
        ["../k.jpg", "../k.json", "../k.rle.zst"],
        ["k.pyd", "k.json", "k.rle.zst"],
    ],
)
def test_the_list_of_members_is_closed(names):
    says = "its members are" if names and names[0].startswith("k") else "the key is"
    with pytest.raises(SampleError, match=says):
        from_members([(name, b"") for name in names])
