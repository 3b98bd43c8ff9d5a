"""Every layout that the documentation names, from its files as they are unzipped to two steps of training.

Each maker lays out a small copy of the real thing, files of other purposes included, and says which classes
its label maps hold, from its own knowledge of the data set.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskshards import cli
from maskshards.preprocess.scenes import write_scenes
from maskshards.train.__main__ import main as train

HEIGHT, WIDTH = 72, 96
SOME = (-1, -1)  # samples of a drawn split
THREE = "sky\nroad\ncar\n"
RULE = ("--classes", "DATA/classes.txt")
TINY = (
    "config=configs/demo.yaml", "scheduler.total_iter=2", "eval.eval_interval=2", "log.interval=1", "bs=2",
    "m2f_train.num_points=64", "transforms.train.img_size=64", "transforms.train.crop_size=[64,64]",
    "transforms.eval.img_size=64", "eval.crop_size=64", "eval.stride=64", "eval.before_training=false",
    "eval.max_val_samples=2", "eval.reduce_zero_label=null", "decoder_head.hidden_dim=32",
    "decoder_head.ffn_dim=64", "decoder_head.num_queries=12",
)  # fmt: skip


@dataclass(frozen=True)
class Made:
    """A copy of a data set, and what its build has to find."""

    words: tuple[str, ...]  # of `maskshards build`; DATA stands for its folder
    splits: tuple[str, str]  # to train on, to validate on
    present: set[str]  # names of the classes that have pixels in the first
    against: str = "DATA"
    samples: tuple[int, int] = (2, 2)
    void: bool = field(default=True)  # whether some pixels are void


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(sum(path.name.encode()))
    pixels = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(pixels).save(path)


def stripes(values: list[int], kind: type = np.uint8) -> np.ndarray:
    """(H, W) upright stripes of those values."""
    return np.tile(np.array(values, kind)[np.arange(WIDTH) * len(values) // WIDTH], (HEIGHT, 1))


def label(path: Path, values: list[int], kind: type = np.uint8, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(stripes(values, kind))
    if palette:
        image.putpalette(np.arange(768, dtype=np.uint8) * 7)
    image.save(path)


def ade20k(root: Path) -> Made:
    for split in ("training", "validation"):
        for number in (1, 2):
            stem = f"ADE_{split[:5]}_{number:08d}"
            picture(root / f"images/{split}/{stem}.jpg")
            label(root / f"annotations/{split}/{stem}.png", [0, 1, 3, 150])
    (root / "sceneCategories.txt").write_text("ADE_train_00000001 street\nADE_train_00000002 bedroom\n")
    words = ("--dataset", "ade20k", "--root", "DATA", "--allow-count-mismatch")
    return Made(words, ("training", "validation"), {"wall", "sky", "flag"})


def cityscapes(root: Path) -> Made:
    for split, city in (("train", "aachen"), ("val", "bochum"), ("test", "berlin")):
        for number in range(2):
            stem = f"{split}/{city}/{city}_00000{number}_000019"
            picture(root / f"leftImg8bit/{stem}_leftImg8bit.png")
            label(root / f"gtFine/{stem}_gtFine_labelIds.png", [7, 26, 4, 0])
            label(root / f"gtFine/{stem}_gtFine_instanceIds.png", [7, 26001], np.uint16)
            picture(root / f"gtFine/{stem}_gtFine_color.png")
            (root / f"gtFine/{stem}_gtFine_polygons.json").write_text("{}")
    return Made(("--dataset", "cityscapes", "--root", "DATA"), ("train", "val"), {"road", "car"})


def voc(root: Path) -> Made:
    base = root / "VOCdevkit/VOC2012"
    lists = {"train": [1, 2], "val": [3, 4], "trainval": [1, 2, 3, 4]}
    for number in range(1, 7):  # the last two are of other tasks
        picture(base / f"JPEGImages/2007_00000{number}.jpg")
    for number in range(1, 5):
        label(base / f"SegmentationClass/2007_00000{number}.png", [0, 15, 255], palette=True)
        label(base / f"SegmentationObject/2007_00000{number}.png", [0, 1, 255], palette=True)
    for name, numbers in lists.items():
        path = base / f"ImageSets/Segmentation/{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"2007_00000{number}\n" for number in numbers))
    return Made(("--dataset", "voc", "--root", "DATA"), ("train", "val"), {"background", "person"})


def coco_json(root: Path, name: str, annotations: list[dict], categories: list[dict]) -> None:
    images = [
        {"id": number, "file_name": f"{number:012d}.jpg", "height": HEIGHT, "width": WIDTH}
        for number in (1, 2)
    ]
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    facts = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    (root / f"annotations/{name}.json").write_text(json.dumps(facts))


def coco_panoptic(root: Path) -> Made:
    categories = [
        {"id": 1, "name": "person", "isthing": 1},
        {"id": 18, "name": "dog", "isthing": 1},
        {"id": 119, "name": "flower", "isthing": 0},
    ]
    ids = [0, 7, 70_000, 9]  # of segments; 0 is unlabelled
    for split in ("train2017", "val2017"):
        annotations = []
        for number in (1, 2):
            picture(root / f"{split}/{number:012d}.jpg")
            values = stripes(ids, np.int64)
            pixels = np.stack([values % 256, values // 256 % 256, values // 65536], -1).astype(np.uint8)
            path = root / f"annotations/panoptic_{split}/{number:012d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
            segments = [
                {"id": i, "category_id": c, "iscrowd": 0, "area": 9}
                for i, c in zip(ids[1:], (1, 119, 1), strict=True)
            ]
            name = f"{number:012d}.png"
            annotations.append({"image_id": number, "file_name": name, "segments_info": segments})
        coco_json(root, f"panoptic_{split}", annotations, categories)
    return Made(("--dataset", "coco", "--root", "DATA"), ("train", "val"), {"person", "flower"})


def coco_instances(root: Path) -> Made:
    pytest.importorskip("pycocotools", reason="the extra 'coco' is not installed")
    categories = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}, {"id": 90, "name": "toothbrush"}]
    left = [[2, 2, 40, 2, 40, 60, 2, 60]]
    crowd = {"counts": [HEIGHT * 60, HEIGHT * 36], "size": [HEIGHT, WIDTH]}  # from column 60 on
    for split in ("train2017", "val2017"):
        for number in (1, 2):
            picture(root / f"{split}/{number:012d}.jpg")
        one = {"id": 1, "image_id": 1, "category_id": 18, "segmentation": left, "area": 2204, "iscrowd": 0}
        two = {"id": 2, "image_id": 2, "category_id": 90, "segmentation": crowd, "area": 9, "iscrowd": 1}
        coco_json(root, f"instances_{split}", [one, two], categories)
        coco_json(root, f"captions_{split}", [], [])
    words = ("--dataset", "coco", "--root", "DATA", "--segments", "things", "--background")
    return Made(words, ("train", "val"), {"background", "dog", "toothbrush"}, void=False)


def coco_stuff(root: Path) -> Made:
    for split in ("train2017", "val2017"):
        for number in (1, 2):
            picture(root / f"images/{split}/{number:012d}.jpg")
            label(root / f"annotations/{split}/{number:012d}.png", [0, 181, 255])
    return Made(("--dataset", "coco-stuff", "--root", "DATA"), ("train", "val"), {"person", "wood"})


def mapillary(root: Path) -> Made:
    labels = [
        {"name": f"object--{word}", "readable": word, "evaluate": word != "Ego Vehicle", "color": [n, 0, 9]}
        for n, word in enumerate(("Bird", "Curb", "Ego Vehicle", "Sky"))
    ]
    root.mkdir(parents=True)
    for name in ("config_v2.0.json", "config_v1.2.json"):
        (root / name).write_text(json.dumps({"labels": labels}))
    for split in ("training", "validation", "testing"):
        for stem in ("aAbB-_1", "cCdD2"):
            picture(root / f"{split}/images/{stem}.jpg")
            for version in ("v1.2", "v2.0") if split != "testing" else ():
                label(root / f"{split}/{version}/labels/{stem}.png", [0, 2, 3], palette=True)
                label(root / f"{split}/{version}/instances/{stem}.png", [0, 513], np.uint16)
                (root / f"{split}/{version}/polygons").mkdir(exist_ok=True)
                (root / f"{split}/{version}/polygons/{stem}.json").write_text("{}")
    return Made(("--dataset", "mapillary", "--root", "DATA"), ("training", "validation"), {"Bird", "Sky"})


def hugging_face(root: Path) -> Made:
    datasets = pytest.importorskip("datasets", reason="the extra 'hf' is not installed")
    datasets.disable_progress_bars()
    for stem in ("a", "b"):
        picture(root / f"{stem}.jpg")
        label(root / f"{stem}.png", [0, 1, 2, 255])
    (root / "classes.txt").write_text(THREE)
    cells = {
        column: [{"bytes": (root / f"{stem}{ending}").read_bytes(), "path": None} for stem in ("a", "b")]
        for column, ending in (("image", ".jpg"), ("annotation", ".png"))
    }
    kinds = datasets.Features({"image": datasets.Image(), "annotation": datasets.Image()})
    rows = datasets.Dataset.from_dict(cells, features=kinds)
    empty = datasets.Dataset.from_dict({**cells, "annotation": [None, None]}, features=kinds)
    whole = datasets.DatasetDict({"train": rows, "validation": rows, "test": empty})
    whole.save_to_disk(str(root / "set"))
    words = ("--dataset", "hf:DATA/set", *RULE)
    return Made(words, ("train", "validation"), {"sky", "road", "car"}, against="hf:DATA/set")


def folder(
    image: str, mask: str, *words: str, splits: tuple[str, str] = ("training", "validation")
) -> Callable[[Path], Made]:
    """A maker of a folder layout; {split} and {stem} stand in its paths."""

    def make(root: Path) -> Made:
        for split in splits:
            for stem in ("p1", "p2"):
                picture(root / image.format(split=split, stem=f"{split}_{stem}"))
                label(root / mask.format(split=split, stem=f"{split}_{stem}"), [0, 1, 2, 255])
        (root / "classes.txt").write_text(THREE)
        (root / "Thumbs.db").write_bytes(b"x")
        return Made(("--dataset", "folder", "--root", "DATA", *RULE, *words), splits, {"sky", "road", "car"})

    return make


def listed(root: Path) -> Made:
    """Flat folders with lists of paths, as Windows writes them."""
    words = ("--images-folder", "photos", "--labels-folder", "masks", "--lists", "splits")
    made = folder("photos/{stem}.jpg", "masks/{stem}.png", *words, splits=("train", "val"))(root)
    (root / "splits").mkdir()
    for split in made.splits:
        lines = (f"photos\\{split}_{stem}.jpg masks\\{split}_{stem}.png\r\n" for stem in ("p1", "p2"))
        (root / f"splits/{split}.txt").write_bytes("".join(lines).encode())
    return made


def coloured(root: Path) -> Made:
    """RGB label maps and a table of their colours, as CamVid has them."""
    table = np.array([[128, 128, 128], [128, 64, 128], [64, 0, 128], [0, 0, 0]], np.uint8)
    for split in ("train", "val"):
        for stem in ("a", "b"):
            picture(root / f"images/{split}/{stem}.png")
            path = root / f"labels/{split}/{stem}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(table[stripes([0, 1, 2, 3])]).save(path)
    rows = ("name,r,g,b", "sky,128,128,128", "road,128,64,128", "car,64,0,128", "void,0,0,0")
    (root / "classes.csv").write_text("\n".join(rows))
    words = ("--dataset", "folder", "--root", "DATA", "--colours", "DATA/classes.csv")
    return Made(words, ("train", "val"), {"sky", "road", "car"})


def drawn(root: Path) -> Made:
    """A flat folder of masks of 0 and 255, whose validation split is drawn."""
    for number in range(12):
        picture(root / f"photos/{number}.jpg")
        label(root / f"masks/{number}_mask.png", [0, 255])
    (root / "classes.txt").write_text("background\nbuilding\n")
    words = ("--images-folder", "photos", "--labels-folder", "masks", "--label-ending", "_mask.png")
    rule = ("--val-share", "0.3", "--mapping", '{"0": 0, "255": 1}')
    made = ("--dataset", "folder", "--root", "DATA", *RULE, *words, *rule)
    return Made(made, ("training", "validation"), {"background", "building"}, samples=SOME, void=False)


def scenes(root: Path) -> Made:
    write_scenes(root, training=3, validation=2, seed=0)
    words = ("--dataset", "folder", "--root", "DATA", *RULE, "--reduce-zero-label")
    names = (root / "classes.txt").read_text().splitlines()
    maps = [np.asarray(Image.open(path)) for path in (root / "annotations/training").glob("*.png")]
    present = {names[value - 1] for values in maps for value in np.unique(values) if value}
    return Made(words, ("training", "validation"), present, samples=(3, 2))


MAKERS: dict[str, Callable[[Path], Made]] = {
    "ade20k": ade20k,
    "cityscapes": cityscapes,
    "voc": voc,
    "coco panoptic": coco_panoptic,
    "coco instances": coco_instances,
    "coco-stuff": coco_stuff,
    "mapillary": mapillary,
    "hf": hugging_face,
    "scenes": scenes,
    "folder": folder("images/{split}/town/{stem}.JPG", "annotations/{split}/town/{stem}.png"),
    "split first": folder("{split}/images/{stem}.jpg", "{split}/labels/{stem}.png"),
    "side by side": folder(
        "{split}/{stem}.jpg", "{split}/{stem}_mask.png",
        "--images-folder", "{split}", "--labels-folder", "{split}", "--label-ending", "_mask.png",
    ),
    "split in a name": folder(
        "{split}/{stem}.png", "{split}annot/{stem}.png",
        "--images-folder", "{split}", "--labels-folder", "{split}annot",
    ),
    "other names": folder(
        "img_dir/{split}/{stem}.png", "ann_dir/{split}/{stem}.tif",
        "--images-folder", "img_dir", "--labels-folder", "ann_dir", "--label-ending", ".tif",
        splits=("train", "val"),
    ),
    "lists": listed,
    "colours": coloured,
    "drawn": drawn,
}  # fmt: skip


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command prints; it has to succeed."""
    status = cli.main(list(words))
    told = capsys.readouterr()
    assert status == 0, told.err
    return told.out


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools' own decoder
def test_from_the_files_to_two_steps_of_training(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    data, shards, out = tmp_path / "data", tmp_path / "shards", tmp_path / "run"
    made = MAKERS[name](data)
    words = [word.replace("DATA", str(data)) for word in made.words]
    run(capsys, "build", *words, "--out", str(shards), "--workers", "1", "--quiet")
    against = made.against.replace("DATA", str(data))
    assert " 0 differences" in run(capsys, "verify", str(shards), "--against", against, "--workers", "1")
    run(capsys, "check", str(shards))
    facts = json.loads(run(capsys, "info", str(shards), "--json"))
    found = {split["split"]: split for split in facts["splits"]}
    assert set(found) == set(made.splits)
    first, second = (found[split] for split in made.splits)
    assert {entry["name"] for entry in first["classes"] if entry["pixels"]} == made.present
    assert (first["void_share"] > 0) == made.void
    assert made.samples in ((first["samples"], second["samples"]), SOME)
    shutil.rmtree(data)  # training needs the shards alone
    classes = f"decoder_head.num_classes={len(first['classes'])}"
    places = (f"datasets.root={shards}", f"datasets.train={made.splits[0]}", f"datasets.val={made.splits[1]}")
    assert train([*TINY, *places, classes, f"output_dir={out}"]) == 0
    assert (out / "model_final.pth").is_file()
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
