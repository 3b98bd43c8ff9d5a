"""Errors name the place, and fall into the two families that command lines catch."""

import pytest

from maskshards.shards.errors import (
    ManifestError,
    RunsError,
    SampleError,
    ShardError,
    StoreError,
    counted,
    error_text,
    printable,
)


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ({}, "torn"),
        ({"shard": "t-00001.tar"}, "t-00001.tar: torn"),
        ({"key": "a/b"}, "sample 'a/b': torn"),
        ({"shard": "t-00001.tar", "key": "a/b"}, "t-00001.tar, sample 'a/b': torn"),
    ],
)
def test_a_sample_error_says_what_and_where(place, text):
    error = SampleError("torn", **place)
    assert str(error) == text
    assert (error.what, error.shard, error.key) == ("torn", place.get("shard", ""), place.get("key", ""))


def test_data_faults_are_value_errors_and_transport_faults_os_errors():
    for kind in (ManifestError, SampleError, RunsError):
        assert issubclass(kind, ShardError)
        assert issubclass(kind, ValueError)
        assert not issubclass(kind, OSError)
    assert issubclass(StoreError, OSError)


def test_faults_of_the_system_begin_with_their_file():
    assert error_text(FileNotFoundError(2, "No such file", "a\nb")) == "a\nb: No such file"
    assert error_text(OSError(5, "Input/output error", 3)) == "[Errno 5] Input/output error: 3"
    assert error_text(StoreError("gone\x1b")) == "gone\\x1b"
    assert error_text(OSError(24, "Too many open files")).endswith("may open no more: raise ulimit -n")


def test_what_a_terminal_would_obey_is_escaped():
    assert printable("\x1b[2Ja\nb\u202e\udcff\x9b日本 😀") == "\\x1b[2Ja\\nb\\u202e\\udcff\\x9b日本 😀"
    assert printable("a\n\tb", kept="\n") == "a\n\\tb"


def test_a_count_has_its_noun():
    assert [counted(n, "shard") for n in (0, 1, 2)] == ["0 shards", "1 shard", "2 shards"]
    assert [counted(n, "class") for n in (0, 1, 2)] == ["0 classes", "1 class", "2 classes"]
    assert [counted(n, "class has", "of 9 have") for n in (1, 3)] == [
        "1 class has",
        "3 of 9 have",
    ]
