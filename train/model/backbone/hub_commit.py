"""Which commit of the hub a run gets its backbone from, where none was named.

Weights are safetensors and are fetched at one whole commit, so looking it up runs nothing; whoever looks it
up writes it down, and every later life of the run uses the same.
"""

from __future__ import annotations

import re
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from maskshards.shards.storage.foreign_file import read_text
from maskshards.train.model.backbone.architectures import ModelError, architecture

WHOLE = re.compile(r"[0-9a-f]{40}")
RANDOM = "random"


def hub_id_of(name: str, weights: str | None) -> str | None:
    """The repository that backbone `name` with `weights` comes from; None for files and random weights."""
    if weights is None:
        return architecture(name).hub_id
    path = Path(weights).expanduser()
    is_name = re.fullmatch(r"[\w.-]+/[\w.-]+", weights) and path.suffix not in (".pth", ".pt", ".safetensors")
    return weights if is_name and not path.exists() else None


def newest_commit(hub_id: str, revision: str | None = None) -> str:
    """The whole commit id behind `revision` (a branch, a tag, or None for the main branch) of a repository.

    Offline, or where the hub cannot be reached, that of the copy in the hub's cache. ModelError says what to
    do about a repository that is gated, missing, or out of reach and not in the cache.
    """
    if revision is not None and WHOLE.fullmatch(revision):
        return revision
    try:
        return str(huggingface_hub.HfApi().model_info(hub_id, revision=revision).sha)
    except GatedRepoError as error:
        raise ModelError(
            f"{hub_id} is gated: accept its licence on https://huggingface.co/{hub_id}, then `hf auth login` "
            "or set HF_TOKEN; or pass model.weights=PATH to a copy"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"the hub knows no repository {hub_id}, or it is private: check model.weights, and `hf auth "
            "login` where it is yours"
        ) from error
    except Exception as error:  # offline, or one of the many kinds of the HTTP client below the hub's
        cached = cached_commit(hub_id, revision or "main")
        if cached is None:
            raise ModelError(
                f"the hub could not be asked for the newest commit of {hub_id} ({type(error).__name__}), and "
                "the cache holds no copy: pass model.weights=PATH to the weights, or model.revision=COMMIT "
                f"(https://huggingface.co/{hub_id}/commits/main) once a copy is in the cache"
            ) from error
        return cached


def cached_commit(hub_id: str, branch: str) -> str | None:
    """The commit of `branch` at which the hub's cache holds files of a repository; None if it holds none."""
    folder = Path(constants.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}"
    try:
        commit = read_text(folder / "refs" / branch).strip()
    except (OSError, UnicodeDecodeError):
        return None
    whole = WHOLE.fullmatch(commit) and (folder / "snapshots" / commit / constants.CONFIG_NAME).exists()
    return commit if whole else None
