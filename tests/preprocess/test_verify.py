import dataclasses
import io
import shutil
from functools import partial

import numpy as np
import pytest
from PIL import Image

from maskshards.preprocess.__main__ import main
from maskshards.preprocess.errors import RejectedInput
from maskshards.preprocess.plan import BuildSettings
from maskshards.preprocess.sources.folder import FolderSource
from maskshards.preprocess.sources.opening import SourceRequest, open_source
from maskshards.preprocess.verify import CheckTask, _Truth, check_shard, compare, verify_split
from maskshards.shards.format.manifest import open_split
from maskshards.shards.format.record import Record, from_members
from maskshards.shards.format.rle import IGNORE, decode_label_map, encode_label_map
from maskshards.shards.format.tar import read_members
from tests.preprocess.folder_build import build_words


def build(root, out, *more):
    assert main(build_words(root, out, *more)) == 0


def verify(out, root, *more):
    return main(["verify", str(out), "--against", str(root), "--workers", "1", *more])


def test_shards_equal_their_source_in_whole_and_by_split(make_root, tmp_path, capsys):
    root, out = make_root(), tmp_path / "out"
    build(root, out)
    assert verify(out, root, "--workers", "2") == 0
    told = capsys.readouterr().out.splitlines()[-2:]
    assert told[0].startswith(
        f"{out}/training: 3 samples, {(24 + 25 + 26) * 30} label pixels compared, 0 differences"
    )
    assert told[1].startswith(f"{out}/validation: 2 samples")
    assert verify(out / "validation", root) == 0


def test_whatever_reading_the_source_raises_is_told_with_its_sample(make_root, tmp_path, capsys, monkeypatch):
    root, out = make_root(), tmp_path / "out"
    build(root, out)

    def fall(self, item):
        raise KeyError("category_id")

    monkeypatch.setattr(FolderSource, "read", fall)
    split = open_split(str(out / "training"))
    source = open_source(SourceRequest("folder", root, classes=root / "classes.txt", reduce_zero_label=True))
    names = {key: f"{key}" for key in split.index(0).keys}
    found = check_shard(CheckTask(str(out / "training"), 0, source, names))
    assert len(found.faults) == len(names) == 1
    assert "it cannot be read (KeyError: 'category_id')" in found.faults[0]


def test_one_changed_pixel_one_changed_byte_one_new_file_and_one_gone(make_root, tmp_path, capsys):
    root, out = make_root(training=4), tmp_path / "out"
    build(root, out)
    label = root / "annotations/training/training_0000.png"
    values = np.asarray(Image.open(label)).copy()
    values[3, 4] = values[3, 4] % 5 + 1
    Image.fromarray(values).save(label)
    image = root / "images/training/training_0001.jpg"
    image.write_bytes(image.read_bytes() + b"\0")
    for folder, ending in (("images", "jpg"), ("annotations", "png")):
        shutil.copy(
            root / f"{folder}/training/training_0002.{ending}", root / f"{folder}/training/new.{ending}"
        )
        (root / f"{folder}/training/training_0003.{ending}").unlink()
    assert verify(out, root) == 2
    told = capsys.readouterr().err
    assert "'training_0000': 1 label pixel differs from the source, the first at row 3, column 4" in told
    assert "'training_0001': the image differs from the source" in told
    assert "new.jpg: in the source, but neither in the shards" in told
    assert "'training_0003': it is not in the source" in told
    assert "4 differences" in told


def test_a_damaged_shard_is_a_difference(make_root, tmp_path, capsys):
    root, out = make_root(training=2), tmp_path / "out"
    build(root, out)
    shard = out / "training/training-00000.tar"
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    assert verify(out, root) == 2
    assert "training-00000.tar, sample" in capsys.readouterr().err


def test_re_encoded_images_are_encoded_again(make_root, tmp_path):
    root = make_root(training=2)
    Image.new("CMYK", (30, 24)).save(root / "images/training/training_0000.jpg")
    build(root, tmp_path / "out", "--convert", "--max-short-side", "12")
    assert verify(tmp_path / "out", root) == 0
    split = open_split(tmp_path / "out/training")
    assert split.manifest.settings["re_encoding"].startswith("JPEG quality 95 4:4:4")
    assert split.manifest.settings["policy"] == {"convert": True, "max_short_side": 12, "prove": True}
    index = split.index(0)
    reader = partial(split.store.read, "training-00000.tar")
    notes = [from_members(read_members(reader, index.entry(place))).source["note"] for place in range(2)]
    assert all("JPEG quality 95 4:4:4" in note and "Lanczos to" in note for note in notes)
    assert sum("CMYK JPEG" in note for note in notes) == 1


def test_where_there_are_no_shards(make_root, tmp_path, capsys):
    root = make_root(training=1)
    assert verify(tmp_path / "nowhere", root) == 2
    assert "there is no such folder" in capsys.readouterr().err
    assert verify(root, root) == 2
    assert "maskshards build" in capsys.readouterr().err


def test_differences_in_words():
    class_map = np.array([[1, 1], [2, 65535]], np.uint16)
    record = Record("a", b"image", "jpg", 2, 2, encode_label_map(class_map), {})
    assert compare(record, b"image", class_map) == ""
    assert (
        compare(record, b"other", class_map) == "the image differs from the source (5 bytes here, 5 expected)"
    )
    assert compare(record, b"image", class_map[:1]) == "it claims 2x2, the source has 2x1"
    other = np.array([[1, 1], [3, 0]], np.uint16)
    assert compare(record, b"image", other) == (
        "2 label pixels differ from the source, the first at row 1, column 0: 2 here, 3 expected"
    )


@pytest.mark.parametrize(
    ("name", "counts", "options"),
    [
        ("ade20k", (9, 5), ["--dataset", "ade20k", "--allow-count-mismatch"]),
        ("cocostuff", (13,), ["--dataset", "folder", "--reduce-zero-label"]),
        ("camvid", (367, 101), ["--dataset", "folder", "--reduce-zero-label"]),
    ],
)
def test_real_data_sets(real_data, tmp_path, capsys, name, counts, options):
    root, out = real_data / name, tmp_path / "out"
    if name != "ade20k":
        names = {"camvid": 11, "cocostuff": 182}[name]
        (tmp_path / "classes.txt").write_text("\n".join(f"class {number}" for number in range(names)))
        options = [*options, "--classes", str(tmp_path / "classes.txt")]
    assert main(["build", *options, "--root", str(root), "--out", str(out), "--workers", "2", "--quiet"]) == 0
    assert verify(out, root, "--workers", "2") == 0
    told = capsys.readouterr().out.splitlines()[-len(counts) :]
    assert [f": {count} samples, " in line for count, line in zip(counts, told, strict=True)] == [True] * len(
        counts
    )
    assert all(line.endswith("0 differences") for line in told)


def build_tiles(root, out):
    options = ["--dataset", "folder", "--root", str(root), "--classes", str(root / "classes.txt")]
    options += ["--reduce-zero-label", "--workers", "1", "--quiet", "--tile", "32", "--tile-overlap", "4"]
    assert main(["build", *options, "--out", str(out)]) == 0
    return open_split(out / "training")


def test_tiles_are_compared_and_none_may_be_missing(make_root, tmp_path):
    root, out = make_root(training=3, height=50, width=70), tmp_path / "out"
    split = build_tiles(root, out)
    assert split.manifest.settings["policy"]["tile"] == 32
    assert split.manifest.num_samples == 3 * 2 * 3
    check = verify_split(split, str(root), map)
    assert (check.samples, check.faults) == (18, ())
    wider = dataclasses.replace(BuildSettings.from_json(split.manifest.settings).policy, overlap=20)
    source = open_source(SourceRequest("folder", root, classes=root / "classes.txt", reduce_zero_label=True))
    names = {f"training_{number:04d}": f"training_{number:04d}.jpg" for number in range(3)}
    task = CheckTask(split.base, 0, source, names)
    assert check_shard(task).faults == ()
    truth = _Truth(task, "training", wider)
    truth.of("training_0000/y000000-x000000")
    with pytest.raises(RejectedInput, match="the source has no such tile"):
        truth.of("training_0000/y000000-x000028")
    assert "training_0000/y000000-x000012" in truth.unseen
    (other,) = {
        fault.partition(": ")[2] for fault in check_shard(CheckTask(split.base, 0, source, {})).faults
    }
    assert other == "it is not in the source"


def test_tiles_put_together_are_the_source(make_root, tmp_path):
    root, out = make_root(training=1, height=50, width=70), tmp_path / "out"
    picture = root / "images/training/training_0000.jpg"
    Image.open(picture, formats=["JPEG"]).save(picture.with_suffix(".png"))
    picture.unlink()
    split = build_tiles(root, out)
    rows = split.index(0)
    image, labels = np.zeros((50, 70, 3), np.uint8), np.zeros((50, 70), int)
    for place in range(len(rows)):
        members = read_members(partial(split.store.read, "training-00000.tar"), rows.entry(place))
        record = from_members(members)
        at = record.source["tile"]
        assert (at["source_height"], at["source_width"]) == (50, 70)
        part = np.s_[at["top"] : at["top"] + record.height, at["left"] : at["left"] + record.width]
        image[part] = np.asarray(Image.open(io.BytesIO(record.image), formats=["PNG"]))
        labels[part] = decode_label_map(record.runs, record.height, record.width)
    with Image.open(picture.with_suffix(".png"), formats=["PNG"]) as source:
        assert (image == np.asarray(source)).all()
    with Image.open(root / "annotations/training/training_0000.png", formats=["PNG"]) as source:
        values = np.asarray(source).astype(int)
    assert (labels == np.where(values == 0, IGNORE, values - 1)).all()
