import dataclasses
from pathlib import Path

import pytest

from maskshards.preprocess.errors import SourceError
from maskshards.preprocess.sources.opening import (
    NO_VOID,
    SourceRequest,
    open_source,
    reopen_source,
    void_is_said,
)


def test_a_folder_is_opened_with_the_users_rule(make_root):
    root = make_root()
    request = SourceRequest("folder", root, classes=root / "classes.txt", reduce_zero_label=True)
    source = open_source(request)
    assert source.splits() == ("training", "validation")
    assert source.label_rule.describe() == "1..5, or 0 or 255 for void"
    plain = open_source(dataclasses.replace(request, reduce_zero_label=None, ignore_index=9))
    assert plain.label_rule.describe() == "0..4, or 9 for void"


@pytest.mark.parametrize("kind", ["folder", "ade20k"])
def test_what_a_manifest_holds_opens_the_same_source(make_root, kind):
    root = make_root()
    request = SourceRequest(kind, root, classes=root / "classes.txt", name="mine")
    source = open_source(dataclasses.replace(request, allow_count_mismatch=kind == "ade20k"))
    assert source.dataset == "mine"
    again = reopen_source(source.settings(), source.dataset, source.classes, source.label_rule, str(root))
    assert again == source


def test_a_mapping_file_replaces_the_other_words(make_root):
    root = make_root()
    (root / "map.json").write_text('{"0": null, "1": 0, "2": 0, "3": 1, "4": 2, "5": 4}')
    request = SourceRequest("folder", root, classes=root / "classes.txt", mapping=root / "map.json")
    assert open_source(request).label_rule.mapping[1] == (1, 0)
    with pytest.raises(SourceError, match="do not go with it"):
        open_source(dataclasses.replace(request, ignore_index=255))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"kind": "folder"}, "needs --classes FILE"),
        ({"kind": "pascal"}, "--dataset pascal: unknown; known are"),
        ({"kind": "ade20k", "ignore_index": 0}, "--ignore-index does not go with"),
        ({"kind": "ade20k", "reduce_zero_label": False}, "--no-reduce-zero-label does not go with"),
        (
            {"kind": "ade20k", "labels_folder": "x"},
            "--labels-folder does not go with --dataset ade20k, whose",
        ),
        ({"kind": "folder", "image_column": "x"}, "--image-column does not go with --dataset folder"),
        ({"kind": "folder", "allow_count_mismatch": True}, "--allow-count-mismatch does not go with"),
        ({"kind": "hf:x", "label_ending": ".png"}, "--label-ending does not go with --dataset hf:x"),
    ],
)
def test_words_that_do_not_fit(make_root, words, message):
    with pytest.raises(SourceError, match=message):
        open_source(SourceRequest(root=make_root(), **words))


def test_a_root_that_is_not_there(tmp_path):
    with pytest.raises(SourceError, match="--dataset ade20k needs --root"):
        open_source(SourceRequest("ade20k", None))
    with pytest.raises(SourceError, match="there is no such folder"):
        open_source(SourceRequest("ade20k", tmp_path / "nowhere"))
    with pytest.raises(SourceError, match=r"--against .*there is no such folder"):
        reopen_source({"kind": "folder"}, "x", ("a",), None, str(tmp_path / "nowhere"))


def test_a_root_that_was_not_unpacked_and_an_ending_without_its_dot(make_root, tmp_path):
    (tmp_path / "set.zip").write_bytes(b"PK")
    with pytest.raises(SourceError, match=r"set\.zip: it is a file; unpack it first"):
        open_source(SourceRequest("voc", tmp_path / "set.zip"))
    root = make_root()
    request = SourceRequest(
        "folder", root, classes=root / "classes.txt", label_ending="png", image_ending="jpg"
    )
    assert open_source(request).settings()["label_ending"] == ".png"
    assert len(open_source(request).listing("training").names) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"kind": "folder"}, False),
        ({"kind": "hf:x"}, False),
        ({"kind": "folder", "ignore_index": 255}, True),
        ({"kind": "folder", "ignore_index": NO_VOID}, True),
        ({"kind": "folder", "colours": Path("c.csv")}, True),
        ({"kind": "coco"}, True),
        ({"kind": "ade20k"}, True),
    ],
)
def test_who_says_what_is_void(words, said):
    assert void_is_said(SourceRequest(root=None, **words)) is said
