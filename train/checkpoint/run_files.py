"""Names in the folder of a run, and which of its checkpoints a path means. Needs no torch."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE

from maskshards.train.checkpoint.train_state import CheckpointError

FOLDER = "checkpoints"
LAST, BEST = "step-", "best-"
WEIGHTS, OPTIMIZER, AVERAGE = "weights.safetensors", "optimizer.safetensors", "ema.safetensors"
STATE = "state.json"
FINAL = "model_final.pth"
METRICS = "metrics.jsonl"
RESULTS = "results-semantic-segmentation"  # stem of the files of an evaluation
BOARDS = "tensorboard"  # folder
NONFINITE = "nonfinite"  # folder for what was not finite


def checkpoints_of(run: Path, prefix: str) -> list[Path]:
    """The run's finished checkpoints of one kind, oldest first; a copy under another name is none."""
    named = (path for path in (run / FOLDER).glob(f"{prefix}*") if re.fullmatch(rf"{prefix}\d+", path.name))
    return sorted((path for path in named if path.is_dir()), key=step_of)


def step_of(path: Path) -> int:
    return int(path.name.rsplit("-", 1)[1])


def newest_in(path: Path) -> Path:
    """The newest checkpoint of a run's folder; `path` itself where it is none. Links are followed."""
    return (checkpoints_of(path, LAST) or [path])[-1].resolve()


def is_exported(path: Path) -> bool:
    """Whether a folder holds a model as it is shared."""
    return (path / CONFIG_NAME).is_file() and (path / SAFETENSORS_SINGLE_FILE).is_file()


def meant_by(path: Path) -> Path:
    """The checkpoint folder, exported folder or file of weights behind `path`.

    Of the folder of a run it is the best, else the last, else the final weights. CheckpointError if there is
    none.
    """
    if is_exported(path) or (path / STATE).is_file() or path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(
            f"checkpoint {path} does not exist; give a run's output_dir, a folder of its {FOLDER}/, or a .pth"
        )
    found = checkpoints_of(path, BEST)[-1:] or checkpoints_of(path, LAST)[-1:]
    found += [final for final in (path / FINAL,) if final.is_file()]
    if not found:
        raise CheckpointError(f"{path} holds no checkpoint (expected {STATE}, {FINAL} or {FOLDER}/{LAST}*)")
    return found[0]
