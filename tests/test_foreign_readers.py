"""Files of somebody else are opened by one function, which neither waits nor reads without end.

The first test finds whoever opens otherwise; the others hand each reader what is no file to be read.
"""

import ast
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from maskshards.preprocess.destinations.local import LocalDestination
from maskshards.preprocess.errors import RejectedInput, SourceError
from maskshards.preprocess.inputs.classes import read_classes, read_object_info
from maskshards.preprocess.inputs.colours import read_colours
from maskshards.preprocess.inputs.labels import read_mapping
from maskshards.preprocess.inputs.source_files import read_unchanged
from maskshards.preprocess.sources.ade20k import SCENE_TABLE, scene_categories
from maskshards.preprocess.sources.splits import read_names
from maskshards.shards.errors import StoreError
from maskshards.shards.storage.file_lock import holder_of
from maskshards.shards.storage.http_access import Access, trusted
from maskshards.train.checkpoint.checkpoint import check_digest, read_checkpoint
from maskshards.train.checkpoint.train_state import CheckpointError, read_state
from maskshards.train.config.load import load_config
from maskshards.train.config.schema import ConfigError
from maskshards.train.model.backbone.weight_files import WeightsError, read_config, read_entries
from maskshards.train.prediction.arguments import read_names as read_given
from maskshards.train.prediction.find_images import was_written_here
from maskshards.train.prediction.image_files import PredictError
from maskshards.train.tracking.metrics_log import read_metrics

ROOT = Path(__file__).parents[1]
READING = ("read_text", "read_bytes", "open", "load_file", "safe_open", "fromfile", "imread")
LOADING = ("np.load", "torch.load", "json.load", "pickle.load")
# FILE: {what it calls, as often}: and why that is no foreign file opened by its bare name.
CHECKED = "the file was opened by open_regular before: its kind is known"
OWN = "written by this process, or by another part of the same build"
PACKAGED = "comes with the package"
EXCEPTIONS = {
    "train/model/backbone/weight_files.py": (["safe_open", "safe_open", "torch.load"], CHECKED),
    "train/checkpoint/checkpoint.py": (["load_file", "torch.load", "open"], CHECKED),
    "train/prediction/image_files.py": (["Image.open"], "given an open file"),
    "train/trainer/agreement.py": (["path.read_bytes"], PACKAGED),
    "train/trainer/cpu_type.py": (["CPUINFO.read_text"], "/proc/cpuinfo"),
    "train/report/pages.py": (["resources.files(...).joinpath(...).read_text"], PACKAGED),
    "preprocess/inputs/classes.py": (["resources.files(...).joinpath(...).read_text"] * 3, PACKAGED),
    "preprocess/destinations/card.py": (["place.read_text"], PACKAGED),
    "preprocess/inputs/pillow.py": (["Image.open"], "given the bytes"),
    "preprocess/shard_task.py": (["open"], OWN),
    "preprocess/destinations/object_store.py": (["open"], OWN),
    "preprocess/__main__.py": (["os.open"], "/dev/null"),
}
LEFT_OUT = ("train/bench/", "preprocess/bench")  # they measure what they made themselves


def name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return f"{name_of(node.func)}(...)" if isinstance(node, ast.Call) else "..."


def opened(source: str) -> list[str]:
    """What a module calls that opens a file to read, but for the functions of `foreign_file`."""
    tree, found = ast.parse(source), []
    own = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").endswith("foreign_file")
        for alias in node.names
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = name_of(node.func)
        texts = [one.value for one in node.args if isinstance(one, ast.Constant)]
        modes = [text for text in texts if isinstance(text, str) and 0 < len(text) <= 3]
        writes = any(mode[0] in "wax" for mode in modes)
        reads = name in LOADING or name.rpartition(".")[2] in READING
        if reads and name not in own and not writes:
            found.append(name)
    return sorted(found)


def test_who_opens_files_to_read_does_it_by_the_one_function_or_stands_on_the_list() -> None:
    found = {}
    for path in sorted([*(ROOT / "train").rglob("*.py"), *(ROOT / "preprocess").rglob("*.py")]):
        name = str(path.relative_to(ROOT))
        calls = [] if name.startswith(LEFT_OUT) else opened(path.read_text(encoding="utf-8"))
        if calls:
            found[name] = calls
    assert found == {name: sorted(calls) for name, (calls, _) in EXCEPTIONS.items()}


def in_environment(variable: str, read: Callable[[], Any]) -> Callable[[Path], Any]:
    """A reader of the file that an environment variable names."""

    def reader(path: Path) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(variable, str(path))
            return read()

    return reader


READERS: dict[str, tuple[Callable[[Path], Any], tuple[type[Exception], ...]]] = {
    "recipe": (lambda path: load_config([f"config={path}", "output_dir=o"]), (ConfigError,)),
    "class list": (read_classes, (SourceError,)),
    "colour table": (lambda path: read_colours(path, None), (SourceError,)),
    "label mapping": (lambda path: read_mapping(path, 3), (SourceError,)),
    "list of names": (read_names, (SourceError,)),
    "image or label of a data set": (lambda path: read_unchanged(path.parent, path.name), (RejectedInput,)),
    "file of a build": (lambda path: LocalDestination(path.parent).read(path.name), (OSError,)),
    "state.json": (read_state, (CheckpointError,)),
    "digest of a checkpoint's file": (lambda path: check_digest(path, "0" * 64), (CheckpointError,)),
    "model_final.pth": (read_checkpoint, (CheckpointError,)),
    "weights": (read_entries, (WeightsError,)),
    "metrics.jsonl": (read_metrics, (OSError,)),
    "who holds a lock": (holder_of, ()),
    "passwords": (in_environment("NETRC", lambda: Access.from_environment().headers), ()),
    "certificates": (in_environment("SSL_CERT_FILE", trusted), (StoreError,)),
    "names for a prediction": (lambda path: read_given(str(path)), (PredictError, OSError)),
    "ADE20K's classes": (read_object_info, (SourceError,)),
}


NONE_THERE = ("metrics.jsonl", "who holds a lock", "passwords")


@pytest.fixture(autouse=True)
def never_waits() -> Iterator[None]:
    """A reader that waits for a pipe is interrupted in the end, and fails."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise AssertionError("it waited")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def make(kind: str, path: Path) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "too long":
        with path.open("wb") as file:
            file.truncate(1 << 40)  # sparse: takes no room


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_named_by_its_kind_and_not_waited_for(
    reader: str, kind: str, tmp_path: Path
) -> None:
    read, errors = READERS[reader]
    path = tmp_path / "given.yaml"
    make(kind, path)
    if kind == "folder" and reader in ("model_final.pth", "weights"):
        errors = (CheckpointError, WeightsError)  # a folder of weights, of which there are none in it
    elif reader in NONE_THERE:
        assert not read(path)  # as if there were none
        return
    elif (reader, kind) == ("certificates", "folder"):
        return  # a folder of certificates
    with pytest.raises(errors, match=f"{kind}|given.yaml"):
        read(path)


@pytest.mark.parametrize(
    "reader",
    ["recipe", "class list", "colour table", "label mapping", "list of names", "state.json",
     "image or label of a data set"],
)  # fmt: skip
def test_a_file_that_is_longer_than_any_of_its_kind_is_not_read(reader: str, tmp_path: Path) -> None:
    read, errors = READERS[reader]
    make("too long", tmp_path / "given.yaml")
    with pytest.raises(errors, match=r"has 1099511627776 bytes, at most"):
        read(tmp_path / "given.yaml")


ODD_TEXTS = {  # what is no list, no table and no JSON of ours, and costs a careless reader hours or gigabytes
    "long numbers": b"road\n" + b"1" * 6000 + b" x\nroad," + b"1" * 4000 + b",2,3\n",
    "long gaps": b"road\n1" + b" " * 2000 + b"1" + b" " * 2000 + b"x\n1 2 3\na" + b"\t" * 4000 + b"b\n",
    "one long line": b"a" + b" " * 2_000_000 + b"b",
    "many empty lines": b"\n" * 300_000 + b"a",
    "latin-1": b"stra\xdfe\n",
    "UTF-16": "road\ncar\n".encode("utf-16"),
    "a deep nest": b'{"a":' * 5000,
    "many keys": b"{" + b",".join(b'"%d": 0' % n for n in range(100_000)) + b',"99999": 0}',
    "one key again and again": b"{" + b'"0-65535": 0,' * 3_000 + b'"0": 0}',
    "no finite number": b'{"labels": 1e400, "a": NaN, "0": -0}',
    "an alias of aliases": b"a: &a [x, x]\nb: &b [*a, *a, *a]\nc: [*b, *b, *b]\n",
}
TEXT_READERS = ("recipe", "class list", "colour table", "label mapping", "list of names", "state.json",
                "names for a prediction", "ADE20K's classes", "who holds a lock", "passwords")  # fmt: skip


@pytest.mark.parametrize("odd", ODD_TEXTS)
@pytest.mark.parametrize("reader", TEXT_READERS)
def test_no_text_makes_a_reader_of_text_wait_or_fall(reader: str, odd: str, tmp_path: Path) -> None:
    """An error of its own that shows no page of text, or an answer."""
    read, errors = READERS[reader]
    path = tmp_path / "given.yaml"
    path.write_bytes(ODD_TEXTS[odd])
    try:
        read(path)
    except errors as error:
        told = str(error)
        assert len(told) < 6000
        assert "given.yaml" in told


def test_a_table_of_scenes_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / SCENE_TABLE).write_bytes(ODD_TEXTS["latin-1"])
    with pytest.raises(SourceError, match=rf"{SCENE_TABLE} cannot be read: it is not UTF-8"):
        scene_categories(tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "too long"])
def test_a_table_of_classes_that_is_none_marks_no_folder(kind: str, tmp_path: Path) -> None:
    make(kind, tmp_path / "classes.csv")
    assert not was_written_here(tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "too long"])
def test_the_configuration_of_a_backbone_is_a_file_of_bounded_size(kind: str, tmp_path: Path) -> None:
    make(kind, tmp_path / "config.json")
    with pytest.raises(WeightsError, match=r"config\.json: cannot be read"):
        read_config(tmp_path)
