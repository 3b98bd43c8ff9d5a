import os
import shutil
import subprocess
import sys

import numpy as np
from PIL import Image

from maskshards.preprocess.__main__ import main
from maskshards.preprocess.destinations.place import Place
from maskshards.shards.format.manifest import open_split


def test_the_summary_tells_what_was_made(make_root, tmp_path, capsys):
    root, out = make_root(), tmp_path / "out"
    options = ["--dataset", "ade20k", "--allow-count-mismatch", "--root", str(root), "--out", str(out)]
    assert main(["build", *options, "--workers", "1"]) == 0
    told = capsys.readouterr()
    assert f"{out}/training: 3 samples in 1 shard, " in told.out
    assert f"{out}/validation: 2 samples in 1 shard, " in told.out
    assert "fingerprint " in told.out
    assert open_split(out / "training").manifest.palette[1] == (180, 120, 120)
    assert "build: 100%" in told.err
    assert "5/5" in told.err


def test_scenes_build_and_verify(tmp_path, capsys):
    root, out = tmp_path / "scenes", tmp_path / "out"
    assert main(["scenes", "--out", str(root), "--training", "2", "--validation", "1"]) == 0
    options = ["--dataset", "folder", "--classes", str(root / "classes.txt"), "--reduce-zero-label"]
    assert main(["build", *options, "--root", str(root), "--out", str(out), "--workers", "1", "--quiet"]) == 0
    assert main(["verify", str(out), "--against", str(root), "--workers", "1"]) == 0
    assert capsys.readouterr().err == ""


def test_faults_are_one_block_without_a_traceback(tmp_path):
    command = [sys.executable, "-m", "preprocess", "build", "--dataset", "folder"]
    done = subprocess.run(
        [*command, "--root", str(tmp_path), "--out", str(tmp_path / "out")], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: --dataset folder needs --classes FILE")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_masks_of_0_and_255_are_refused_until_it_is_said_what_they_mean(
    tmp_path, write_image, write_label, build_and_check, capsys
):
    root = tmp_path / "root"
    for name in ("a", "b"):
        write_image(root / f"images/train/{name}.jpg")
        write_label(root / f"masks/train/{name}.png", [0, 255])
    (root / "classes.txt").write_text("ground\nbuilding\n")
    words = ["build", "--dataset", "folder", "--root", str(root), "--classes", str(root / "classes.txt")]
    words += ["--out", str(tmp_path / "out"), "--workers", "1", "--quiet"]
    assert main(words) == 2
    assert (
        """masks of 0 and 255: --mapping '{"0": 0, "255": 1}' makes 255 class 1""" in capsys.readouterr().err
    )
    assert not (tmp_path / "out/train/manifest.json").exists()
    assert main([*words, "--part", "0/1"]) == 2  # nor do the parts of an array job
    capsys.readouterr()
    told = build_and_check("folder", root, "--classes", str(root / "classes.txt"), "--ignore-index", "255")
    assert "classes: 1 class has no pixel: 'building' (1)" in told.out
    assert "classes: void pixels: train 50.0%" in told.out
    assert """--mapping '{"0": 0, "255": 1}' makes 255 class 1""" in told.out
    assert main([*words, "--mapping", '{"0": 0, "255": 1}', "--splits", "training"]) == 0
    told = capsys.readouterr().out
    assert "no pixel" not in told
    assert "void pixels: train 0.0%" in told


def test_masks_of_0_and_1_among_masks_of_0_and_255_are_told_with_their_files(
    tmp_path, write_image, write_label, build_and_check, capsys
):
    root = tmp_path / "root"
    for number, values in enumerate(([0, 1], [0, 1], [0, 255], [0])):
        write_image(root / f"images/train/{number}.jpg")
        write_label(root / f"masks/train/{number}.png", values)
    (root / "classes.txt").write_text("ground\nbuilding\n")
    classes = ["--classes", str(root / "classes.txt")]
    source = ["--dataset", "folder", "--root", str(root), *classes, "--workers", "1", "--quiet"]
    assert main(["build", *source, "--out", str(tmp_path / "out"), "--samples-per-shard", "1"]) == 2
    told = capsys.readouterr().err
    assert "(masks/train/2.png), and in none of the 2 that hold another class (masks/train/" in told
    assert not (tmp_path / "out/train/manifest.json").exists()
    said = build_and_check("folder", root, *classes, "--ignore-index", "255")
    assert "class 0 and nothing else (2), and in none of the 2 that hold another class" in said.out
    both = """{"0": 0, "1": 1, "255": 1}"""
    assert main(["build", *source, "--out", str(tmp_path / "both"), "--mapping", both]) == 0
    assert "void pixels: train 0.0%" in capsys.readouterr().out


def test_a_class_that_the_void_value_takes_is_named(tmp_path, write_image, write_label, build_and_check):
    write_image(tmp_path / "root/images/train/a.jpg")
    write_label(tmp_path / "root/masks/train/a.png", [0, 1, 2])
    (tmp_path / "classes.txt").write_text("ground\nroof\nroad\n")
    words = "folder", tmp_path / "root", "--classes", str(tmp_path / "classes.txt"), "--no-reduce-zero-label"
    told = build_and_check(*words, "--ignore-index", "1").out
    assert "classes: no pixel can be 'roof' (1): the label maps may hold 0..2, or 1 for void" in told
    shutil.rmtree(tmp_path / "shards")
    assert "no pixel can be" not in build_and_check(*words, "--ignore-index", "none").out


def test_of_images_without_a_label_nothing_is_said_to_be_labelled(
    tmp_path, write_image, write_label, build_and_check
):
    write_image(tmp_path / "root/images/train/a.jpg")
    write_label(tmp_path / "root/masks/train/a.png", [255])
    (tmp_path / "classes.txt").write_text("ground\nbuilding\n")
    told = build_and_check("folder", tmp_path / "root", "--classes", str(tmp_path / "classes.txt")).out
    assert "void pixels: train 100.0%" in told
    assert "classes: nothing is labelled; if the label maps are masks" in told
    assert "all that is labelled" not in told


def test_coloured_label_maps_from_a_flat_folder(tmp_path, write_image, build_and_check):
    root = tmp_path / "root"
    for number in range(12):
        write_image(root / f"{number}.jpg")
        colours = np.array([[255, 255, 255], [0, 0, 255], [0, 0, 0]], np.uint8)[np.arange(24) // 8]
        Image.fromarray(np.repeat(colours[:, None], 32, axis=1)).save(root / f"{number}_label.tif")
    (root / "colours.csv").write_text("class,r,g,b\nroad,255,255,255\nhouse,0,0,255\nvoid,0,0,0\n")
    words = ("--images-folder", ".", "--labels-folder", ".", "--label-ending", "_label.tif")
    told = build_and_check(
        "folder", root, "--colours", str(root / "colours.csv"), *words, "--val-share", "0.4"
    )
    assert "1 file with other endings passed over (1 .csv)" in told.err
    splits = [open_split(told.out_folder / name) for name in ("training", "validation")]
    assert sum(split.manifest.num_samples for split in splits) == 12
    assert splits[0].manifest.palette == ((255, 255, 255), (0, 0, 255))
    assert splits[0].index(0).entry(0).areas == (8 * 32, 8 * 32)


def test_names_write_nothing_over_the_terminal(tmp_path, write_image, write_label, capsys):
    root = tmp_path / "root"
    write_image(root / "images/train/a.jpg")
    write_label(root / "labels/train/a.png", [0])
    write_image(root / "images/train/evil\x1b[2J\n.jpg")
    (root / "classes.txt").write_text("ground\n")
    words = ["--root", str(root), "--classes", str(root / "classes.txt"), "--out", str(tmp_path / "out")]
    assert main(["build", "--dataset", "folder", *words, "--workers", "1", "--quiet"]) == 2
    told = capsys.readouterr().err
    assert "\x1b" not in told
    assert "evil\\x1b[2J\\n.jpg: image without a label map" in told
    assert not list(tmp_path.glob("out/*/*.tar"))


def test_a_tilde_is_the_home_folder(make_root, tmp_path, monkeypatch, capsys):
    root = make_root(training=1)
    monkeypatch.setenv("HOME", str(tmp_path))
    options = ["--dataset", "folder", "--classes=~/root/classes.txt", "--reduce-zero-label"]
    words = [f"--root=~/{root.name}", "--out=~/shards", "--workers", "1", "--quiet"]
    assert main(["build", *options, *words]) == 0
    assert main(["verify", "~/shards", f"--against=~/{root.name}", "--workers", "1"]) == 0
    assert (tmp_path / "shards/training/manifest.json").is_file()
    assert "0 differences" in capsys.readouterr().out


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    words = ["scenes", "--out", str(tmp_path / "scenes"), "--training", "1", "--validation", "1"]
    reading, writing = os.pipe()
    os.close(reading)
    program = [sys.executable, "-m", "maskshards.preprocess", *words]
    done = subprocess.run(program, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_in_an_object_store_splits_of_any_name_are_described(tmp_path, write_image, write_label, capsys):
    root, out = tmp_path / "root", f"memory://{tmp_path.name}/out"
    for split in ("train", "valid"):
        write_image(root / f"images/{split}/{split}.jpg")
        write_label(root / f"masks/{split}/{split}.png", [0])
    (root / "classes.txt").write_text("ground\n")
    words = ["--root", str(root), "--classes", str(root / "classes.txt"), "--out", out, "--workers", "1"]
    assert main(["build", "--dataset", "folder", *words, "--quiet"]) == 0
    place = Place(out).root()
    card = place.read("README.md")
    assert b'path: "valid/*.tar"' in card
    assert b'path: "train/*.tar"' in card
    place.remove("README.md")  # as if the builder had been killed before it
    assert main(["build", "--dataset", "folder", *words, "--quiet"]) == 0
    assert place.read("README.md") == card
    assert "valid: published already, nothing to do" in capsys.readouterr().out


def test_palettes_that_were_numbered_anew_are_told(tmp_path, write_image, build_and_check):
    root = tmp_path / "root"
    for number, palette in enumerate(([0, 0, 0, 255, 0, 0], [255, 0, 0, 0, 0, 0])):
        write_image(root / f"images/train/{number}.jpg")
        mask = Image.frombytes("P", (32, 24), bytes([0, 1] * 384))
        mask.putpalette(palette)
        (root / "masks/train").mkdir(parents=True, exist_ok=True)
        mask.save(root / f"masks/train/{number}.png")
    (root / "classes.txt").write_text("ground\nroof\n")
    told = build_and_check("folder", root, "--classes", str(root / "classes.txt"))
    assert "note: palettes disagree: colour (" in told.err
    (root / "colours.csv").write_text("ground,0,0,0\nroof,255,0,0\n")
    shutil.rmtree(tmp_path / "shards")
    assert "disagree" not in build_and_check("folder", root, "--colours", str(root / "colours.csv")).err


def test_masks_in_jpeg_files_are_cut_in_two(tmp_path, write_image, write_label, build_and_check):
    root = tmp_path / "root"
    for number in range(3):
        write_image(root / f"images/train/{number}.jpg")
        write_label(root / f"masks/train/{number}.jpg", [0, 255, 0])
    (root / "classes.txt").write_text("background\npolyp\n")
    words = ["--classes", str(root / "classes.txt"), "--label-ending", ".jpg"]
    told = build_and_check("folder", root, *words, "--mapping", '{"0-127": 0, "128-255": 1}')
    split = open_split(told.out_folder / "train")
    assert {split.index(0).entry(row).areas for row in range(3)} == {(21 * 24, 11 * 24)}
