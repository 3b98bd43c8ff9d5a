"""The command: its words, what it leaves behind, and what it says when things go wrong."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskshards.train.predict import main, parse
from maskshards.train.prediction.image_files import PredictError
from maskshards.train.predictor import load_model
from tests.train.trained_run import NAMES, photo, save_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for k, (name, size) in enumerate(
        [("a.jpg", (50, 70)), ("deep/b.png", (64, 40)), ("c.gif.JPG", (48, 48))]
    ):
        picture = Image.fromarray(photo(*size, seed=k))
        picture.save(folder / name, format="PNG" if name.endswith("png") else "JPEG", quality=95)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.jpg").write_text("no image either")
    return folder


def run(checkpoint, *words):
    return main([str(checkpoint), *map(str, words), "--device", "cpu"])


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_folder_becomes_label_maps_and_pictures(checkpoint, photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(checkpoint, photos, "--output", out) == 0
    told = capsys.readouterr()
    assert told.out.startswith(f"3 images labelled: {out}/labels and {out}/overlays\n")
    assert "passed over 2 files: 1 hidden, 1 .txt" in told.err
    assert files(out) == [
        "classes.csv", "labels/a.png", "labels/c.gif.png", "labels/deep/b.png", "overlays/a.jpg",
        "overlays/c.gif.jpg", "overlays/deep/b.jpg",
    ]  # fmt: skip
    model = load_model(checkpoint, device="cpu")
    for name, path in (("a", "a.jpg"), ("deep/b", "deep/b.png"), ("c.gif", "c.gif.JPG")):
        found = np.array(Image.open(out / "labels" / f"{name}.png"))
        assert np.array_equal(found, model.predict(photos / path))
    with (out / "classes.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == NAMES
    assert [row["source_value"] for row in rows] == ["1", "2", "3", "4"]  # of a data set with the zero rule


def test_the_older_words_mean_the_same(checkpoint, photos, tmp_path):
    words = [f"checkpoint={checkpoint}", f"inputs={photos / 'a.jpg'}", f"inputs={photos / 'deep'}"]
    assert main([*words, f"output_dir={tmp_path / 'old'}", "device=cpu"]) == 0
    assert run(checkpoint, photos / "a.jpg", photos / "deep", "--output", tmp_path / "new") == 0
    assert files(tmp_path / "old") == files(tmp_path / "new")
    for name in files(tmp_path / "old"):
        assert (tmp_path / "old" / name).read_bytes() == (tmp_path / "new" / name).read_bytes()


def test_keys_of_the_configuration_can_be_overridden(checkpoint, photos, tmp_path):
    one = photos / "a.jpg"
    assert run(checkpoint, one, "-o", tmp_path / "plain") == 0
    assert run(checkpoint, one, "-o", tmp_path / "tta", "eval.use_tta=true", "eval.mode=whole") == 0
    plain, tta = (np.array(Image.open(tmp_path / kind / "labels" / "a.png")) for kind in ("plain", "tta"))
    assert plain.shape == tta.shape == (50, 70)
    assert (plain != tta).any()


def test_options_shape_the_outputs(checkpoint, photos, tmp_path):
    out = tmp_path / "out"
    options = ["--ids", "source", "--palette", "--scores", "--no-overlay", "--batch", "1", "--threads", "1"]
    assert run(checkpoint, photos / "a.jpg", "--output", out, *options) == 0
    assert files(out) == ["classes.csv", "labels/a.png", "scores/a.npy"]
    scores = np.load(out / "scores/a.npy", allow_pickle=False)
    with Image.open(out / "labels/a.png") as labels:
        assert labels.mode == "P"
        assert np.array_equal(np.array(labels), load_model(checkpoint).predict(photos / "a.jpg") + 1)
    assert scores.shape == (4, 50, 70)


def test_values_of_the_source_need_a_checkpoint_that_knows_them(photos, tmp_path, capsys):
    run_of_old = save_run(tmp_path / "run", label_rule=None)
    assert run(run_of_old, photos, "--output", tmp_path / "out", "--ids", "source") == 2
    assert "--ids source: the checkpoint does not say" in capsys.readouterr().err
    assert run(run_of_old, photos / "a.jpg", "--output", tmp_path / "out") == 0
    assert "source_value" not in (tmp_path / "out/classes.csv").read_text()


def test_a_bad_file_is_listed_at_the_end_and_the_others_are_labelled(checkpoint, photos, tmp_path, capsys):
    data = (photos / "a.jpg").read_bytes()
    (photos / "a.jpg").write_bytes(data[: len(data) // 2])
    assert run(checkpoint, photos, "--output", tmp_path / "out") == 1
    told = capsys.readouterr()
    assert told.out.startswith("2 images labelled")
    assert "1 of 3 images were not labelled:\n" in told.err
    assert f"  {photos}/a.jpg: cannot be read as an image" in told.err
    assert files(tmp_path / "out" / "labels") == ["c.gif.png", "deep/b.png"]
    assert run(checkpoint, photos / "a.jpg", "--output", tmp_path / "none") == 2  # not a single one
    assert capsys.readouterr().out == "0 images labelled\n"


def test_outputs_may_lie_at_or_above_the_inputs(checkpoint, photos, capsys):
    for _ in range(2):
        assert run(checkpoint, photos, "--output", photos) == 0
        assert run(checkpoint, photos, "--output", photos.parent) == 0
    assert files(photos / "labels") == ["a.png", "c.gif.png", "deep/b.png"]
    assert "3 images labelled" in capsys.readouterr().out


def test_a_bare_weights_file_needs_a_recipe_and_takes_names(checkpoint, photos, tmp_path, capsys):
    bare = tmp_path / "head.pth"
    bare.write_bytes(Path(checkpoint).read_bytes())
    assert run(bare, photos / "a.jpg", "--output", tmp_path / "out") == 2
    assert "give the recipe of its training: --recipe FILE" in capsys.readouterr().err
    recipe, names = tmp_path / "recipe.yaml", tmp_path / "names.txt"
    recipe.write_text(
        "model: {dino_hub: dinov3_tiny16, weights: random}\n"
        "decoder_head: {type: linear, num_classes: 4}\n"
        "transforms: {eval: {img_size: 48}}\n"
        "eval: {crop_size: 48, stride: 32}\n"
    )
    names.write_text("w\nx\n\ny\nz\n")
    words = ["--recipe", recipe, "--classes", names]
    assert run(bare, photos / "a.jpg", "--output", tmp_path / "out", *words) == 0
    assert (tmp_path / "out/classes.csv").read_text().splitlines()[4].startswith("3,z,")
    names.write_text("w\nx\n")
    assert run(bare, photos / "a.jpg", "--output", tmp_path / "out", *words) == 2
    assert "2 class names" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "RUN is missing; usage: maskshards predict RUN IMAGES... --output OUT"),
        (["x"], "IMAGES is missing"),
        (["x", "y"], "--output is missing"),
        (["x", "/no/such/place", "--output", "z"], "input /no/such/place does not exist"),
        (["/no/such/run", "{photos}", "--output", "{out}"], "/no/such/run"),
        (["{checkpoint}", "{photos}", "--output", "{out}", "eval.mod=whole"], "eval.mode"),
        (["{checkpoint}", "{photos}", "--output", "{out}", "--device", "tpu9x"], "device=tpu9x is no"),
        (
            ["{checkpoint}", "{empty}", "--output", "{out}"],
            "holds no image that can be read here: it is empty",
        ),
        (["{checkpoint}", "{photos}", "--output", "{out}", "--batch", "0"], "expected at least 1"),
    ],
)
def test_faults_of_the_command_line(words, message, checkpoint, photos, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    places = {
        "checkpoint": checkpoint,
        "photos": photos,
        "out": tmp_path / "out",
        "empty": tmp_path / "empty",
    }
    assert main([word.format(**places) for word in words]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ")
    assert message in told.err
    assert "Traceback" not in told.err
    assert not (tmp_path / "out").exists()


def test_words_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.jpg").touch()
    (tmp_path / "inputs=x").touch()
    request = parse(["runs/x", "-o", "out", "a=b.jpg", "eval.use_tta=true", "inputs=x", "c.jpg"])
    assert request.run == "runs/x"
    assert request.inputs == ("a=b.jpg", "inputs=x", "c.jpg")
    assert request.overrides == ("eval.use_tta=true",)
    with pytest.raises(PredictError, match="RUN is missing"):
        parse(["-o", "x"])
    with pytest.raises(SystemExit):
        parse(["--nosuch"])


def test_help_is_whole_and_loads_no_torch():
    program = (
        "import sys; from maskshards.train.predict import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as end:\n    sys.exit(end.code or ('torch' in sys.modules) * 3)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words = ("example:", "--ids", "label values", "--palette", "--scores", "--no-overlay", "exit status")
    for word in ("OUT/overlays/NAME.jpg", *words):
        assert word in done.stdout


def test_another_backbone_than_in_training_is_refused(tmp_path, photos, capsys):
    other = save_run(tmp_path / "run", backbone_digest="0123")
    assert run(other, photos, "--output", tmp_path / "out") == 2
    assert "digest 0123, but model.dino_hub=dinov3_tiny16 from random has digest" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong", [{"step": -1}, {"class_names": 7}, {"config": {"nosuch": 1}}, {"config": {"bs": "many"}}]
)
def test_facts_that_are_none_are_refused(wrong, tmp_path, photos, capsys):
    hostile = save_run(tmp_path / "run")
    facts = json.loads(hostile.with_suffix(".json").read_text())
    del facts["checksum"]
    hostile.with_suffix(".json").write_text(json.dumps(facts | wrong))
    assert run(hostile, photos, "--output", tmp_path / "out") == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_changed_facts_are_damage(tmp_path, photos, capsys):
    changed = save_run(tmp_path / "run")
    facts = json.loads(changed.with_suffix(".json").read_text())
    facts["class_names"].reverse()
    changed.with_suffix(".json").write_text(json.dumps(facts))
    assert run(changed, photos, "--output", tmp_path / "out") == 2
    assert "model_final.json is damaged" in capsys.readouterr().err


def test_a_head_that_is_not_the_checkpoints_is_refused(checkpoint, photos, tmp_path, capsys):
    words = [
        "decoder_head.type=m2f",
        "decoder_head.hidden_dim=32",
        "decoder_head.backbone_out_layers=FOUR_LAST",
    ]
    assert run(checkpoint, photos, "--output", tmp_path / "out", *words) == 2
    assert "is of another model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_odd_names_are_written_and_told_without_harm(checkpoint, tmp_path, capsysbinary):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in (b"new\nline.png", b"\xff\xfe.png", b"x" * 250 + b".png"):
        with open(os.fsencode(folder) + b"/" + name, "wb") as file:
            Image.fromarray(photo()).save(file, format="PNG")
    (folder / "\x1b[31mred.png").write_text("no image")
    assert run(checkpoint, folder, "--output", tmp_path / "out") == 1
    told = capsysbinary.readouterr()
    assert b"3 images labelled" in told.out
    assert b"\x1b" not in told.err
    assert rb"\x1b[31mred.png: cannot be read" in told.err


def test_a_terminated_run_leaves_whole_files_only(checkpoint, photos, tmp_path, monkeypatch):
    """The signal comes when the first image is done, as from a scheduler."""
    from maskshards.train.prediction import label_files

    real = label_files.write_one

    def write_then_end(*arguments):
        real(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(label_files, "write_one", write_then_end)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        run(checkpoint, photos, "--output", tmp_path / "out", "--threads", "1", "--batch", "1")
    assert signal.getsignal(signal.SIGTERM) is before
    assert stopped.value.code == 128 + signal.SIGTERM
    for name in files(tmp_path / "out"):
        assert not Path(name).name.startswith(".")
        if name.endswith((".png", ".jpg")):
            Image.open(tmp_path / "out" / name).load()


def test_faults_of_the_system_begin_with_the_file(checkpoint, photos, tmp_path, capsys):
    assert run(checkpoint, photos, "--output", tmp_path / "o", "--classes", tmp_path / "nope.txt") == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/nope.txt: No such file or directory\n"
    (tmp_path / "file").touch()
    assert run(checkpoint, photos, "--output", tmp_path / "file" / "below") == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/file/below: Not a directory\n"
