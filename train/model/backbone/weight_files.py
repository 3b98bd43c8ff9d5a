"""Reads frozen weights from what people have: Meta's .pth, safetensors, a Hugging Face folder or hub id.

Entries come one at a time, so that a 27 GB file never lies in memory twice. Nothing here runs code from a
file: torch archives are opened with `weights_only`, which refuses everything but tensors.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import huggingface_hub
import torch
from huggingface_hub.constants import (
    CONFIG_NAME,
    PYTORCH_WEIGHTS_NAME,
    SAFETENSORS_INDEX_FILE,
    SAFETENSORS_SINGLE_FILE,
)
from safetensors import safe_open
from torch import Tensor

from maskshards.shards.storage.foreign_file import open_regular, read_text, sha256_of
from maskshards.train.model.backbone.architectures import Architecture, ModelError
from maskshards.train.model.backbone.weight_keys import Named

_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST_SUFFIX = re.compile(r"-([0-9a-f]{8})\.(?:pth|pt|safetensors)$")
# A tag, not just "<": the length that opens a safetensors file may spell blanks and that byte too.
_WEB_PAGE = re.compile(rb"\s*<[!?a-zA-Z]")
_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
# Dictionaries that training scripts put around the weights, the one to open first.
_WRAPPING_KEYS = ("teacher", "model_ema", "model", "state_dict", "module")


class WeightsError(ModelError):
    """Weights that are missing, unreadable, or not those of the model asked for."""


def find_weights(arch: Architecture, weights: str | None, revision: str | None) -> Path:
    """The file or folder behind `weights`, a path or hub id (None: the published one), fetched if need be.

    From the hub only at a whole commit id: a `revision` that is none is refused, with the commit it is now.
    """
    if weights is not None:
        path = Path(weights).expanduser()
        if path.exists():
            return path
        if path.suffix in _SUFFIXES or path.is_absolute() or not _HUB_ID.match(weights):
            raise WeightsError(
                f"model.weights={weights}: no such file or folder. Pass Meta's .pth, a .safetensors file, a "
                "Hugging Face folder, a hub id (owner/name), or the word random"
            )
        return _from_hub(weights, revision)
    if arch.hub_id is None:
        raise WeightsError(
            f"{arch.name} has no published weights on the Hugging Face hub: pass model.weights=PATH, or "
            "model.weights=random for a backbone that has learnt nothing"
        )
    return _from_hub(arch.hub_id, revision)


def _from_hub(hub_id: str, revision: str | None) -> Path:
    if revision is None or not _COMMIT.fullmatch(revision):
        _refuse_unpinned(hub_id, revision)
    try:
        folder = huggingface_hub.snapshot_download(
            hub_id,
            revision=revision,
            allow_patterns=[CONFIG_NAME, "*.safetensors", "*.safetensors.index.json"],
        )
    except Exception as error:
        raise WeightsError(
            f"could not fetch {hub_id} (revision {revision}) from the Hugging Face hub, and "
            f"there is no file or folder of that name: {_reason(error)}\n{_remedy(hub_id)}"
        ) from error
    return Path(folder)


def _refuse_unpinned(hub_id: str, revision: str | None) -> NoReturn:
    """WeightsError: nothing is fetched at a branch, a tag or nothing; it names the commit that is now."""
    found = "is not set" if revision is None else f"is {revision!r}"
    why = (
        f"model.revision {found}, expected the whole id (40 hex digits) of a commit of {hub_id}: what else "
        "names files on the hub can come to mean others, and a run that is started again would get them."
    )
    try:
        commit = str(huggingface_hub.HfApi().model_info(hub_id, revision=revision).sha)
    except Exception as error:
        raise WeightsError(
            f"{why}\nThe hub could not be asked which commit that is now ({_reason(error)}); "
            f"https://huggingface.co/{hub_id}/commits/main lists them.\n{_remedy(hub_id)}"
        ) from error
    raise WeightsError(f"{why}\nIt is this commit now: say model.revision={commit}")


def _remedy(hub_id: str) -> str:
    """What to do where a repository cannot be fetched."""
    copy = "fetch the weights elsewhere and pass model.weights=PATH (Meta's .pth, or a Hugging Face folder)"
    if "dinov3" not in hub_id.lower():
        return copy
    page = f"https://huggingface.co/{hub_id}"
    return f"DINOv3 is gated: ask for access at {page}, then run `hf auth login`; or {copy}"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def read_entries(path: Path) -> tuple[list[str], Iterator[Named]]:
    """All keys below `path`, and an iterator over (key, tensor on the CPU)."""
    if path.is_dir():
        files = _files_of(path)
        parts = [read_entries(file) for file in files]
        return [name for names, _ in parts for name in names], (entry for _, part in parts for entry in part)
    check_file(path)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as handle:
                return list(handle.keys()), _safetensors_entries(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        raise WeightsError(
            f"{path}: cannot be read as weights ({type(error).__name__}). Expected tensors only, in a whole "
            ".pth or safetensors file: it may be cut short, or hold pickled code, which is never run"
        ) from error
    tensors = unwrap(state, path)
    return list(tensors), iter(tensors.items())


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a Hugging Face folder."""
    path = folder / CONFIG_NAME
    try:
        config = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"{path}: cannot be read ({error}); a Hugging Face folder holds config.json and *.safetensors"
        ) from error
    if not isinstance(config, dict):
        raise WeightsError(f"{path}: expected a JSON object")
    return config


def unwrap(state: object, path: Path) -> dict[str, Tensor]:
    """The flat dictionary of tensors in a loaded file, in as many wrappings as there are."""
    while isinstance(state, dict):
        inner = next((state[key] for key in _WRAPPING_KEYS if isinstance(state.get(key), dict)), None)
        if inner is None:
            break
        state = inner
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path}: expected a dictionary of tensors, found {type(state).__name__}")
    return state


def _check_members(path: Path) -> None:
    """WeightsError if an archive of torch's has compressed members.

    torch writes none, and a few bytes could unpack to more than the memory holds.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [one.filename for one in archive.infolist() if one.compress_type != zipfile.ZIP_STORED]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{path}: cannot be read as weights ({error}): it may be cut short") from error
    if packed:
        raise WeightsError(
            f"{path}: its member {packed[0]} is compressed, as torch.save never writes them; load it where "
            "it comes from and save it again"
        )


def _safetensors_entries(path: Path) -> Iterator[Named]:
    with safe_open(path, "pt") as handle:
        for name in handle.keys():
            yield name, handle.get_tensor(name)


def _files_of(folder: Path) -> list[Path]:
    index = folder / SAFETENSORS_INDEX_FILE
    if index.is_file():
        try:
            names = sorted({file_name(name) for name in json.loads(read_text(index))["weight_map"].values()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise WeightsError(
                f"{index}: cannot be read as the index of a sharded folder ({type(error).__name__}): it may "
                "be cut short. Download the folder again"
            ) from error
        return [folder / name for name in names]
    for pattern in (SAFETENSORS_SINGLE_FILE, "*.safetensors", PYTORCH_WEIGHTS_NAME):
        found = sorted(folder.glob(pattern))
        if found:
            return found
    inside = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
    raise WeightsError(f"{folder}: expected model.safetensors in a Hugging Face folder, found {inside}")


def file_name(name: str) -> str:
    """`name`, that of a file in the same folder; ValueError for anything else."""
    if Path(name).name != name or name in ("", ".."):
        raise ValueError(f"{name!r} is no name of a file")
    return name


def check_file(path: Path) -> None:
    """WeightsError that says what a file is, if it only looks like weights.

    The digest in its name is compared too.
    """
    try:
        with open_regular(path) as file:
            head = file.read(64)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be opened ({error.strerror or error})") from error
    if _WEB_PAGE.match(head):
        raise WeightsError(
            f"{path}: is a web page, not weights: the link had expired, or access was not granted. Ask for a "
            "new link and download it again"
        )
    _check_members(path)
    suffix = _DIGEST_SUFFIX.search(path.name)
    if suffix:
        found = sha256_of(path)
        if not found.startswith(suffix[1]):
            raise WeightsError(
                f"{path}: the name promises a sha256 that begins with {suffix[1]}, the file has {found[:8]}: "
                "it is cut short or another file. Download it again"
            )
