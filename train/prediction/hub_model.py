"""A shared model from the Hugging Face hub: three small files, none of which can run code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.constants import CONFIG_NAME, REPOCARD_NAME, SAFETENSORS_SINGLE_FILE
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from maskshards.train.prediction.image_files import PredictError

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_REASONS: dict[type[Exception], str] = {
    GatedRepoError: "it is gated: ask for access on its page, then run `hf auth login`",
    RepositoryNotFoundError: "there is no such repository, or it is private: check the name, or run "
    "`hf auth login`",
    RevisionNotFoundError: "it has no such revision",
    LocalEntryNotFoundError: "the hub cannot be reached and the model is not in the cache: go online once",
}


def is_hub_id(text: str) -> bool:
    """Whether `text` has the form owner/name."""
    return _HUB_ID.fullmatch(text) is not None


def fetch_model(hub_id: str, **fetching: Any) -> Path:
    """The folder of `hub_id` in the cache, fetched if need be. PredictError says why it cannot be had."""
    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                hub_id, allow_patterns=[CONFIG_NAME, SAFETENSORS_SINGLE_FILE, REPOCARD_NAME], **fetching
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        kinds = (reason for kind, reason in _REASONS.items() if isinstance(error, kind))
        reason = next(kinds, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        raise PredictError(
            f"{hub_id} is no folder here and cannot be fetched from the Hugging Face hub: {reason}"
        ) from error
    if not (folder / CONFIG_NAME).is_file() or not (folder / SAFETENSORS_SINGLE_FILE).is_file():
        raise PredictError(
            f"{hub_id} holds no model of maskshards: expected {CONFIG_NAME} and "
            f"{SAFETENSORS_SINGLE_FILE}, as `maskshards export --format huggingface` writes them"
        )
    return folder
