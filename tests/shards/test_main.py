"""The command line: exit codes, JSON, and one block on stderr for every fault of the user."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from maskshards.shards.__main__ import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]


def test_info_and_verify_print_json(make_split, capsys):
    made = make_split("cli", [2])
    for command in ("info", "verify"):
        assert main([command, str(made.folder), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["splits"][0]["fingerprint"] == made.manifest.fingerprint


def test_damage_is_status_1_and_an_unanswerable_question_status_2(make_split, capsys, tmp_path):
    made = make_split("broken", [1])
    shard = made.folder / "training-00000.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert main(["verify", str(made.folder)]) == 1
    assert "1 FAULT" in capsys.readouterr().out
    assert main(["info", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["info"], ["verify", "x", "--sample", "many"]])
def test_wrong_words_are_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    listing = capsys.readouterr().out
    assert all(name in listing for name in COMMANDS)


def test_looking_at_shards_needs_no_torch(make_split):
    made = make_split("light", [1])
    program = "import sys; from maskshards.shards.__main__ import main\n"
    program += f"main(['verify', {str(made.folder)!r}, '--deep']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True).returncode == 0


def test_every_command_takes_a_url(make_split, serve, tmp_path, capsys):
    made = make_split("far", [2, 1])
    (tmp_path / "out").mkdir()
    (tmp_path / "out/training").symlink_to(made.folder)
    server = serve(tmp_path)
    base = f"{server.url}/out"
    assert main(["info", base, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["splits"]
    assert (found["fingerprint"], found["place"]) == (made.manifest.fingerprint, f"{base}/training")
    assert server.bytes_sent["out/training/training-00000.tar"] == 0
    assert main(["verify", f"{base}/training", "--deep"]) == 0
    assert main(["diff", base, str(made.folder)]) == 0
    assert main(["preview", base, "--out", str(tmp_path / "page.html")]) == 0
    capsys.readouterr()
    assert main(["info", f"{server.url}/nothing"]) == 2
    assert "manifest.json" in capsys.readouterr().err
