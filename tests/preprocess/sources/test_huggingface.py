import dataclasses
import io
import os

import numpy as np
import pyarrow
import pytest
from PIL import Image

from maskshards.preprocess.__main__ import main
from maskshards.preprocess.errors import RejectedInput, SourceError
from maskshards.preprocess.sources.huggingface import _stored, open_rows
from maskshards.preprocess.sources.opening import SourceRequest, open_source
from maskshards.shards.format.manifest import open_split

datasets = pytest.importorskip("datasets", reason="the extra 'hf' is not installed")

RNG = np.random.default_rng(4)


def encode(array, kind):
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind)
    return out.getvalue()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data set saved to disk: 5 rows, JPEG images and PNG label maps with values 0..5."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    datasets.disable_progress_bars()
    images = [encode(RNG.integers(0, 256, (12, 14 + n, 3), dtype=np.uint8), "JPEG") for n in range(5)]
    labels = [encode(RNG.integers(0, 6, (12, 14 + n), dtype=np.uint8), "PNG") for n in range(5)]
    columns = {
        name: [{"bytes": data, "path": None} for data in files]
        for name, files in (("image", images), ("mask", labels))
    }
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    rows = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict({"train": rows, "validation": rows.select(range(2))}).save_to_disk(
        str(tmp_path / "set")
    )
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\ne\n")
    yield tmp_path / "set", images, labels
    open_rows.cache_clear()


def request_of(folder, **words):
    return SourceRequest(
        f"hf:{folder}", None, classes=folder.parent / "classes.txt", reduce_zero_label=True, **words
    )


def test_rows_are_read_as_they_are_stored(folder):
    place, images, labels = folder
    source = open_source(request_of(place))
    assert source.splits() == ("train", "validation")
    names = source.listing("train").names
    assert len(names) == 5
    item = source.item("train", names[3])
    raw = source.read(item)
    assert (raw.image, raw.label) == (images[3], labels[3])
    assert item.key == "train_000000003"
    assert (source.image_column, source.label_column) == ("image", "mask")


def test_build_and_verify(folder, tmp_path):
    place, _, _ = folder
    options = ["--dataset", f"hf:{place}", "--classes", str(tmp_path / "classes.txt"), "--reduce-zero-label"]
    assert main(["build", *options, "--out", str(tmp_path / "out"), "--workers", "1", "--quiet"]) == 0
    manifest = open_split(tmp_path / "out/train").manifest
    assert (manifest.num_samples, manifest.dataset) == (5, "set")
    assert main(["verify", str(tmp_path / "out"), "--against", f"hf:{place}", "--workers", "1"]) == 0


def test_columns_and_splits_that_are_not_there(folder):
    place, _, _ = folder
    with pytest.raises(SourceError, match=r"no column depth; it has image, mask\. Name one: --label-column"):
        open_source(request_of(place, label_column="depth"))
    source = open_source(request_of(place))
    with pytest.raises(SourceError, match="no split 'test'; it has train, validation"):
        source.listing("test")
    wrong = dataclasses.replace(source, label_column="image", image_column="missing")
    with pytest.raises(KeyError):
        wrong.read(wrong.item("train", "000000000"))


def test_images_in_files_beside_the_data_set(folder, tmp_path):
    _, images, labels = folder
    for name, data in (("a.jpg", images[0]), ("a.png", labels[0])):
        (tmp_path / name).write_bytes(data)
    columns = {"image": [str(tmp_path / "a.jpg")], "mask": [str(tmp_path / "a.png")]}
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    rows = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "linked"))
    source = open_source(SourceRequest(f"hf:{tmp_path / 'linked'}", None, classes=tmp_path / "classes.txt"))
    item = source.item("train", "000000000")
    assert source.read(item).image == images[0]
    open_rows.cache_clear()


def test_cells_without_an_image_are_refused(folder):
    place, _, _ = folder
    source = open_source(request_of(place))
    assert source.stamp(source.item("train", "000000000")) == ""
    with pytest.raises(RejectedInput, match="column 'mask' holds no image file but NoneType"):
        _stored(None, "mask")
    with pytest.raises(RejectedInput, match="gone cannot be read: No such file"):
        _stored({"bytes": None, "path": "/gone"}, "mask")


def test_names_that_lead_nowhere(tmp_path):
    (tmp_path / "classes.txt").write_text("a\n")
    with pytest.raises(SourceError, match="cannot be opened"):
        open_source(SourceRequest(f"hf:{tmp_path / 'nothing'}", None, classes=tmp_path / "classes.txt"))
    with pytest.raises(SourceError, match="--root does not go with"):
        open_source(SourceRequest("hf:x", tmp_path))


def rows_of(images, labels, **more):
    columns = {
        "image": [{"bytes": data, "path": None} for data in images],
        "label": list(range(len(images))),
        "mask": [data and {"bytes": data, "path": None} for data in labels],
    }
    kinds = {"image": datasets.Image(), "label": datasets.Value("int32"), "mask": datasets.Image()}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds), **more)


@pytest.mark.parametrize("content", ["[" * 9999, "null", '{"splits": 7}', '{"splits": []}', '"x"', "\0"])
def test_a_description_that_is_none_is_an_error_that_names_the_data_set(tmp_path, content):
    open_rows.cache_clear()
    (tmp_path / "dataset_dict.json").write_text(content)
    with pytest.raises(SourceError, match=f"hf:{tmp_path}"):
        open_rows(str(tmp_path))


def test_a_pipe_or_a_description_without_end_in_a_folder_is_not_opened(tmp_path):
    open_rows.cache_clear()
    os.mkfifo(tmp_path / "data-00000-of-00001.arrow")
    with pytest.raises(SourceError, match=r"arrow is a pipe, expected a regular file"):
        open_rows(str(tmp_path))
    (tmp_path / "data-00000-of-00001.arrow").unlink()
    with (tmp_path / "dataset_info.json").open("wb") as file:
        file.truncate(1 << 40)  # sparse: takes no room
    with pytest.raises(SourceError, match=r"info\.json has 1099511627776 bytes, at most"):
        open_rows(str(tmp_path))


@pytest.mark.parametrize("damage", ["offset", "cut", "text"])
def test_a_damaged_table_is_named_and_does_not_crash_the_process(folder, damage):
    """An offset beyond the end is followed by pyarrow where nobody has looked: a segmentation fault."""
    place, _, labels = folder
    (path,) = (place / "train").glob("*.arrow")
    data = path.read_bytes()
    ends = np.cumsum([len(label) for label in labels], dtype="<i4").tobytes()
    assert data.count(ends) == 1
    spoiled = {
        "offset": data.replace(ends, ends[:-4] + b"\xff\xff\xff\x7f"),
        "cut": data[: len(data) // 2],
        "text": b"ARROW1" + data,
    }
    path.write_bytes(spoiled[damage])
    with pytest.raises(SourceError, match=rf"{path.name} is damaged \(.*fetch it or save it again"):
        open_rows(str(place))


def test_tables_of_arrow_for_random_access_are_read_too(folder, tmp_path):
    rows = open_rows(str(folder[0]))["train"].data.table
    (tmp_path / "file").mkdir()
    with pyarrow.OSFile(str(tmp_path / "file" / "data.arrow"), "wb") as sink:
        with pyarrow.ipc.new_file(sink, rows.schema) as writer:
            writer.write_table(rows)
    assert len(open_rows(str(tmp_path / "file"))["train"]) == 5


def test_one_split_saved_by_itself(folder, tmp_path, build_and_check):
    _, images, labels = folder
    rows_of(images, labels, split="validation").save_to_disk(str(tmp_path / "one"))
    words = ("--classes", str(tmp_path / "classes.txt"), "--reduce-zero-label")
    told = build_and_check(f"hf:{tmp_path / 'one'}", None, *words)
    assert open_split(told.out_folder / "validation").manifest.num_samples == 5
    rows_of(images, labels).save_to_disk(str(tmp_path / "nameless"))
    assert open_source(request_of(tmp_path / "nameless")).splits() == ("train",)


def test_a_column_of_numbers_is_no_label_map(folder, tmp_path):
    _, images, labels = folder
    rows_of(images, labels).save_to_disk(str(tmp_path / "one"))
    assert open_source(request_of(tmp_path / "one")).label_column == "mask"


def test_a_split_without_labels_is_left_out_and_named(folder, tmp_path, build_and_check):
    _, images, labels = folder
    both = {"train": rows_of(images, labels), "test": rows_of(images, [None] * 5)}
    datasets.DatasetDict(both).save_to_disk(str(tmp_path / "both"))
    words = ("--classes", str(tmp_path / "classes.txt"), "--reduce-zero-label")
    told = build_and_check(f"hf:{tmp_path / 'both'}", None, *words)
    assert "note: test: column 'mask' is empty, so this split is passed over" in told.err
    assert not (told.out_folder / "test").exists()
    first = {"train": rows_of(images, labels), "test": rows_of(images, labels).remove_columns("mask")}
    datasets.DatasetDict(first).save_to_disk(str(tmp_path / "less"))
    assert open_source(request_of(tmp_path / "less")).splits() == ("train",)


def test_configurations(folder, tmp_path, build_and_check):
    _, images, labels = folder
    place = tmp_path / "several"
    lines = ["---", "configs:"]
    for name, count in (("small", 2), ("big", 5)):
        (place / name).mkdir(parents=True)
        rows_of(images[:count], labels[:count]).to_parquet(str(place / name / "train-00000-of-00001.parquet"))
        lines += [
            f"- config_name: {name}",
            "  data_files:",
            "  - split: train",
            f"    path: {name}/*.parquet",
        ]
    (place / "README.md").write_text("\n".join([*lines, "---", ""]))
    with pytest.raises(SourceError, match="choose one: --config NAME"):
        open_source(request_of(place))
    words = ("--classes", str(tmp_path / "classes.txt"), "--reduce-zero-label", "--config", "big")
    told = build_and_check(f"hf:{place}", None, *words)
    manifest = open_split(told.out_folder / "train").manifest
    assert manifest.num_samples == 5
    assert manifest.settings["source"]["config"] == "big"


def test_label_maps_in_colours(folder, tmp_path, build_and_check):
    _, images, _ = folder
    table = np.array([[255, 0, 0], [0, 0, 255]], np.uint8)
    labels = [encode(table[RNG.integers(0, 2, (12, 14 + n))], "PNG") for n in range(5)]
    rows_of(images, labels).save_to_disk(str(tmp_path / "coloured"))
    (tmp_path / "colours.csv").write_text("road,255,0,0\nwater,0,0,255\n")
    told = build_and_check(f"hf:{tmp_path / 'coloured'}", None, "--colours", str(tmp_path / "colours.csv"))
    manifest = open_split(told.out_folder / "train").manifest
    assert (manifest.classes, manifest.palette) == (("road", "water"), ((255, 0, 0), (0, 0, 255)))
