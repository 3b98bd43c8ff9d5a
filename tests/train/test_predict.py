import csv
import json
import os
import signal
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskshards.train import predict as module
from maskshards.train.checkpoint.checkpoint import TrainState, save_final
from maskshards.train.config.load import TrainConfig, to_plain
from maskshards.train.predict import main
from maskshards.train.report.palette import class_colours

NAMES = ["sky", "sea", "<sand>", "tür"]


def _config():
    config = TrainConfig()
    config.model.dino_hub, config.model.weights = "dinov3_tiny16", "random"
    config.datasets.root = "/nowhere/at/all"
    config.decoder_head.type = "linear"
    config.decoder_head.num_classes = len(NAMES)
    config.transforms.eval.img_size = 48
    config.eval.crop_size, config.eval.stride = 48, 32
    return config


def _save_run(folder, config, digest=None):
    """What a finished run leaves: model_final.pth and the facts beside it."""
    segmenter = module.build_model(config, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    weights = segmenter.decoder.state_dict()
    for key, value in weights.items():
        if key.endswith("conv.weight"):
            value.copy_(torch.randn(value.shape, generator=generator))
    state = TrainState(
        step=1,
        position=2,
        fingerprint="f",
        global_batch=2,
        seed=0,
        backbone=config.model.dino_hub,
        backbone_digest=digest or segmenter.backbone.digest,
        class_names=NAMES,
        config=to_plain(config),
    )
    assert asdict(state)
    folder.mkdir()
    return save_final(folder, state, weights)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return _save_run(tmp_path_factory.mktemp("trained") / "run", _config())


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for name, size in [("a.jpg", (50, 70)), ("deep/b.png", (64, 40)), ("c.gif.JPG", (48, 48))]:
        coarse = Image.fromarray(rng.integers(0, 256, size=(5, 6, 3), dtype=np.uint8))
        coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC).save(
            folder / name, format="PNG" if name.endswith("png") else "JPEG", quality=95
        )
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.jpg").write_text("no image either")
    return folder


def _run(checkpoint, inputs, output, *more):
    return main([f"checkpoint={checkpoint}", f"inputs={inputs}", f"output_dir={output}", "device=cpu", *more])


def test_a_folder_becomes_label_maps_and_pictures(checkpoint, photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert _run(checkpoint, photos, out) == 0
    assert "3 images labelled" in capsys.readouterr().out
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert files == [
        "classes.csv",
        "labels/a.png",
        "labels/c.gif.png",
        "labels/deep/b.png",
        "overlays/a.jpg",
        "overlays/c.gif.jpg",
        "overlays/deep/b.jpg",
    ]
    found = set()
    for name, size in [("a", (50, 70)), ("deep/b", (64, 40)), ("c.gif", (48, 48))]:
        with Image.open(out / "labels" / f"{name}.png") as labels:
            assert labels.mode == "L"
            ids = np.array(labels)
        assert ids.shape == size
        found.update(np.unique(ids).tolist())
        with Image.open(out / "overlays" / f"{name}.jpg") as picture:
            assert picture.width > size[1]  # the legend stands beside it
            assert picture.height >= size[0]
    assert found <= set(range(4))
    assert len(found) > 1
    with (out / "classes.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == NAMES
    assert [int(rows[2][part]) for part in ("red", "green", "blue")] == class_colours(4)[2].tolist()


def test_one_image_and_overridden_settings(checkpoint, photos, tmp_path):
    assert _run(checkpoint, photos / "a.jpg", tmp_path / "plain") == 0
    assert _run(checkpoint, photos / "a.jpg", tmp_path / "tta", "eval.use_tta=true", "eval.mode=whole") == 0
    plain, tta = (np.array(Image.open(tmp_path / kind / "labels" / "a.png")) for kind in ("plain", "tta"))
    assert plain.shape == tta.shape == (50, 70)
    assert (plain != tta).any()


def test_labels_equal_the_model_asked_directly(checkpoint, photos, tmp_path):
    assert _run(checkpoint, photos / "deep" / "b.png", tmp_path / "out") == 0
    given = {"checkpoint": str(checkpoint), "device": "cpu"}
    predictor = module.load_predictor(given, [])
    image = np.array(Image.open(photos / "deep" / "b.png").convert("RGB"))
    assert np.array_equal(np.array(Image.open(tmp_path / "out/labels/b.png")), predictor.label_map(image))
    assert not predictor.segmenter.decoder.training


def test_more_than_255_classes_get_16_bits(tmp_path, photos):
    config = _config()
    config.decoder_head.num_classes = 300
    given = _save_run(tmp_path / "run", config)
    facts = given.with_suffix(".json")
    stored = json.loads(facts.read_text())
    del stored["checksum"]
    stored["class_names"] = [str(k) for k in range(300)]
    facts.write_text(json.dumps(stored))
    assert _run(given, photos / "a.jpg", tmp_path / "out") == 0
    with Image.open(tmp_path / "out/labels/a.png") as labels:
        assert labels.mode == "I;16"
        assert np.array(labels).max() > 255


def test_a_bare_weights_file_needs_a_recipe_and_takes_names(checkpoint, photos, tmp_path, capsys):
    bare = tmp_path / "head.pth"
    bare.write_bytes(Path(checkpoint).read_bytes())
    assert _run(bare, photos / "a.jpg", tmp_path / "out") == 2
    assert (
        "comes without a configuration; give the recipe of its training as config=" in capsys.readouterr().err
    )
    recipe, names = tmp_path / "recipe.yaml", tmp_path / "names.txt"
    recipe.write_text(
        "model: {dino_hub: dinov3_tiny16, weights: random}\n"
        "decoder_head: {type: linear, num_classes: 4}\n"
        "transforms: {eval: {img_size: 48}}\n"
        "eval: {crop_size: 48, stride: 32}\n"
    )
    names.write_text("w\nx\n\ny\nz\n")
    assert _run(bare, photos / "a.jpg", tmp_path / "out", f"config={recipe}", f"classes={names}") == 0
    assert (tmp_path / "out/classes.csv").read_text().splitlines()[4].startswith("3,z,")
    assert _run(checkpoint, photos / "a.jpg", tmp_path / "same") == 0
    same = [Image.open(tmp_path / run / "labels/a.png") for run in ("out", "same")]
    assert np.array_equal(*map(np.array, same))
    names.write_text("w\nx\n")
    assert _run(bare, photos / "a.jpg", tmp_path / "out", f"config={recipe}", f"classes={names}") == 2
    assert "2 class names" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["checkpoint=x", "inputs=y"], "output_dir= is missing; usage: maskshards predict"),
        (["--checkpoint", "x"], "argument '--checkpoint' is not of the form key=value"),
        (["checkpoint=x", "inputs=/no/such/place", "output_dir=z"], "inputs=/no/such/place does not exist"),
        (["checkpoint=/no/such/run", "inputs={photos}", "output_dir={out}"], "/no/such/run"),
        (
            ["checkpoint={checkpoint}", "inputs={photos}/deep/..", "output_dir={out}", "eval.mod=whole"],
            "eval.mode",
        ),
        (
            ["checkpoint={checkpoint}", "inputs={photos}", "output_dir={out}", "device=tpu9x"],
            "device=tpu9x is no",
        ),
        (
            ["checkpoint={checkpoint}", "inputs={empty}", "output_dir={out}"],
            "holds no image; looked for .jpg",
        ),
    ],
)
def test_faults_of_the_command_line(arguments, message, checkpoint, photos, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    places = {
        "checkpoint": checkpoint,
        "photos": photos,
        "out": tmp_path / "out",
        "empty": tmp_path / "empty",
    }
    assert main([argument.format(**places) for argument in arguments]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ")
    assert message in told.err
    assert "Traceback" not in told.err
    assert not (tmp_path / "out").exists()


def test_help_says_what_is_written(capsys):
    assert main(["--help"]) == 0
    assert "OUT/overlays/NAME.jpg" in capsys.readouterr().out


def test_a_truncated_image_is_named_and_nothing_half_written_stays(checkpoint, photos, tmp_path, capsys):
    data = (photos / "a.jpg").read_bytes()
    (photos / "a.jpg").write_bytes(data[: len(data) // 2])
    assert _run(checkpoint, photos, tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert "a.jpg cannot be read as an image: " in told
    assert "get a good copy" in told
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["classes.csv"]


def test_two_images_of_one_name_are_refused(checkpoint, photos, tmp_path, capsys):
    (photos / "a.png").write_bytes((photos / "deep" / "b.png").read_bytes())
    assert _run(checkpoint, photos, tmp_path / "out") == 2
    assert "would both be written as a; rename one" in capsys.readouterr().err


def test_sixteen_bit_images_are_refused_and_rotated_ones_are_turned(checkpoint, tmp_path, capsys):
    deep = tmp_path / "deep.png"
    Image.fromarray(np.zeros((20, 20), np.uint16)).save(deep)
    assert _run(checkpoint, deep, tmp_path / "out") == 2
    assert "deep.png has mode I;16; convert it" in capsys.readouterr().err
    turned, exif = tmp_path / "turned.jpg", Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 30), (200, 10, 10)).save(turned, exif=exif)
    assert module.read_image(turned).shape == (60, 30, 3)


def test_another_backbone_than_in_training_is_refused(tmp_path, photos, capsys):
    run = _save_run(tmp_path / "run", _config(), digest="0123")
    assert _run(run, photos, tmp_path / "out") == 2
    assert "digest 0123, but model.weights=random has digest" in capsys.readouterr().err


@pytest.mark.parametrize(("recorded", "rule"), [("offset", "offset"), ("size", "size"), (None, "size")])
def test_the_rule_for_positions_is_the_checkpoints(recorded, rule, tmp_path):
    config = _config()
    config.model.dino_hub, config.model.position_rule = "dinov2_tiny14", recorded
    run = _save_run(tmp_path / "run", config)
    assert module.load_predictor({"checkpoint": str(run)}, []).segmenter.backbone.position_rule == rule
    other = {"size": "offset", "offset": "size"}[rule]
    with pytest.raises(module.PredictError, match=f"position_rule={rule}, not {other}"):
        module.load_predictor({"checkpoint": str(run)}, [f"model.position_rule={other}"])


def test_pictures_never_leave_the_output_folder(checkpoint, photos, tmp_path, capsys):
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "labels").symlink_to(outside)
    assert _run(checkpoint, photos, tmp_path / "out") == 2
    assert "is a link that leads out of" in capsys.readouterr().err
    assert list(outside.iterdir()) == []


def test_outputs_of_an_earlier_run_are_no_inputs(checkpoint, photos):
    out = photos / "results"
    for _ in range(2):
        assert _run(checkpoint, photos, out) == 0
    assert len(list((out / "labels").rglob("*.png"))) == 3


def test_a_head_that_is_not_the_checkpoints_is_refused(checkpoint, photos, tmp_path, capsys):
    overrides = [
        "decoder_head.type=m2f",
        "decoder_head.hidden_dim=32",
        "decoder_head.backbone_out_layers=FOUR_LAST",
    ]
    assert _run(checkpoint, photos, tmp_path / "out", *overrides) == 2
    told = capsys.readouterr().err
    assert "is of another model" in told
    assert "missing" in told
    assert not (tmp_path / "out").exists()


def test_a_killed_run_leaves_whole_files_only(checkpoint, photos, tmp_path, monkeypatch):
    real, count = Image.Image.save, []

    def save_half_then_die(picture, target, *args, **kwargs):
        real(picture, target, *args, **kwargs)
        count.append(target)
        if len(count) == 4:  # the second overlay, as far as it got
            Path(target).write_bytes(Path(target).read_bytes()[:100])
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Image.Image, "save", save_half_then_die)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        _run(checkpoint, photos, tmp_path / "out")
    assert signal.getsignal(signal.SIGTERM) is before
    assert stopped.value.code == 128 + signal.SIGTERM
    written = sorted(
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")
    )
    assert written == ["classes.csv", "labels/a.png", "labels/c.gif.png", "overlays/a.jpg"]
