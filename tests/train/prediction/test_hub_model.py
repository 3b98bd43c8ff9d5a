"""A model on the hub: only its three files are asked for, and every failure says what to do."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from maskshards.train.prediction.hub_model import fetch_model, is_hub_id
from maskshards.train.prediction.image_files import PredictError

ANSWER: Any = SimpleNamespace(headers={}, request=None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("owner/name", True),
        ("owner/na.me-2", True),
        ("name", False),
        ("a/b/c", False),
        ("/a/b", False),
        ("../b", False),
        ("a/..", False),
        ("./b", False),
    ],
)
def test_hub_ids_are_told_from_paths(text, expected):
    assert is_hub_id(text) is expected


def test_only_the_models_files_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).touch()
    asked = {}

    def download(repo_id, **options):
        asked[repo_id] = options
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert fetch_model("owner/name", revision="main") == tmp_path
    assert asked == {
        "owner/name": {
            "allow_patterns": ["config.json", "model.safetensors", "README.md"],
            "revision": "main",
        }
    }
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(PredictError, match=r"holds no model of maskshards: expected config\.json"):
        fetch_model("owner/name")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (GatedRepoError("no", response=ANSWER), "it is gated: ask for access"),
        (RepositoryNotFoundError("no", response=ANSWER), "there is no such repository, or it is private"),
        (LocalEntryNotFoundError("no"), "cannot be reached and the model is not in the cache"),
        (OSError("disk full"), "OSError: disk full"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_failures_say_what_to_do(error, words, monkeypatch):
    def download(*_args, **_options):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(PredictError, match=words):
        fetch_model("owner/name")
