"""Every file of facts that is read, damaged and forged from a seed: an error of our own, or the right answer.

Two kinds of change: of bytes (flipped, cut, doubled, overwritten), which is what disks and copies do, and of
values (another type, absurd numbers, text that is none, a nest of lists, a key lost), which is what people
and other programs do.
"""

import contextlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from maskshards.shards.errors import ManifestError
from maskshards.shards.format.index import ShardInfo
from maskshards.shards.format.manifest import Manifest, finish_manifest, parse_manifest
from maskshards.train.checkpoint.checkpoint import read_checkpoint, save_final
from maskshards.train.checkpoint.hub_folder import write_folder
from maskshards.train.checkpoint.train_state import CheckpointError, TrainState, read_state, state_json
from maskshards.train.config.load import load_config
from maskshards.train.config.schema import ConfigError, TrainConfig
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


def test_recipes(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    good = (ROOT / "configs" / "demo.yaml").read_bytes()
    for case in cases(good, yaml.safe_load(good), yaml.safe_dump, seed=5, rounds=60):
        path.write_bytes(case)
        with contextlib.suppress(ConfigError):
            config = load_config([f"config={path}", f"datasets.root={tmp_path}", f"output_dir={tmp_path}"])
            assert isinstance(config, TrainConfig)
