"""The card and the class list of a finished data set."""

import json

import numpy as np
import pytest
import yaml

from maskshards.preprocess.__main__ import main
from maskshards.preprocess.destinations.card import _cell, card, classes_json
from maskshards.preprocess.inputs.labels import LabelRule
from maskshards.shards.format.manifest import Manifest, open_splits
from tests.preprocess.folder_build import build_words


def build(root, out, *more):
    return main(build_words(root, out, *more))


@pytest.fixture
def built(make_root, tmp_path):
    root = make_root()
    assert build(root, tmp_path / "out", "--license", "cc-by-4.0", "--name", "streets | <b>") == 0
    return root, tmp_path / "out"


def test_the_head_is_what_the_hub_reads(built):
    _, out = built
    text = (out / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    facts = yaml.safe_load(head)
    files = facts["configs"][0]["data_files"]
    assert files == [
        {"split": "train", "path": "training/*.tar"},
        {"split": "validation", "path": "validation/*.tar"},
    ]
    assert (facts["license"], facts["pretty_name"]) == ("cc-by-4.0", "streets | <b>")
    assert facts["size_categories"] == ["n<1K"]
    assert "webdataset" in facts["tags"]
    assert "# streets \\| &lt;b>" in body


def test_the_tables_are_those_of_the_shards(built):
    _, out = built
    text = (out / "README.md").read_text()
    for split in open_splits(out):
        manifest = split.manifest
        row = next(line for line in text.splitlines() if line.startswith(f"| {manifest.split} |"))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1] == str(manifest.num_samples)
        assert cells[5] == f"`{manifest.fingerprint}`"
    rows = [line for line in text.splitlines() if line.startswith(("| 0 | sky |", "| 4 | person |"))]
    assert len(rows) == 2
    assert all(row.count("|") == 7 for row in rows)


def test_classes_and_their_values_in_the_source(built):
    _, out = built
    facts = json.loads((out / "classes.json").read_bytes())
    assert facts["classes"][4] == {"id": 4, "name": "person", "source_values": [5]}
    assert facts["void"] == {"id": 65535, "source_values": [0, 255]}
    rule = LabelRule(2, mapping=((3, 0), (7, 0), (9, 1), (11, None)))
    colours = ((1, 2, 3), (4, 5, 6))
    made = Manifest("x", "t", ("a", "ü"), (), label_rule=rule.to_json(), palette=colours)
    facts = json.loads(classes_json(made))
    assert [entry["source_values"] for entry in facts["classes"]] == [[3, 7], [9]]
    assert facts["classes"][1]["color"] == [4, 5, 6]
    assert facts["void"]["source_values"] == [11]


def test_a_class_list_of_the_source_in_its_place_is_left_alone(make_root, tmp_path, capsys):
    """`--out` may be the folder of the source itself."""
    root = make_root()
    (root / "classes.json").write_text('["sky"]')
    assert build(root, root) == 0
    assert "classes.json is none of ours and is left as it is" in capsys.readouterr().out
    assert (root / "classes.json").read_text() == '["sky"]'
    assert not (root / ".build").exists()
    (root / "classes.json").unlink()
    (root / "training" / "manifest.json").unlink()
    for path in (root / "training").iterdir():
        path.unlink()
    assert build(root, root) == 0
    made = (root / "classes.json").read_bytes()
    (root / "classes.json").write_bytes(made.replace(b"sky", b"sly"))  # damaged: made anew
    (root / "README.md").unlink()
    assert build(root, root) == 0
    assert (root / "classes.json").read_bytes() == made


def test_a_card_that_was_written_to_is_left_alone(built, make_root, capsys):
    root, out = built
    first = (out / "README.md").read_bytes()
    assert first == card(open_splits(out), "cc-by-4.0")
    (out / "README.md").write_bytes(first + b"\nMore words.\n")
    (out / "validation" / "manifest.json").unlink()
    for path in (out / "validation").iterdir():
        path.unlink()
    assert build(root, out, "--name", "streets | <b>") == 0
    assert "was changed by hand" in capsys.readouterr().out
    assert (out / "README.md").read_bytes().endswith(b"More words.\n")
    (out / "README.md").write_bytes(first)
    for path in (out / "validation").iterdir():
        path.unlink()
    assert build(root, out, "--name", "streets | <b>") == 0
    assert b'license: "unknown"' in (out / "README.md").read_bytes()


def test_names_cannot_become_markup():
    assert _cell("a|b\n# <script>`x`[y](z)") == "a\\|b \\# &lt;script>\\`x\\`\\[y\\](z)"


def test_the_hub_s_own_reader_reads_it(built, tmp_path):
    try:
        import datasets
    except ImportError as error:
        pytest.skip(f"datasets: {error}")
    _, out = built
    rows = datasets.load_dataset(
        "webdataset", data_files={"train": str(out / "training/*.tar")}, cache_dir=str(tmp_path / "cache")
    )["train"]
    assert len(rows) == 3
    assert np.asarray(rows[0]["jpg"]).shape[2] == 3
    assert rows[0]["json"]["class_ids"]
