"""Every file of facts that is read, damaged and forged from a seed: an error of our own, or the right answer.

Two kinds of change: of bytes (flipped, cut, doubled, overwritten), which is what disks and copies do, and of
values (another type, absurd numbers, text that is none, a nest of lists, a key lost), which is what people
and other programs do.
"""

import contextlib
import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from maskshards.preprocess.errors import Reject, RejectedInput, SourceError
from maskshards.preprocess.inputs.labels import LabelRule
from maskshards.preprocess.plan import UNREADABLE, BuildSettings, SplitFacts
from maskshards.preprocess.sources.coco import open_coco
from maskshards.preprocess.sources.mapillary import open_mapillary
from maskshards.shards.errors import ManifestError, ShardError
from maskshards.shards.format.index import ShardInfo
from maskshards.shards.format.manifest import Manifest, finish_manifest, parse_manifest
from maskshards.train.checkpoint.checkpoint import read_checkpoint, save_final
from maskshards.train.checkpoint.hub_folder import write_folder
from maskshards.train.checkpoint.train_state import CheckpointError, TrainState, read_state, state_json
from maskshards.train.comparison.command import report
from maskshards.train.comparison.past_run import RunError
from maskshards.train.config.load import load_config
from maskshards.train.config.schema import ConfigError, TrainConfig
from maskshards.train.evaluation.results import STEM
from maskshards.train.model.backbone.architectures import ModelError, architecture
from maskshards.train.model.backbone.load import load_backbone
from maskshards.train.model.backbone.weight_files import WeightsError

ROOT = Path(__file__).parents[1]
ROUNDS = 150
DEEP = "[" * 5000  # beyond what a recursive reader goes down
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 1 << 63, 1 << 64, -(1 << 63), 10**400, 1.5, 1e308, -0.0, "", "x", "\0", "\ud800",
    "\u202e", "a" * 5000, "../../etc/passwd", "/dev/zero", "${oc.env:HOME}",
    [], [[]], {}, {"": None}, [None] * 9,
)  # fmt: skip


def damaged(data: bytes, chance: random.Random) -> bytes:
    """A change of bytes."""
    place = chance.randrange(len(data))
    end = min(len(data), place + chance.randrange(1, 40))
    kind = chance.randrange(7)
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]
    if kind == 2:
        return data[:place] + data[end:]
    if kind == 3:
        return data[:end] + data[place:]
    if kind == 4:
        return data[:place] + chance.randbytes(end - place) + data[end:]
    if kind == 5:
        return data[:place] + DEEP.encode() + data[place:]
    return chance.choice(
        (b"", b"\xef\xbb\xbf" + data, data + data, DEEP.encode(), b"9" * 10_000, data.upper())
    )


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values within `value`."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, inner in inside for found in places(inner, (*path, key)))]


def forged(value: Any, chance: random.Random) -> Any:
    """A copy with one value replaced by an odd one, or one key lost."""
    copy = json.loads(json.dumps(value))
    *way, last = chance.choice(places(copy)[1:])
    holder = copy
    for key in way:
        holder = holder[key]
    if chance.random() < 0.2:
        del holder[last]
    else:
        holder[last] = chance.choice(ODD)
    return copy


def cases(
    data: bytes, value: Any, dump: Callable[[Any], str], seed: int, rounds: int = ROUNDS
) -> list[bytes]:
    """`rounds` changes of either kind to a file with the content `data`, which holds `value`."""
    chance = random.Random(seed)
    bytes_changed = [damaged(data, chance) for _ in range(rounds)]
    values = [forged(value, chance) for _ in range(rounds)]
    return bytes_changed + [dump(one).encode("utf-8", "surrogatepass") for one in values]


@pytest.fixture(scope="module")
def state() -> TrainState:
    return TrainState(
        step=4,
        position=8,
        fingerprint="f" * 64,
        global_batch=2,
        seed=3,
        backbone="dinov3_tiny16",
        backbone_digest="random:0",
        class_names=["ground", "box"],
        config={"model": {"dino_hub": "dinov3_tiny16"}, "decoder_head": {"type": "m2f"}, "bs": 2},
        order="0" * 16,
        score=33.25,
    )


def outcome(read: Callable[[], Any], own: tuple[type[Exception], ...], where: Path) -> Any:
    """What `read` answers; None where it refuses by an error of our own that names the place."""
    try:
        return read()
    except own as error:
        named = str(where) in str(error)
    assert named
    return None


def test_state_json(state: TrainState, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    good = state_json(state, {"weights.safetensors": "0" * 64})
    path.write_bytes(good)
    whole = read_state(path)
    for number, case in enumerate(cases(good, json.loads(good), json.dumps, seed=1)):
        path.write_bytes(case)
        found = outcome(lambda: read_state(path), (CheckpointError,), path)
        assert found in (None, whole), (number, case[:300])


@pytest.mark.parametrize("kind", ["final", "hub"])
def test_the_facts_beside_a_final_model_and_in_a_folder_of_the_hub(
    state: TrainState, tmp_path: Path, kind: str
) -> None:
    weights = {"segmentation_model.1.conv.weight": torch.arange(6.0).reshape(2, 3, 1, 1)}
    if kind == "final":
        asked = save_final(tmp_path, state, weights)
        facts = asked.with_suffix(".json")
    else:
        write_folder(tmp_path, state, weights)
        asked, facts = tmp_path, tmp_path / "config.json"
    good, whole = facts.read_bytes(), read_checkpoint(asked)
    for number, case in enumerate(cases(good, json.loads(good), json.dumps, seed=2)):
        facts.write_bytes(case)
        found = outcome(lambda: read_checkpoint(asked), (CheckpointError,), tmp_path)
        if found is not None:
            assert found.state == whole.state, (number, case[:300])
            assert all(torch.equal(found.weights[name], whole.weights[name]) for name in whole.weights)


def test_manifest_json() -> None:
    digests = {"bytes": 1024, "sha256": "0" * 64, "index_sha256": "1" * 64}
    shards = tuple(ShardInfo(f"training-{n:05d}.tar", 3, **digests) for n in range(2))  # type: ignore[arg-type]
    good = finish_manifest(Manifest("made", "training", ("a", "b"), shards), shards).to_bytes()
    whole = parse_manifest(good)
    for number, case in enumerate(cases(good, json.loads(good), json.dumps, seed=3)):
        with contextlib.suppress(ManifestError):
            assert parse_manifest(case) == whole, (number, case[:300])


def test_config_json_of_a_backbone(tmp_path: Path) -> None:
    arch = architecture("dinov3_tiny16")
    torch.manual_seed(0)
    DINOv3ViTModel(DINOv3ViTConfig(**arch.settings)).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    good = path.read_bytes()
    digest = load_backbone(arch.name, str(tmp_path)).digest
    for case in cases(good, json.loads(good), json.dumps, seed=4, rounds=100):
        path.write_bytes(case)
        own = (WeightsError, ModelError)
        found = outcome(lambda: load_backbone(arch.name, str(tmp_path)), own, tmp_path)
        assert found is None or found.digest == digest


def annotations(panoptic: bool) -> dict[str, Any]:
    """COCO's JSON of two images."""
    marks: list[dict[str, Any]] = [
        {"id": 1, "image_id": 1, "category_id": 1, "area": 40.5, "bbox": [1, 1, 9, 9], "iscrowd": 0,
         "segmentation": [[1, 1, 10, 1, 10, 10]]},
        {"id": 2, "image_id": 2, "category_id": 2, "area": 50, "bbox": [1, 1, 9, 9], "iscrowd": 1,
         "segmentation": {"size": [20, 30], "counts": [100, 50, 450]}},
    ]  # fmt: skip
    if panoptic:
        segments = [{"id": 7, "category_id": 1, "area": 150}, {"id": 9, "category_id": 2, "area": 450}]
        marks = [{"image_id": n, "file_name": "1.png", "segments_info": segments} for n in (1, 2)]
    images = [{"id": n, "file_name": f"{n}.jpg", "height": 20, "width": 30} for n in (1, 2)]
    return {
        "images": images,
        "annotations": marks,
        "categories": [{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}],
    }


@pytest.mark.parametrize("kind", ["instances", "panoptic"])
def test_annotations_of_coco(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are refused one by one where the JSON as a whole can be read."""
    pytest.importorskip("pycocotools.mask", reason="the extra 'coco' is not installed")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = tmp_path / f"annotations/{kind}_train2017.json"
    for n in (1, 2):
        write_image(np.zeros((20, 30, 3), np.uint8), tmp_path / f"train2017/{n}.jpg")
    colours = np.zeros((20, 30, 3), np.uint8)
    colours[:5, :, 0], colours[5:, :, 0] = 7, 9
    write_image(colours, tmp_path / f"annotations/{kind}_train2017/1.png")
    value = annotations(kind == "panoptic")
    for case in cases(json.dumps(value).encode(), value, json.dumps, seed=6, rounds=40):
        path.write_bytes(case)
        source = outcome(lambda: open_coco(tmp_path, "", "", False), (SourceError,), tmp_path)
        listing = source and outcome(partial(source.listing, "train"), (SourceError,), tmp_path)
        for image in listing.names if listing else ():
            with contextlib.suppress(RejectedInput, ShardError):
                assert source.read(source.item("train", image)).label


def write_image(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_the_configuration_of_mapillary(tmp_path: Path) -> None:
    (tmp_path / "training/v2.0/labels").mkdir(parents=True)
    colours = {"road": [1, 2, 3], "car": [1, 2, 4], "void": [0, 0, 0]}
    labels = [
        {"name": f"a--{name}", "readable": name, "evaluate": name != "void", "color": colour}
        for name, colour in colours.items()
    ]
    value, path = {"labels": labels, "version": 2.0}, tmp_path / "config_v2.0.json"
    opened = []
    for case in cases(json.dumps(value).encode(), value, json.dumps, seed=7):
        path.write_bytes(case)
        opened.append(outcome(lambda: open_mapillary(tmp_path), (SourceError,), tmp_path))
    assert None in opened
    assert all(source.classes for source in opened if source)


@pytest.mark.parametrize("name", ["config.yaml", f"{STEM}.json", "metrics.jsonl", "model_final.json"])
def test_what_reports_are_made_of(name: str, state: TrainState, tmp_path: Path) -> None:
    """A page, or an error that names the run."""
    value: dict[str, Any] = {"kind": "train", "step": 4, "loss": 1.5, "lr": 1e-4, "images_per_s": 12.5}
    scores = {"mIoU": 30.5, "aAcc": 80.0, "num_images": 12}
    classes = {"classes": [{"name": "ground", "iou": 40.5}, {"name": "box", "iou": None}]}
    config = {"bs": 2, "scheduler": {"total_iter": 8}, "decoder_head": {"type": "m2f"}}
    for run in (tmp_path / "a", tmp_path / "b"):
        run.mkdir()
        save_final(run, state, {"w": torch.zeros(2)})
        (run / "metrics.jsonl").write_text(json.dumps(value) + "\n" + json.dumps({**value, "step": 6}) + "\n")
        (run / f"{STEM}.json").write_text(json.dumps(scores | classes))
        (run / "config.yaml").write_text(yaml.safe_dump(config))
    damaged_file, dump = tmp_path / "a" / name, yaml.safe_dump if name == "config.yaml" else json.dumps
    good = damaged_file.read_bytes()
    held = yaml.safe_load(good.splitlines()[0] if name == "metrics.jsonl" else good)
    held.pop("checksum", None)  # else all that is forged is damaged
    runs = [str(tmp_path / "a"), str(tmp_path / "b")]
    own, page = (RunError, CheckpointError, ConfigError), tmp_path / "page.html"
    for case in cases(good, held, dump, seed=8, rounds=25):
        damaged_file.write_bytes(case)
        if outcome(lambda: report(runs, page) or True, own, tmp_path):
            assert page.read_text().endswith("</html>")
            page.unlink()


def test_the_plan_of_a_build_that_is_not_finished() -> None:
    facts = SplitFacts(
        "training", "0" * 64, 2, 3, (Reject("a.jpg", "it is empty"),), "made", ("a", "b"), ((1, 2, 3),) * 2,
        LabelRule(2).to_json(), {"kind": "folder"}, BuildSettings().to_json(),
    )  # fmt: skip
    good = facts.to_bytes()
    assert SplitFacts.from_bytes(good) == facts
    for case in cases(good, json.loads(good), json.dumps, seed=9):
        with contextlib.suppress(*UNREADABLE):
            found = SplitFacts.from_bytes(case)
            assert LabelRule.from_json(found.label_rule).num_classes >= 0
            assert found.shard_name(found.num_shards)


def test_recipes(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    good = (ROOT / "configs" / "demo.yaml").read_bytes()
    for case in cases(good, yaml.safe_load(good), yaml.safe_dump, seed=5, rounds=60):
        path.write_bytes(case)
        with contextlib.suppress(ConfigError):
            config = load_config([f"config={path}", f"datasets.root={tmp_path}", f"output_dir={tmp_path}"])
            assert isinstance(config, TrainConfig)
