"""Checkpoints of one run: trainables, optimiser state and facts to continue it at the next sample.

A checkpoint is a folder `checkpoints/step-00000100/` of `weights.safetensors`, `optimizer.safetensors` and
`state.json` (which holds the digests of the other two). It is written under a hidden name, flushed to disk
and renamed, so a folder with its final name is whole. The best by score stands beside them as `best-...`,
without optimiser state. On disk at most: keep_last x (weights + 2 x trainables, 3 x with a weight average)
+ 1 x weights, and one more of the larger kind while writing.

The backbone is never in a checkpoint, only its digest. `model_final.pth` holds the same weights as plain
tensors under the reference's key names; read it with `torch.load(..., weights_only=True)`.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import safetensors
import torch
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from safetensors.torch import load_file, save
from torch import Tensor, nn

from maskshards.shards.storage.atomic_write import flush_folder, replacing, write_through
from maskshards.shards.storage.foreign_file import sha256_of
from maskshards.train.checkpoint.run_files import (
    AVERAGE,
    BEST,
    FINAL,
    FOLDER,
    LAST,
    OPTIMIZER,
    STATE,
    WEIGHTS,
    checkpoints_of,
    is_exported,
    meant_by,
)
from maskshards.train.checkpoint.train_state import CheckpointError, TrainState, read_state, state_json
from maskshards.train.model.backbone.weight_files import WeightsError, check_file

logger = logging.getLogger(__name__)

BACKBONE_PREFIXES = ("segmentation_model.0.backbone.", "segmentation_model.0.feature_model.")


@dataclass(frozen=True)
class Checkpoint:
    """Weights by the reference's key names.

    `state` is None for a bare weights file without a config beside it.
    """

    path: Path
    weights: dict[str, Tensor]
    state: TrainState | None


def unheard(what: str) -> None:
    """For who does not ask how far a checkpoint is."""


def save_checkpoint(
    run: Path,
    name: str,
    state: TrainState,
    parts: dict[str, dict[str, Tensor]],
    progress: Callable[[str], object] = unheard,
) -> Path:
    """Write `run/checkpoints/NAME` in one visible act and return it; a folder of that name is replaced.

    `progress` hears what is done now, again after every piece that was written.
    """
    folder = run / FOLDER
    if not folder.is_dir():
        folder.mkdir(parents=True)
        flush_folder(run)  # else a power cut may take the folder with all that is flushed in it
    for leftover in (*folder.glob(f".{LAST}*"), *folder.glob(f".{BEST}*")):  # other dot files are not ours
        shutil.rmtree(leftover)
    hidden = folder / f".{name}"
    hidden.mkdir()
    try:
        write_parts(hidden, state, parts, progress)
        if (folder / name).exists():
            shutil.rmtree(folder / name)
        hidden.rename(folder / name)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)  # a full disk gets its room back at once
        raise
    flush_folder(folder)
    return folder / name


def write_parts(
    hidden: Path,
    state: TrainState,
    parts: dict[str, dict[str, Tensor]],
    progress: Callable[[str], object] = unheard,
) -> None:
    """The files of tensors, then the state that holds their digests. OSError names the file."""
    digests = {}
    for part, tensors in parts.items():
        progress(f"saving {part}")
        data = save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
        digests[part] = hashlib.sha256(data).hexdigest()
        write_through(hidden / part, data, partial(progress, f"saving {part}"))
    write_through(hidden / STATE, state_json(state, digests))
    flush_folder(hidden)


def save_best(
    run: Path, state: TrainState, weights: dict[str, Tensor], progress: Callable[[str], object] = unheard
) -> Path:
    """Write the best weights, without optimiser state, then remove the former best."""
    path = save_checkpoint(run, f"{BEST}{state.step:08d}", state, {WEIGHTS: weights}, progress)
    for former in checkpoints_of(run, BEST):
        if former != path:
            discard(former)
    return path


def discard(path: Path) -> None:
    """Remove a checkpoint that is no longer needed.

    One that cannot be removed ends no run: over NFS that is a folder in which somebody still reads.
    """
    try:
        shutil.rmtree(path)
    except OSError as error:
        logger.warning("%s cannot be removed yet: %s", path, error)


def save_last(
    run: Path,
    state: TrainState,
    weights: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    average: dict[str, Tensor] | None = None,
    progress: Callable[[str], object] = unheard,
) -> Path:
    """Write a checkpoint that can be continued."""
    parts = {WEIGHTS: weights, OPTIMIZER: optimizer} | ({} if average is None else {AVERAGE: average})
    return save_checkpoint(run, f"{LAST}{state.step:08d}", state, parts, progress)


def save_final(run: Path, state: TrainState, weights: dict[str, Tensor]) -> Path:
    """Write `model_final.pth` for others to load, and `model_final.json` with the facts to rebuild it."""
    path = run / FINAL
    with replacing(path) as hidden:
        torch.save({key: value.detach().cpu().contiguous() for key, value in weights.items()}, hidden)
        with open(hidden, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    with replacing(path.with_suffix(".json")) as hidden:
        write_through(hidden, state_json(state, {FINAL: digest}))
    return path


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Weights and facts behind `path`.

    That is a checkpoint folder, a run folder (its best, else last, else final), an exported folder, or
    model_final.pth. Raises CheckpointError if there is none, or if a file is not what state.json says.
    """
    path = meant_by(Path(path))
    if path.is_file():
        return read_weights_file(path)
    facts, part = (CONFIG_NAME, SAFETENSORS_SINGLE_FILE) if is_exported(path) else (STATE, WEIGHTS)
    state = read_state(path / facts)
    return Checkpoint(path, read_part(path, part, state), state)


def read_part(folder: Path, part: str, state: TrainState) -> dict[str, Tensor]:
    """The tensors of one file, after its digest was found to be the one in state.json."""
    if part not in state.digests:
        raise CheckpointError(
            f"{folder} has no {part}: the best checkpoint cannot be continued, a {LAST}* one can"
        )
    check_digest(folder / part, state.digests[part])
    return load_safetensors(folder / part)


def check_digest(path: Path, expected: str) -> None:
    try:
        digest = sha256_of(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if digest != expected:
        raise CheckpointError(f"{path} is damaged: its sha256 is {digest}, recorded was {expected}")


def load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, MemoryError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error


def load_pth(path: Path) -> dict[str, Tensor]:
    """Named tensors from a .pth file, flat or wrapped as {"model": ...}.

    Nothing but tensors is ever unpickled.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for files that are not its own
        # Not its text: torch advises to switch its guard off.
        raise CheckpointError(
            f"{path} cannot be read as tensors ({type(error).__name__}): it may be cut short, or hold "
            "pickled code, which is never run. Pass a whole file that holds a state dict alone"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} holds something else than named tensors")
    return content


def read_weights_file(path: Path) -> Checkpoint:
    """A bare .safetensors or .pth file, with the facts of the .json beside it where there is one."""
    try:
        check_file(path)
    except WeightsError as error:
        raise CheckpointError(str(error)) from error
    beside = path.with_suffix(".json")
    state = read_state(beside) if beside.is_file() else None
    if state is not None and path.name in state.digests:
        check_digest(path, state.digests[path.name])
    return Checkpoint(
        path, load_safetensors(path) if path.suffix == ".safetensors" else load_pth(path), state
    )


def load_weights(decoder: nn.Module, checkpoint: Checkpoint) -> None:
    """Put the weights into `decoder`, strictly.

    CheckpointError lists what is missing, unexpected or of another shape.

    A full model's backbone keys are the only ones passed over: the backbone is never trained here.
    """
    own = decoder.state_dict()
    given = {key: value for key, value in checkpoint.weights.items() if not key.startswith(BACKBONE_PREFIXES)}
    shapes = [
        f"{key} {tuple(given[key].shape)}, the model has {tuple(own[key].shape)}"
        for key in own.keys() & given.keys()
        if own[key].shape != given[key].shape
    ]
    faults = {
        "missing": sorted(own.keys() - given.keys()),
        "unexpected": sorted(given.keys() - own.keys()),
        "of another shape": sorted(shapes),
    }
    found = [f"{len(keys)} {fault} ({'; '.join(keys[:4])})" for fault, keys in faults.items() if keys]
    if found:
        raise CheckpointError(
            f"{checkpoint.path} is of another model: {', '.join(found)}. "
            "Set model.dino_hub and decoder_head (type, hidden_dim, num_classes) as they were in its run"
        )
    decoder.load_state_dict(given)
