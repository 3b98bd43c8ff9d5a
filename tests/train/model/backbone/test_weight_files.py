"""Files that are not what they should be are named, with what to do; nothing in them is run."""

import hashlib
import json
import os
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from maskshards.train.model.backbone.architectures import architecture
from maskshards.train.model.backbone.weight_files import WeightsError, find_weights, read_config, read_entries

ARCH = architecture("dinov3_tiny16")


class Planted:
    """Would create a file if anything unpickled it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_entries_of_torch_safetensors_and_sharded_folders_are_the_same(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(2, 3), "b": torch.randn(4)}
    torch.save({"teacher": tensors}, tmp_path / "x.pth")
    save_file(tensors, tmp_path / "x.safetensors")
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, tensor in tensors.items():
        save_file({name: tensor}, folder / f"model-{name}.safetensors")
    index = {"weight_map": {name: f"model-{name}.safetensors" for name in tensors}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for path in (tmp_path / "x.pth", tmp_path / "x.safetensors", folder):
        names, entries = read_entries(path)
        assert sorted(names) == ["a", "b"]
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in entries)


def test_an_old_torch_file_that_is_no_zip_is_read(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    assert [name for name, _ in read_entries(tmp_path / "x.pth")[1]] == ["a"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"PK\x03\x04 cut short", "cannot be read as weights"),
        (b"", "cannot be read as weights"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_only_look_like_weights(tmp_path: Path, content: bytes, words: str, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=words) as caught:
        read_entries(path)
    assert str(path) in str(caught.value)


def test_a_safetensors_header_may_be_as_long_as_a_tag_is_spelt(tmp_path: Path) -> None:
    """Its length comes first: 0x3C20 reads as a blank and "<"."""
    path, length = tmp_path / "x.safetensors", 0x3C20
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
    path.write_bytes(length.to_bytes(8, "little") + header + bytes(4))
    assert read_entries(path)[0] == ["a"]


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"a": Planted(tmp_path / "ran")}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="never run"):
        read_entries(tmp_path / "x.pth")
    assert not (tmp_path / "ran").exists()


def test_a_file_that_holds_something_else_than_tensors(tmp_path: Path) -> None:
    torch.save({"step": 3}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="dictionary of tensors"):
        read_entries(tmp_path / "x.pth")


def test_the_digest_in_a_file_name_is_checked(tmp_path: Path) -> None:
    plain = tmp_path / "x.pth"
    torch.save({"a": torch.ones(2)}, plain)
    digest = hashlib.sha256(plain.read_bytes()).hexdigest()[:8]
    right, wrong = tmp_path / f"x-{digest}.pth", tmp_path / "x-0123abcd.pth"
    right.write_bytes(plain.read_bytes())
    wrong.write_bytes(plain.read_bytes())
    assert read_entries(right)[0] == ["a"]
    with pytest.raises(WeightsError, match=f"begins with 0123abcd, the file has {digest}"):
        read_entries(wrong)


def test_a_folder_without_weights_or_config_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(WeightsError, match=r"found notes\.txt"):
        read_entries(tmp_path)
    with pytest.raises(WeightsError, match=r"config\.json"):
        read_config(tmp_path)


NO_NAMES = ('""', '".."', '"."', "5", "null", "[]", '"../x.safetensors"')


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"weight_map": 3}', *(f'{{"weight_map": {{"a": {name}}}}}' for name in NO_NAMES)],
)
def test_a_broken_index_of_shards_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(WeightsError, match=r"model\.safetensors\.index\.json: cannot be read.*again"):
        read_entries(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=r"model-00001-of-00002\.safetensors: cannot be opened"):
        read_entries(tmp_path)


def test_paths_are_found_and_missing_ones_are_errors(tmp_path: Path) -> None:
    assert find_weights(ARCH, str(tmp_path), None) == tmp_path
    for missing in (str(tmp_path / "no.pth"), "weights/no.pth", "no-such-word", "a/b/c"):
        with pytest.raises(WeightsError, match="no such file or folder"):
            find_weights(ARCH, missing, None)


def test_no_published_weights_means_an_error_and_never_random_ones() -> None:
    with pytest.raises(WeightsError, match=r"model\.weights=random"):
        find_weights(ARCH, None, None)


COMMIT = "0123456789abcdef" * 2 + "01234567"


def test_the_published_hub_id_is_asked_for_at_the_revision(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def download(hub_id: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((hub_id, revision))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find_weights(architecture("dinov3_vitl16"), None, COMMIT) == tmp_path
    assert find_weights(ARCH, "someone/their-dinov3", COMMIT) == tmp_path
    assert asked == [("facebook/dinov3-vitl16-pretrain-lvd1689m", COMMIT), ("someone/their-dinov3", COMMIT)]


class Hub(BaseHTTPRequestHandler):
    """What the Hugging Face hub answers about one model that holds config.json; the paths that were asked."""

    asked: ClassVar[list[str]] = []
    content = b'{"model_type": "dinov3_vit"}'

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if "/api/" not in self.path:
            body, kind = self.content, "application/octet-stream"
        else:
            listing = [{"type": "file", "path": "config.json", "oid": "a" * 40, "size": len(self.content)}]
            siblings = [{"rfilename": "config.json"}]
            facts = {"id": "someone/their-dinov3", "sha": COMMIT, "siblings": siblings}
            body, kind = json.dumps(listing if "/tree/" in self.path else facts).encode(), "application/json"
        self.send_response(200)
        for name, value in {
            "Content-Type": kind, "Content-Length": str(len(body)), "ETag": '"abc"', "X-Repo-Commit": COMMIT,
        }.items():  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The folder in which downloads from a hub on the loopback are kept."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    place = f"http://127.0.0.1:{server.server_port}"
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", place)
    template = place + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(Hub, "asked", [])
    yield tmp_path / "hub"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("revision", [None, "main", "v1.0", COMMIT[:12], COMMIT.upper(), COMMIT + "0"])
def test_what_is_no_commit_is_refused_with_the_commit_that_it_is(revision: str | None, hub: Path) -> None:
    with pytest.raises(WeightsError, match=f"say model.revision={COMMIT}$"):
        find_weights(ARCH, "someone/their-dinov3", revision)
    assert Hub.asked
    assert not any("/resolve/" in path for path in Hub.asked)
    assert not hub.exists()


def test_a_commit_is_fetched_and_nothing_else_is_asked_for(hub: Path) -> None:
    folder = find_weights(ARCH, "someone/their-dinov3", COMMIT)
    assert folder.is_relative_to(hub)
    assert (folder / "config.json").read_bytes() == Hub.content
    assert Hub.asked
    assert all(COMMIT in path for path in Hub.asked)


def test_without_a_hub_the_refusal_says_where_commits_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise OSError("nobody there")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    message = r"is not set.*\n.*OSError: nobody there.*someone/their-dinov3/commits/main.*\n.*model\.weights="
    with pytest.raises(WeightsError, match=message):
        find_weights(ARCH, "someone/their-dinov3", None)
    with pytest.raises(WeightsError) as caught:
        find_weights(ARCH, "facebook/dinov2-small", None)
    assert "gated" not in str(caught.value)


def test_a_refused_download_says_how_to_get_access(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> str:
        raise OSError("401 Client Error")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(WeightsError) as caught:
        find_weights(architecture("dinov3_vits16"), None, COMMIT)
    text = str(caught.value)
    assert "facebook/dinov3-vits16-pretrain-lvd1689m" in text
    assert "ask for access" in text
    assert "model.weights=PATH" in text


@pytest.mark.parametrize("member", ["data.pkl", "data/0"])
def test_archives_with_compressed_members_are_refused_before_they_are_unpacked(
    member: str, tmp_path: Path
) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "good.pth")
    with zipfile.ZipFile(tmp_path / "good.pth") as good, zipfile.ZipFile(tmp_path / "bomb.pth", "w") as bomb:
        for one in good.infolist():
            packed = zipfile.ZIP_DEFLATED if one.filename.endswith(member) else zipfile.ZIP_STORED
            content = b"\0" * (1 << 20) if packed == zipfile.ZIP_DEFLATED else good.read(one)
            bomb.writestr(one.filename, content, compress_type=packed)
    with pytest.raises(WeightsError, match=rf"{member} is compressed, as torch\.save never writes"):
        read_entries(tmp_path / "bomb.pth")


def test_pipes_and_endless_files_are_no_weights(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "zero.pth").symlink_to("/dev/zero")
    for name in ("pipe.pth", "zero.pth"):
        with pytest.raises(WeightsError, match="cannot be opened"):
            read_entries(tmp_path / name)
