"""Builds to and from a data set of the Hugging Face hub, by its own client, against `hub_server`."""

import io
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet
import pytest

from maskshards.preprocess.__main__ import main
from tests.preprocess.folder_build import build_words, file_bytes
from tests.preprocess.hub_server import hub

pytest.importorskip("huggingface_hub", reason="the extra 'hf' is not installed")
pytest.importorskip("datasets", reason="the extra 'hf' is not installed")
pytestmark = pytest.mark.slow  # the client reads its address when it is imported: a process for each command


@pytest.fixture
def served(tmp_path):
    """(hub, command): the server, and command(*words, **environment) -> the ended process of a command."""
    with hub() as server:

        def command(*words, **more):
            return subprocess.run(
                [sys.executable, "-W", "ignore", "-m", "maskshards", *map(str, words)],
                env={**os.environ, **server.environment(tmp_path / "home"), **more},
                capture_output=True,
                text=True,
                timeout=300,
            )

        yield server, command


@pytest.fixture
def root(make_root):
    """A source whose splits have the names that most data sets use."""
    found = make_root(training=4, validation=2)
    for kind in ("images", "annotations"):
        for name, usual in (("training", "train"), ("validation", "val")):
            (found / kind / name).rename(found / kind / usual)
    return found


def test_the_hub_gets_the_bytes_of_a_folder_and_gives_them_back(root, tmp_path, served):
    server, command = served
    url, words = "hf://datasets/me/scenes/v1", build_words(root, tmp_path / "out")
    assert main(words) == 0
    refuses = iter([503, None, None, 429, None])
    server.fault = lambda method, path: next(refuses, None) if method == "POST" else None
    done = command(*build_words(root, url))
    assert (done.returncode, "%|" in done.stderr) == (0, False), done.stderr
    assert {name.removeprefix("v1/"): data for name, data in server.files.items()} == file_bytes(
        tmp_path / "out"
    )
    assert sum(b'"deletedFile"' in body for body in server.commits) <= 2  # of the build's own files, a split
    again = command(*build_words(root, url))
    assert f"{url}/train: published already, nothing to do" in again.stdout
    assert command("verify", url, "--against", root, "--workers", "1").stdout.count(" 0 differences") == 2
    assert command("check", url).stdout.count(": ok") == 2


def test_a_data_set_of_the_hub_is_a_source(root, tmp_path, served):
    server, command = served
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {"image": {"_type": "Image"}, "annotation": {"_type": "Image"}}
    for split in ("train", "val"):
        names = sorted(path.stem for path in (root / "images" / split).iterdir())
        cells = {
            "image": [next((root / "images" / split).glob(f"{name}.*")).read_bytes() for name in names],
            "annotation": [(root / "annotations" / split / f"{name}.png").read_bytes() for name in names],
        }
        table = pa.table(
            {name: pa.array([{"bytes": data, "path": None} for data in cells[name]], kind) for name in cells}
        )
        out = io.BytesIO()
        facts = {"huggingface": json.dumps({"info": {"features": features}})}
        pyarrow.parquet.write_table(table.replace_schema_metadata(facts), out)
        server.files[f"data/{split}-00000-of-00001.parquet"] = out.getvalue()
    words = ["--classes", root / "classes.txt", "--reduce-zero-label", "--workers", "1", "--quiet"]
    done = command("build", "--dataset", "hf:me/scenes", *words, "--out", tmp_path / "out")
    assert "out/train: 4 samples" in done.stdout, done.stderr
    assert "out/val: 2 samples" in done.stdout
    checked = command("verify", tmp_path / "out", "--against", "hf:me/scenes", "--workers", "1")
    assert checked.stdout.count(" 0 differences") == 2


def test_what_the_hub_refuses_is_told_at_once(root, served):
    server, command = served
    missing = command(*build_words(root, "hf://datasets/me/nothing"))
    assert missing.returncode == 2
    assert "create it: hf repo create NAME/SET --repo-type dataset" in missing.stderr
    refused = command(*build_words(root, "hf://datasets/me/scenes"), HF_TOKEN="hf_wrong")
    assert refused.returncode == 2
    assert "401 Unauthorized" in refused.stderr
    assert "attempt" not in refused.stderr
    assert [method for method, _ in server.requests].count("POST") == 1
    nowhere = command("build", "--dataset", "hf:me/nothing", "--classes", root / "classes.txt", "--out", "x")
    assert "error: hf:me/nothing cannot be opened: Dataset 'me/nothing' doesn't exist" in nowhere.stderr
