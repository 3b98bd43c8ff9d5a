import json
import sqlite3

import pytest

from maskshards.preprocess.errors import SourceError
from maskshards.preprocess.sources import coco_annotations
from maskshards.preprocess.sources.coco_annotations import _objects, _table, open_table


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


FACTS = {
    "categories": [{"id": 7, "name": "car"}, {"id": 2, "name": "dog"}],
    "annotations": [{"image_id": 5, "id": 1, "x": [1.5, 2]}, {"image_id": 5, "id": 2}],
    "images": [
        {"id": 5, "file_name": "b.jpg", "height": 3, "width": 4},
        {"id": 6, "file_name": "a.jpg", "height": 1, "width": 2},
    ],
    "info": {"images": [1, 2]},
}


def test_the_table_holds_what_the_file_does(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(FACTS, indent=1))
    table = open_table(str(path))
    assert [category["id"] for category in table.categories()] == [2, 7]
    assert table.images() == {"b.jpg": True, "a.jpg": False}
    assert table.size("b.jpg") == (3, 4)
    assert table.annotations("b.jpg") == FACTS["annotations"]
    assert table.annotations("a.jpg") == []


@pytest.mark.parametrize("indent", [None, 2])
def test_objects_are_those_of_the_json_library(indent):
    found = {}
    for key, value, text in _objects(json.dumps({**FACTS, "images": []}, indent=indent)):
        assert not text or json.loads(text) == value
        found.setdefault(key, []).append(value)
    assert found["annotations"] == FACTS["annotations"]
    assert (found["categories"], found["info"]) == ([FACTS["categories"]], [FACTS["info"]])
    assert "images" not in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected '{'"),
        ("[]", "expected '{'"),
        ('{"images": [{"id": 1, "file_name": "a", "height": 1, "width": 1}', "expected ','"),
        ('{"images": [{"id": 1}], "categories": []}', "lacks 'file_name'"),
        ('{"categories": [{"id": 1, "name": "a"}]}', "lacks 'images'"),
        ('{"images": [1]}', "not COCO's JSON"),
        ('{"images": [{"id": 1, "file_name": "a", "height": 1, "width": 1},'
         ' {"id": 1, "file_name": "b", "height": 1, "width": 1}]}', "UNIQUE"),
    ],
)  # fmt: skip
def test_other_files(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(SourceError, match=message):
        open_table(str(path))
    assert not list(tmp_path.rglob("*.sqlite"))


def test_json_of_little_but_brackets_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("maskshards.shards.storage.foreign_file.FREE_MARKS", 10)
    (tmp_path / "x.json").write_text('{"info": [' + "{}," * 100 + "1]}")
    with pytest.raises(SourceError, match=r"x\.json: not COCO's JSON \(it holds 102 values in"):
        open_table(str(tmp_path / "x.json"))


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(FACTS))
    open_table(str(path))
    path.write_text(json.dumps({**FACTS, "images": FACTS["images"][:1]}))
    assert open_table(str(path)).images() == {"b.jpg": True}


def test_a_folder_of_somebody_else_is_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(FACTS))
    open_table(str(path))
    _table.cache_clear()
    (folder,) = tmp_path.glob("maskshards-coco-*")
    folder.chmod(0o777)
    with pytest.raises(SourceError, match="not this user's alone"):
        open_table(str(path))


def test_a_temporary_folder_without_room_is_not_blamed_on_the_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(FACTS))

    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(coco_annotations, "_write", full)
    with pytest.raises(SourceError, match=r"cannot be written there \(database or disk is full\).*TMPDIR"):
        open_table(str(path))


def test_an_id_beyond_all_numbers_is_named(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({**FACTS, "images": [{**FACTS["images"][0], "id": 2**70}]}))
    with pytest.raises(SourceError, match=r"not COCO's JSON \(.*too large"):
        open_table(str(path))
