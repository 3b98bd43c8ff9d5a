import subprocess
import sys

from maskshards.preprocess.__main__ import main
from maskshards.shards.format.manifest import open_split


def test_the_summary_tells_what_was_made(make_root, tmp_path, capsys):
    root, out = make_root(), tmp_path / "out"
    options = ["--dataset", "ade20k", "--allow-count-mismatch", "--root", str(root), "--out", str(out)]
    assert main(["build", *options, "--workers", "1"]) == 0
    told = capsys.readouterr()
    assert f"{out}/training: 3 samples in 1 shards, " in told.out
    assert f"{out}/validation: 2 samples in 1 shards, " in told.out
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
