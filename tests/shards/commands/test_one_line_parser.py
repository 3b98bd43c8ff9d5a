"""Wrong words are told in one line."""

import pytest

from maskshards.shards.commands.one_line_parser import OneLineParser


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["build", "--clases", "x"],
            "error: own build: unrecognized arguments: --clases x; did you mean --classes?",
        ),
        (
            ["build", "--zzz"],
            "error: own build: unrecognized arguments: --zzz (`own build --help` lists all)",
        ),
        (
            ["scenes", "--clases"],  # an option of another command is none of its own
            "error: own scenes: unrecognized arguments: --clases (`own scenes --help` lists all)",
        ),
        (["build", "--workers", "two"], "error: own build: argument --workers: invalid int value: 'two'"),
        (["bild"], "error: own: argument command: invalid choice: 'bild'"),
    ],
)
def test_one_line_with_what_was_meant(words, told, capsys):
    parser = OneLineParser(prog="own")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("scenes")
    build = commands.add_parser("build")
    build.add_argument("--classes")
    build.add_argument("--workers", type=int)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(words)
    err = capsys.readouterr().err
    assert (ended.value.code, err.count("\n")) == (2, 1)
    assert err.startswith(told)
