"""The one command: what it offers, what it says to a typo, and what it loads before it says so."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import maskshards
from maskshards import cli

ALL = [*([name] for name in cli.COMMANDS), *(["bench", name] for name in cli.BENCHES)]


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_command_has_help_with_an_example(words, capsys):
    try:
        status = cli.main([*words, "--help"])
    except SystemExit as left:
        status = left.code
    told = capsys.readouterr()
    assert status in (0, None)
    assert told.err == ""
    assert told.out.startswith("usage: ")
    assert "example:" in told.out
    assert re.search(f"maskshards {' '.join(words)} ", told.out)


def test_the_listing_names_every_command_and_the_exit_statuses(capsys):
    assert cli.main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(re.search(rf"^  {name} ", told, re.M) for name in (*cli.COMMANDS, "bench"))
    assert "exit status:" in told
    assert cli.main(["bench", "--help"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in cli.BENCHES)


def test_no_command_and_a_typo_are_status_2(capsys):
    assert cli.main([]) == 2
    assert cli.main(["biuld"]) == 2
    assert "did you mean 'build'?" in capsys.readouterr().err
    assert cli.main(["bench", "loder"]) == 2
    assert "did you mean 'loader'?" in capsys.readouterr().err


def test_the_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"maskshards {maskshards.__version__}\n"


def test_ctrl_c_is_quiet(monkeypatch, capsys):
    def interrupted(words):
        raise KeyboardInterrupt

    monkeypatch.setattr("maskshards.preprocess.__main__.main", interrupted)
    assert cli.main(["build"]) == 130
    assert capsys.readouterr().err == ""


def test_a_working_folder_that_was_deleted_is_named(tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert cli.main(["train", "config=demo", "output_dir=run"]) == 2
    assert capsys.readouterr().err == "error: the working folder was deleted; cd into one that exists\n"


HEAVY = ("torch", "transformers", "numpy", "pyarrow")


@pytest.mark.parametrize("program", ["import maskshards", "from maskshards import cli; cli.main(['chek'])"])
def test_neither_the_package_nor_a_typo_loads_anything_heavy(program):
    program += f"; import sys; sys.exit(str([one for one in {HEAVY!r} if one in sys.modules] or 0))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1:] in ([], ["0"]) or "no such command" in done.stderr
    assert "[" not in done.stderr


def test_without_the_extra_for_training_it_says_which_to_install():
    program = "import sys\nfor name in ('torch', 'omegaconf', 'yaml'): sys.modules[name] = None\n"
    program += "from maskshards import cli\nsys.exit(cli.main(['train', 'config=demo']))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: this needs ")
    assert "pip install 'maskshards[train]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_public_names_are_those_that_are_promised():
    assert sorted([*maskshards._HOMES, "train"]) == sorted(maskshards.__all__)
    for name in maskshards._HOMES:
        assert getattr(maskshards, name).__name__ == name
        assert name in dir(maskshards)
    assert callable(maskshards.train)
    with pytest.raises(AttributeError, match="no attribute 'Loadr'"):
        _ = maskshards.Loadr


def test_a_train_py_of_the_users_changes_nothing(tmp_path):
    for name in ("train", "shards", "preprocess", "configs"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    command = str(Path(sys.executable).with_name("maskshards"))
    done = subprocess.run([command, "build", "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout[:6]) == (0, "usage:")
