"""`maskshards report A B` from its words to its page."""

import subprocess
import sys
from pathlib import Path

import pytest

from maskshards.train.comparison.command import main


def made(folder: Path, lr: float) -> str:
    folder.mkdir()
    (folder / "config.yaml").write_text(f"optimizer:\n  lr: {lr}\n")
    (folder / "metrics.jsonl").write_text('{"kind": "eval", "step": 4, "mIoU": 50.0}\n')
    return str(folder)


def test_a_page_of_two_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([made(tmp_path / "a", 0.1), made(tmp_path / "b", 0.2)]) == 0
    assert capsys.readouterr().out == "comparison.html: 2 runs; open it in a browser\n"
    assert "optimizer.lr" in (tmp_path / "comparison.html").read_text()
    assert main(["a", "b", "--out", "deep/c.html"]) == 0
    assert (tmp_path / "deep/c.html").is_file()
    assert main(["a", "b", "--output", "deep"]) == 0
    assert (tmp_path / "deep/comparison.html").is_file()


def test_what_is_no_run_is_one_line(tmp_path, capsys):
    one = made(tmp_path / "a", 0.1)
    (tmp_path / "a/report.html").touch()
    for words, told in (
        ([one, str(tmp_path)], "is no run: there is no config.yaml"),
        ([one, str(tmp_path / "none")], "does not exist"),
        ([one, f"{one}/"], "one run is named twice"),
        ([one], f"the page of this run alone is {one}/report.html"),
        ([made(tmp_path / f"r{k}", 0.1) for k in range(6)], "runs named: 6, expected two to 5"),
    ):
        assert main([*words, "--out", str(tmp_path / "page.html")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert told in error
        assert error.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "maskshards report runs/a runs/b" in capsys.readouterr().out


def test_a_comparison_needs_no_torch():
    """Which takes seconds to load."""
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import maskshards.train.comparison.comparison\n"
        "from maskshards.cli import main\n"
        "sys.exit(main(['report', 'nowhere']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    told = "error: nowhere does not exist; name the output_dir of a run\n"
    assert (done.returncode, done.stderr) == (2, told)
