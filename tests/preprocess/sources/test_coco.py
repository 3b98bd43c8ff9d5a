import json

import numpy as np
import pytest
from PIL import Image

from maskshards.preprocess.__main__ import main
from maskshards.preprocess.errors import RejectedInput, SourceError
from maskshards.preprocess.inputs.label_file import decode_label_file
from maskshards.preprocess.sources.coco import open_coco
from maskshards.shards.format.manifest import open_split

coco_mask = pytest.importorskip("pycocotools.mask", reason="the extra 'coco' is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools' own decoder
HEIGHT, WIDTH = 24, 32
THINGS = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
STUFF = [{"id": 119, "name": "flower"}, {"id": 183, "name": "other"}]
BIG, SMALL = [2.0, 2.0, 20.0, 2.0, 20.0, 20.0, 2.0, 20.0], [5.5, 5.0, 12.0, 6.0, 9.0, 14.5]


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def write_json(path, images, annotations, categories):
    path.parent.mkdir(parents=True, exist_ok=True)
    words = [
        {"id": n, "file_name": f"{n:012d}.jpg", "height": HEIGHT, "width": WIDTH, "license": 1}
        for n in images
    ]
    facts = {"info": {"year": 2017}, "licenses": [], "images": words, "annotations": annotations}
    path.write_text(json.dumps({**facts, "categories": categories}))


def polygon(number, image, category, points, **more):
    area = 300 if points == BIG else 40
    return {
        "id": number, "image_id": image, "category_id": category, "segmentation": [points], "area": area,
        "iscrowd": 0, "bbox": [0, 0, 1, 1], **more,
    }  # fmt: skip


def crowd(number, image, category, mask):
    """Uncompressed run lengths, as COCO has them for crowds."""
    flat = mask.ravel(order="F")
    bounds = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *bounds, flat.size]).tolist()
    counts = [0, *counts] if flat[0] else counts
    shape = {"counts": counts, "size": [HEIGHT, WIDTH]}
    return {**polygon(number, image, category, BIG), "segmentation": shape, "iscrowd": 1, "area": 500}


@pytest.fixture
def polygons(tmp_path, write_image):
    """train2017/, val2017/ and annotations/ of COCO 2017: three annotated images and one without."""
    root = tmp_path / "coco"
    band = np.zeros((HEIGHT, WIDTH), bool)
    band[20:] = True
    field = np.asfortranarray(np.ones((HEIGHT, WIDTH), np.uint8))
    for split in ("train2017", "val2017"):
        for number in range(1, 5):
            write_image(root / f"{split}/{number:012d}.jpg")
        annotations = [
            polygon(1, 1, 18, SMALL),
            polygon(2, 1, 1, BIG),
            crowd(3, 2, 1, band),
            polygon(4, 2, 18, SMALL),
            polygon(5, 3, 18, BIG),
        ]
        write_json(root / f"annotations/instances_{split}.json", range(1, 5), annotations, THINGS)
        whole = coco_mask.encode(field)
        shape = {"size": whole["size"], "counts": whole["counts"].decode()}
        stuff = [{**polygon(9, 1, 119, BIG), "segmentation": shape}, polygon(10, 3, 183, BIG)]
        write_json(root / f"annotations/stuff_{split}.json", range(1, 5), stuff, STUFF)
    (root / "annotations/captions_train2017.json").write_text("{}")
    return root


def values_of(source, number, split="train"):
    item = source.item(split, f"{number:012d}.jpg")
    return decode_label_file(source.read(item).label)


def filled(points):
    runs = coco_mask.frPyObjects([points], HEIGHT, WIDTH)
    return coco_mask.decode(runs)[..., 0].astype(bool)


def test_polygons_as_unzipped(polygons, build_and_check):
    told = build_and_check("coco", polygons, "--segments", "things")
    split = open_split(told.out_folder / "train")
    assert split.manifest.classes == ("person", "dog")
    assert split.manifest.num_samples == 3
    assert "train: 1 image without any segment passed over" in told.err
    assert "train: what no polygon covers is void; --background makes it class 0" in told.err


def test_small_things_stay_visible_on_large_ones(polygons):
    source = open_coco(polygons, "", "things", False)
    expected = np.where(filled(SMALL), 1, np.where(filled(BIG), 0, 255))
    assert values_of(source, 1).tolist() == expected.tolist()
    crowded = np.full((HEIGHT, WIDTH), 255)
    crowded[20:] = 0
    crowded[filled(SMALL)] = 1
    assert values_of(source, 2).tolist() == crowded.tolist()


def test_things_on_stuff(polygons):
    source = open_coco(polygons, "polygons", "both", False)
    assert source.classes == ("person", "dog", "flower")
    expected = np.where(filled(SMALL), 1, np.where(filled(BIG), 0, 2))
    assert values_of(source, 1).tolist() == expected.tolist()
    assert source == open_coco(polygons, "", "", False)
    assert open_coco(polygons, "", "stuff", False).classes == ("flower",)


def test_a_background_takes_what_is_left(polygons, build_and_check):
    told = build_and_check("coco", polygons, "--segments", "things", "--background")
    split = open_split(told.out_folder / "val")
    assert split.manifest.classes == ("background", "person", "dog")
    assert split.manifest.num_samples == 4
    source = open_coco(polygons, "", "things", True)
    expected = np.where(filled(SMALL), 2, np.where(filled(BIG), 1, 0))
    assert values_of(source, 1).tolist() == expected.tolist()
    assert not values_of(source, 4).any()


@pytest.fixture
def panoptic(tmp_path, write_image):
    """Images, annotations/panoptic_SPLIT.json and the PNGs of the archive inside of the archive."""
    root = tmp_path / "panoptic"
    categories = [
        {"id": 1, "name": "person", "isthing": 1, "color": [220, 20, 60]},
        {"id": 187, "name": "sky", "isthing": 0, "color": [70, 130, 180]},
    ]
    for split in ("train2017", "val2017"):
        annotations = []
        for number in (1, 2):
            write_image(root / f"{split}/{number:012d}.jpg")
            ids = np.zeros((HEIGHT, WIDTH), np.uint32)
            ids[:10], ids[12:, :16], ids[12:, 16:] = 70000, 3, 5
            place = root / f"annotations/panoptic_{split}/{number:012d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.stack([ids, ids >> 8, ids >> 16], -1).astype(np.uint8)).save(place)
            segments = [
                {"id": 70000, "category_id": 187, "iscrowd": 0},
                {"id": 3, "category_id": 1, "iscrowd": 0},
                {"id": 5, "category_id": 1, "iscrowd": 1},
            ]
            words = {"image_id": number, "file_name": place.name, "segments_info": segments}
            annotations.append(words)
        write_json(root / f"annotations/panoptic_{split}.json", (1, 2), annotations, categories)
    return root


def test_panoptic_as_unzipped(panoptic, build_and_check):
    told = build_and_check("coco", panoptic)
    split = open_split(told.out_folder / "train")
    assert split.manifest.classes == ("person", "sky")
    entry = split.index(0).entry(0)
    assert (entry.class_ids, entry.areas) == ((0, 1), (12 * WIDTH, 10 * WIDTH))


def test_some_segments_of_a_panoptic_map(panoptic):
    stuff = open_coco(panoptic, "", "stuff", False)
    assert stuff.classes == ("sky",)
    assert np.unique(values_of(stuff, 1)).tolist() == [0, 255]
    with_ground = values_of(open_coco(panoptic, "panoptic", "stuff", True), 1)
    assert with_ground[0, 0] == 1
    assert with_ground[20, 0] == 0
    assert with_ground[11, 0] == 255  # unlabelled stays void
    with pytest.raises(SourceError, match="--background is what"):
        open_coco(panoptic, "", "", True)


def test_maps_that_were_not_unzipped(panoptic):
    for split in ("train2017", "val2017"):
        (panoptic / f"annotations/panoptic_{split}").rename(panoptic / f"away_{split}")
    with pytest.raises(SourceError, match=r"unzip annotations/panoptic_train2017\.zip there"):
        open_coco(panoptic, "", "", False)


def test_other_data_sets_in_this_format(tmp_path, write_image):
    for split in ("train", "valid"):
        write_image(tmp_path / f"robo/{split}/000000000001.jpg")
        path = tmp_path / f"robo/{split}/_annotations.coco.json"
        write_json(path, (1,), [polygon(1, 1, 18, BIG)], THINGS)
        write_image(tmp_path / f"own/images/{split}/000000000001.jpg")
        path = tmp_path / f"own/annotations/instances_{split}.json"
        write_json(path, (1,), [polygon(1, 1, 18, BIG)], THINGS)
    for name in ("robo", "own"):
        source = open_coco(tmp_path / name, "", "", False)
        assert source.splits() == ("train", "valid")
        assert np.unique(values_of(source, 1, "valid")).tolist() == [1, 255]
        assert source.stamp(source.item("train", "000000000001.jpg"))


def test_names_may_be_paths_below_the_root(tmp_path, write_image, build_and_check):
    write_image(tmp_path / "own/train/000000000001.jpg")
    path = tmp_path / "own/annotations/instances_train.json"
    write_json(path, (1,), [polygon(1, 1, 18, BIG)], THINGS)
    text = path.read_text().replace('"000000000001.jpg"', '"train/000000000001.jpg"')
    path.write_text(text, encoding="utf-8-sig")  # with the mark that Windows puts before a text
    told = build_and_check("coco", tmp_path / "own")
    split = open_split(told.out_folder / "train")
    assert split.index(0).keys == ("train/000000000001",)
    assert split.index(0).entry(0).class_ids == (1,)


def test_annotations_that_would_vanish_are_told(polygons):
    path = polygons / "annotations/instances_train2017.json"
    facts = json.loads(path.read_text())
    annotations = facts["annotations"]
    annotations[0]["category_id"] = 77
    annotations[2]["segmentation"] = []
    annotations += [polygon(20, 99, 1, BIG), polygon(21, 98, 1, BIG)]
    path.write_text(json.dumps(facts))
    source = open_coco(polygons, "", "things", False)
    with pytest.raises(RejectedInput, match="annotation 1 is of category 77, which the annotations"):
        values_of(source, 1)
    with pytest.raises(RejectedInput, match="annotation 3 has a box and no mask"):
        values_of(source, 2)
    assert "train: 2 annotations of images that their file does not list" in source.listing("train").notes
    facts["images"].append(facts["images"][0])
    path.write_text(json.dumps(facts))
    with pytest.raises(SourceError, match="two entries have one id or name"):
        open_coco(polygons, "", "things", False)


def test_files_and_names_that_are_wrong(polygons, tmp_path, capsys):
    (polygons / "train2017/000000000001.jpg").unlink()
    path = polygons / "annotations/instances_train2017.json"
    facts = json.loads(path.read_text())
    facts["images"][2]["file_name"] = "../secret.jpg"
    path.write_text(json.dumps(facts))
    words = ["build", "--dataset", "coco", "--root", str(polygons), "--segments", "things", "--workers", "1"]
    assert main([*words, "--out", str(tmp_path / "out"), "--quiet"]) == 2
    told = capsys.readouterr().err
    assert "train2017/000000000001.jpg: the annotations name it; it is not there" in told
    assert "../secret.jpg: the annotations name a file outside" in told
    with pytest.raises(SourceError, match=r"instances_test2017\.json: no such file; the splits found"):
        open_coco(polygons, "", "things", False).listing("test")
    with pytest.raises(SourceError, match=r"no annotations/panoptic_SPLIT\.json; found annotations"):
        open_coco(polygons, "panoptic", "", False)


def test_a_polygon_that_is_none_refuses_its_image(polygons):
    path = polygons / "annotations/instances_train2017.json"
    path.write_text(path.read_text().replace("20.0", "1e9"))
    source = open_coco(polygons, "", "things", False)
    with pytest.raises(RejectedInput, match="annotation 2: a polygon is not three or more pairs"):
        values_of(source, 1)
