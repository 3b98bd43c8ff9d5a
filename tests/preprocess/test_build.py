"""The build as a whole: what it publishes, how it goes on after every kind of end, and that bytes depend on
the plan alone.
"""

import hashlib
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskshards.preprocess import shard_task
from maskshards.preprocess.__main__ import main
from maskshards.preprocess.build import Part, execute, plan_jobs, prepare
from maskshards.preprocess.destinations import lock
from maskshards.preprocess.destinations.local import LocalDestination
from maskshards.preprocess.destinations.lock import build_lock
from maskshards.preprocess.errors import BuildError
from maskshards.preprocess.plan import BuildSettings
from maskshards.preprocess.sources.opening import SourceRequest, open_source
from maskshards.shards.format.manifest import open_split
from tests.preprocess.folder_build import build_words, contents


@pytest.fixture
def built(make_root, tmp_path):
    """(root, out, contents of out) of an undisturbed build."""
    root = make_root()
    assert main(build_words(root, tmp_path / "undisturbed")) == 0
    return root, tmp_path / "undisturbed", contents(tmp_path / "undisturbed")


def test_what_is_published(built):
    _, out, found = built
    assert sorted(found) == [
        "README.md",
        "classes.json",
        "training/manifest.json",
        "training/samples.parquet",
        "training/training-00000.tar",
        "training/training-00001.tar",
        "validation/manifest.json",
        "validation/samples.parquet",
        "validation/validation-00000.tar",
    ]
    split = open_split(out / "training")
    manifest = split.manifest
    assert (manifest.num_samples, manifest.classes) == (3, ("sky", "road", "tree", "car", "person"))
    keys = [key for number in range(2) for key in split.index(number).keys]
    assert sorted(keys) == [f"training_{number:04d}" for number in range(3)]


def test_bytes_do_not_depend_on_the_number_of_workers_nor_on_the_place_of_the_source(
    built, tmp_path, make_root
):
    _, _, expected = built
    other = make_root("moved/elsewhere")
    assert main(build_words(other, tmp_path / "two", "--workers", "2")) == 0
    assert contents(tmp_path / "two") == expected


def test_a_published_split_is_left_alone_and_other_settings_are_refused(built, capsys):
    root, out, expected = built
    assert main(build_words(root, out)) == 0
    assert "published already" in capsys.readouterr().out
    assert main(build_words(root, out, "--seed", "1")) == 2
    assert "holds a published data set of another plan" in capsys.readouterr().err
    assert contents(out) == expected


def test_an_interrupted_build_goes_on_and_makes_only_what_is_missing(built, tmp_path, monkeypatch):
    root, _, expected = built
    out = tmp_path / "interrupted"
    made = []
    real = shard_task._write

    def write(task, *rest):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(task.shard_name)
        return real(task, *rest)

    monkeypatch.setattr(shard_task, "_write", write)
    assert main(build_words(root, out)) == 130
    assert sorted(name for name in contents(out) if not name.startswith("training/.build")) == [
        "training/training-00000.tar",
        "training/training-00001.tar",
        "validation/.build/plan.json",
    ]
    made.pop()
    assert main(build_words(root, out)) == 0
    assert made == ["training-00000.tar", "validation-00000.tar"]
    assert contents(out) == expected


@pytest.mark.parametrize("spoil", ["shard", "journal", "source"])
def test_what_was_touched_since_is_made_again(built, tmp_path, monkeypatch, spoil):
    root, _, expected = built
    out = tmp_path / "interrupted"
    unpublished(root, out)
    if spoil == "shard":
        (out / "training/training-00001.tar").write_bytes(b"not a shard")
    elif spoil == "journal":
        (out / "training/.build/training-00001.tar.json").write_bytes(b'{"plan": 1}')
    else:
        for path in (root / "images/training").iterdir():
            os.utime(path, ns=(1, 1))
    made = []
    real = shard_task._write
    monkeypatch.setattr(
        shard_task, "_write", lambda task, *rest: made.append(task.shard_name) or real(task, *rest)
    )
    assert main(build_words(root, out)) == 0
    assert made == (
        ["training-00000.tar", "training-00001.tar"] if spoil == "source" else ["training-00001.tar"]
    )
    assert contents(out) == expected


def unpublished(root, out, **settings):
    """All shards of a build, without its manifest."""
    request = SourceRequest("folder", root, classes=root / "classes.txt", reduce_zero_label=True)
    source, plan = open_source(request), BuildSettings(samples_per_shard=2, **settings)
    jobs = plan_jobs(source, source.splits(), plan, lambda split: LocalDestination(out / split))
    execute(jobs, source, plan, map, lambda outcome: None)
    return jobs


def test_an_unfinished_build_with_other_settings_is_cleared(built, tmp_path):
    root, _, expected = built
    unpublished(root, tmp_path / "out", seed=7)
    assert main(build_words(root, tmp_path / "out")) == 0
    assert contents(tmp_path / "out") == expected


def test_a_folder_that_holds_something_else_is_refused(built, tmp_path, capsys):
    root, _, _ = built
    (tmp_path / "mine/training").mkdir(parents=True)
    (tmp_path / "mine/training/thesis.txt").write_text("years of work")
    assert main(build_words(root, tmp_path / "mine")) == 2
    assert "thesis.txt and no build of ours" in capsys.readouterr().err
    assert contents(tmp_path / "mine") == contents(tmp_path / "mine") | {
        "training/thesis.txt": hashlib.sha256(b"years of work").hexdigest()
    }


def test_leftovers_of_a_killed_builder_vanish(built, tmp_path):
    root, out, expected = built
    (out / "training/.build").mkdir()
    (out / "training/.build/training-00000.tar.json").write_text("{}")
    assert main(build_words(root, out)) == 0
    assert contents(out) == expected
    assert not (out / "training/.build").exists()
    jobs = unpublished(root, tmp_path / "again")
    (tmp_path / "again/training/.build/training-00000.tar.abc.partial").write_text("half")
    assert main(build_words(root, tmp_path / "again")) == 0
    assert contents(tmp_path / "again") == expected
    assert len(jobs) == 2


def test_refused_inputs_are_all_listed_and_nothing_is_published(make_root, tmp_path, capsys):
    root, out = make_root(), tmp_path / "out"
    (root / "images/training/training_0000.jpg").write_bytes(b"")
    Image.fromarray(np.full((24, 30), 9, np.uint8)).save(root / "annotations/validation/validation_0000.png")
    (root / "images/validation/lonely.jpg").write_bytes(b"x")
    assert main(build_words(root, out)) == 2
    told = capsys.readouterr().err
    assert "1 input was refused (--allow-rejects is 0), so nothing was built" in told
    assert "images/validation/lonely.jpg: image without a label map" in told
    assert not list(out.rglob("*.tar"))
    assert main(build_words(root, out, "--allow-rejects", "1")) == 2
    told = capsys.readouterr().err
    assert "3 inputs were refused" in told
    assert "images/training/training_0000.jpg: the image file is empty" in told
    assert "images/validation/validation_0000.jpg: label values out of range: 9" in told
    assert "images/validation/lonely.jpg: image without a label map" in told
    assert not list(out.rglob("manifest.json"))
    assert main(build_words(root, out, "--allow-rejects", "2")) == 2
    assert main(build_words(root, out, "--allow-rejects", "3")) == 0
    manifest = open_split(out / "validation").manifest
    assert manifest.num_samples == 1
    assert [reject["name"] for reject in manifest.rejects] == [
        "images/validation/lonely.jpg",
        "images/validation/validation_0000.jpg",
    ]
    assert main(["verify", str(out), "--against", str(root), "--workers", "1"]) == 0


def test_every_kind_of_bad_file_is_named_in_one_build(make_root, tmp_path, capsys):
    root = make_root(training=8)
    images, labels = root / "images/training", root / "annotations/training"
    jpeg = (images / "training_0000.jpg").read_bytes()
    lying = bytearray(jpeg)
    at = lying.index(b"\xff\xc0") + 5
    lying[at : at + 2] = (4000).to_bytes(2, "big")
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    png = (labels / "training_0000.png").read_bytes()
    bomb = png[:8] + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + png[33:]
    (images / "training_0001.jpg").write_bytes(jpeg[:-40])
    (images / "training_0002.jpg").write_bytes(lying)
    (labels / "training_0003.png").write_bytes(bomb)
    (labels / "training_0004.png").write_bytes(b"")
    Image.new("RGB", (30, 24), "red").save(labels / "training_0005.png")
    Image.new("L", (30, 23)).save(labels / "training_0006.png")
    (images / "training_0007.png").write_bytes(png)
    assert main(build_words(root, tmp_path / "out", "--allow-rejects", "2")) == 2
    told = capsys.readouterr().err
    for number, words_of in {
        1: "JPEG does not decode cleanly (Premature end of JPEG file)",
        2: "JPEG does not decode cleanly",
        3: "label map: the header claims 60000x60000 pixels",
        4: "the label map is empty (0 bytes)",
        5: "label map is a 8-bit RGB PNG; expected one channel",
        6: "label map is 30x23, image is 30x24 (width x height)",
        7: "duplicate key 'training_0007'",
    }.items():
        assert f"images/training/training_000{number}.jpg: {words_of}" in told
    assert "images/training/training_0007.png: duplicate key" in told
    assert "8 inputs were refused" in told


def test_mended_inputs_need_only_their_shards(built, tmp_path, monkeypatch):
    root, _, expected = built
    path = root / "images/training/training_0001.jpg"
    good, times = path.read_bytes(), os.stat(path)
    path.write_bytes(good[:50])
    out = tmp_path / "mended"
    assert main(build_words(root, out)) == 2
    path.write_bytes(good)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    made = []
    real = shard_task._write
    monkeypatch.setattr(
        shard_task, "_write", lambda task, *rest: made.append(task.shard_name) or real(task, *rest)
    )
    assert main(build_words(root, out)) == 0
    assert len(made) == 1
    assert contents(out) == expected


def test_removing_a_refused_file_needs_no_shard_again(built, tmp_path, capsys, monkeypatch):
    root, _, expected = built
    lonely, out = root / "images/training/lonely.jpg", tmp_path / "mended"
    lonely.write_bytes(b"x")
    assert main(build_words(root, out)) == 2
    assert not list(out.rglob("*.tar"))
    assert "lonely.jpg: image without a label map" in capsys.readouterr().err
    assert main(build_words(root, out, "--part", "0/1")) == 0  # the limit of parts is that of finish
    lonely.unlink()
    monkeypatch.setattr(shard_task, "_write", None)
    assert main(build_words(root, out)) == 0
    assert contents(out) == expected


def test_a_shard_without_a_good_sample_is_left_out(make_root, tmp_path):
    root = make_root(training=4)
    for number in range(4):
        image = root / f"images/training/training_{number:04d}.jpg"
        shard = plan_of(root).names_of(0)
        if image.name in shard:
            image.write_bytes(b"")
    assert main(build_words(root, tmp_path / "out", "--allow-rejects", "2")) == 0
    manifest = open_split(tmp_path / "out/training").manifest
    assert [shard.name for shard in manifest.shards] == ["training-00001.tar"]
    assert not (tmp_path / "out/training/training-00000.tar").exists()


def plan_of(root):
    request = SourceRequest("folder", root, classes=root / "classes.txt", reduce_zero_label=True)
    source = open_source(request)
    jobs = plan_jobs(
        source, ("training",), BuildSettings(samples_per_shard=2), lambda split: LocalDestination(root / "no")
    )
    return jobs[0].plan


def test_nothing_left_to_publish(make_root, tmp_path, capsys):
    root = make_root(training=1)
    (root / "images/training/training_0000.jpg").write_bytes(b"")
    assert main(build_words(root, tmp_path / "out", "--allow-rejects", "1")) == 2
    assert "every input was refused" in capsys.readouterr().err


def test_a_file_that_vanishes_during_the_build_is_a_refused_input(make_root, tmp_path, capsys, monkeypatch):
    root = make_root(training=2)
    real = shard_task._write

    def write(*arguments):
        (root / "images/training/training_0001.jpg").unlink(missing_ok=True)
        return real(*arguments)

    monkeypatch.setattr(shard_task, "_write", write)
    assert main(build_words(root, tmp_path / "out")) == 2
    assert (
        "training_0001.jpg: images/training/training_0001.jpg cannot be read: No such file"
        in capsys.readouterr().err
    )


def test_a_file_that_changes_during_the_build_is_a_refused_input(make_root, tmp_path, capsys, monkeypatch):
    root = make_root(training=2)
    real = shard_task._write

    def write(*arguments):
        os.utime(root / "annotations/training/training_0001.png", ns=(7, 7))
        return real(*arguments)

    monkeypatch.setattr(shard_task, "_write", write)
    assert main(build_words(root, tmp_path / "out")) == 2
    assert "training_0001.jpg: its files changed during the build" in capsys.readouterr().err
    monkeypatch.setattr(shard_task, "_write", real)
    assert main(build_words(root, tmp_path / "out")) == 0


def test_unicode_dots_and_very_long_names(make_root, tmp_path):
    root = make_root(training=1)
    names = ["straße 東京", "a.b.c", "x" * 240, "-dash_ed", "100%"]
    for folder, ending in (("images", "jpg"), ("annotations", "png")):
        data = (root / f"{folder}/training/training_0000.{ending}").read_bytes()
        for name in names:
            (root / f"{folder}/training/{name}.{ending}").write_bytes(data)
    assert main(build_words(root, tmp_path / "out")) == 0
    split = open_split(tmp_path / "out/training")
    keys = {key for number in range(len(split.manifest.shards)) for key in split.index(number).keys}
    assert {"stra%C3%9Fe%20%E6%9D%B1%E4%BA%AC", "a%2Eb%2Ec", "-dash_ed", "100%25"} < keys
    assert main(["verify", str(tmp_path / "out"), "--against", str(root), "--workers", "1"]) == 0


def test_one_sample_and_an_empty_split(make_root, tmp_path, capsys):
    root = make_root(training=1)
    assert main(build_words(root, tmp_path / "one")) == 0
    assert open_split(tmp_path / "one/training").manifest.num_samples == 1
    (root / "images/void").mkdir()
    (root / "annotations/void").mkdir()
    assert main(build_words(root, tmp_path / "two", "--splits", "void")) == 2
    assert "split 'void' is empty" in capsys.readouterr().err
    assert not (tmp_path / "two/void").exists()


def test_a_disk_that_is_full(make_root, tmp_path):
    root, out = make_root(training=6, height=300, width=400), tmp_path / "out"
    limit = 16 << 10

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "preprocess", *build_words(root, out)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=small_files, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert f"{out}/training/training-00000.tar cannot be written: File too large. " in done.stderr
    assert "the same command goes on from there" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(contents(out)) == ["training/.build/plan.json"]
    assert main(build_words(root, out)) == 0


def test_a_disk_that_is_full_at_any_point(make_root, tmp_path, capsys):
    root, chance, stopped_at = make_root(training=10), random.Random(4), set()
    command = [*build_words(root, ""), "--samples-per-shard", "1"]
    out_at = command.index("--out") + 1
    command[out_at] = str(tmp_path / "undisturbed")
    assert main(command) == 0
    expected = contents(tmp_path / "undisturbed")
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    for number in range(8):
        out = tmp_path / f"out-{number}"
        command[out_at] = str(out)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(2 ** chance.uniform(9, 14)), unlimited[1]))
        try:
            status = main(command)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        if status:
            told = capsys.readouterr().err
            assert told.startswith(f"error: {out}/training")
            assert "cannot be written: " in told
            assert "File too large" in told
            left = contents(out)
            assert not [name for name in left if name.endswith((".partial", ".tmp", "manifest.json"))]
            stopped_at.add(max((Path(name).suffix for name in left if ".build" not in name), default=""))
        assert main(command) == 0
        assert contents(out) == expected
    assert len(stopped_at) > 1


@pytest.mark.skipif(
    not Path("/sys/kernel").is_dir(), reason="no file system here that even root cannot write to"
)
def test_a_destination_that_cannot_be_written(make_root, capsys):
    assert main(build_words(make_root(), "/sys/kernel/out")) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: --out /sys/kernel/out cannot be made a folder: ")
    assert "name a place that can be written to" in told


def test_the_second_builder_of_a_destination_is_refused(make_root, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE_S", 0.0)
    root, out = make_root(), tmp_path / "out"
    with build_lock(out):
        assert main(build_words(root, out)) == 2
        assert main(["finish", str(out)]) == 2
    assert capsys.readouterr().err.count("another builder is at work here") == 2
    assert main(build_words(root, out)) == 0


def test_a_destination_that_is_a_file(make_root, tmp_path, capsys):
    (tmp_path / "out").write_text("hello")
    assert main(build_words(make_root(), tmp_path / "out")) == 2
    assert "out cannot be made a folder: File exists" in capsys.readouterr().err


def living(group):
    """Processes of a group that still run; one that ended but was not collected yet does not."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, member_of = place.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(member_of) == group and state != "Z":
            found.append((place.parent.name, place.with_name("cmdline").read_text()))
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_leave_no_process_and_no_half_written_file(make_root, tmp_path, number):
    root, out = make_root(training=40, height=200, width=300), tmp_path / "out"
    command = [sys.executable, "-m", "preprocess", *build_words(root, out, "--workers", "2")]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # A suite that runs in the background ignores SIGINT, and its children would inherit that.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    ) as builder:
        while not list(out.glob("training/.build/*.tar.json")):
            assert builder.poll() is None
        os.kill(builder.pid, number)
        builder.communicate()
    assert builder.returncode == 128 + number
    deadline = time.monotonic() + 600
    while living(builder.pid) and time.monotonic() < deadline:
        pass  # the kernel takes a moment to bury the last of them
    assert living(builder.pid) == []
    assert not [name for name in contents(out) if name.endswith(".partial") or ".lock" in name]
    assert not list(out.rglob("manifest.json"))
    assert main(build_words(root, out)) == 0
    assert main(build_words(root, tmp_path / "undisturbed")) == 0
    assert contents(out) == contents(tmp_path / "undisturbed")


def test_parts_count_from_zero():
    with pytest.raises(BuildError, match="the last one is 2"):
        Part(3, 3)


def test_parts_of_different_plans_do_not_mix(make_root, tmp_path):
    root = make_root(training=3)
    jobs = unpublished(root, tmp_path / "out")
    other = unpublished(root, tmp_path / "other", seed=4)
    prepare(jobs[0].destination, jobs[0].plan.facts, Part(0, 2))
    with pytest.raises(BuildError, match="the parts would not fit together"):
        prepare(jobs[0].destination, other[0].plan.facts, Part(1, 2))


def test_parts_on_several_machines_and_finish_give_the_same_bytes(built, tmp_path, capsys):
    root, _, expected = built
    out = tmp_path / "parts"
    for part in ("2/3", "0/3"):
        assert main(build_words(root, out, "--part", part)) == 0
        assert main(["finish", str(out)]) == 2
    assert "shards are not there yet" in capsys.readouterr().err
    assert main(build_words(root, out, "--part", "1/3")) == 0
    assert f"maskshards finish {out}" in capsys.readouterr().out
    (out / ".lock-9-of-16").touch()
    assert main(["finish", str(out)]) == 0
    assert contents(out) == expected
    assert main(["finish", str(out)]) == 2
    assert "nothing to finish" in capsys.readouterr().err


def test_refused_inputs_of_parts_are_told_by_finish(make_root, tmp_path, capsys):
    root, out = make_root(training=3), tmp_path / "out"
    (root / "images/training/training_0001.jpg").write_bytes(b"")
    for part in ("0/2", "1/2"):
        assert main(build_words(root, out, "--part", part)) == 0
    assert "1 input refused (finish lists them)" in capsys.readouterr().out
    assert main(["finish", str(out)]) == 2
    assert "training_0001.jpg: the image file is empty" in capsys.readouterr().err
    assert main(["finish", str(out), "--allow-rejects", "1"]) == 0
    assert open_split(out / "training").manifest.num_samples == 2


def test_a_mapping_that_says_the_same_as_a_rule_gives_the_same_shards(built, tmp_path):
    root, _, expected = built
    pairs = ", ".join(f'"{value}": {value - 1 if value else "null"}' for value in range(6))
    (tmp_path / "map.json").write_text(f"{{{pairs}}}")
    options = ["--dataset", "folder", "--root", str(root), "--classes", str(root / "classes.txt"), "--quiet"]
    more = ["--mapping", str(tmp_path / "map.json"), "--samples-per-shard", "2", "--workers", "1"]
    assert main(["build", *options, "--out", str(tmp_path / "mapped"), *more]) == 0
    found = contents(tmp_path / "mapped")
    assert {name: found[name] for name in found if name.endswith(".tar")} == {
        name: expected[name] for name in expected if name.endswith(".tar")
    }
    assert open_split(tmp_path / "mapped/training").manifest.label_rule["mapping"]["3"] == 2
    assert main(["verify", str(tmp_path / "mapped"), "--against", str(root), "--workers", "1"]) == 0


def test_images_that_two_lists_name_are_told(make_root, tmp_path, capsys):
    root = make_root(training=3)
    (root / "lists").mkdir()
    (root / "lists/train.txt").write_text("training_0000\ntraining_0001\n")
    (root / "lists/val.txt").write_text("training_0001\ntraining_0002\n")
    flat = ["--images-folder", "images/training", "--labels-folder", "annotations/training"]
    assert main(build_words(root, tmp_path / "out", *flat, "--lists", "lists")) == 0
    assert "note: train and val share 1 image, such as training_0001.jpg" in capsys.readouterr().err
