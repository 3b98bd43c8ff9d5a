import pytest

from maskshards.preprocess.arguments import build_settings, parser, part_of, source_request
from maskshards.preprocess.build import Part
from maskshards.preprocess.errors import BuildError
from maskshards.preprocess.sources.opening import NO_VOID

BUILD = ["build", "--dataset", "folder", "--root", "data", "--out", "out"]


def test_defaults_keep_bytes_and_ask_for_nothing():
    words = parser().parse_args(BUILD)
    settings, request = build_settings(words), source_request(words)
    assert (settings.samples_per_shard, settings.seed, words.allow_rejects) == (256, 0, 0)
    assert not settings.policy.convert
    assert settings.policy.prove
    assert (request.kind, str(request.root), request.classes, request.reduce_zero_label) == (
        "folder",
        "data",
        None,
        None,
    )
    assert words.workers >= 1


def test_every_word_reaches_its_place():
    more = (
        "--splits a b --classes c.txt --name mine --ignore-index 9 --no-reduce-zero-label --seed 4 --convert"
    )
    more += " --max-short-side 512 --samples-per-shard 7 --allow-rejects 3 --workers 2 --label-ending _x.png"
    words = parser().parse_args(BUILD + more.split())
    settings, request = build_settings(words), source_request(words)
    assert (settings.seed, settings.samples_per_shard, settings.policy.max_short_side) == (4, 7, 512)
    assert settings.policy.convert
    assert (request.name, request.ignore_index, request.reduce_zero_label, request.label_ending) == (
        "mine",
        9,
        False,
        "_x.png",
    )
    assert (words.splits, words.allow_rejects, words.workers) == (["a", "b"], 3, 2)


@pytest.mark.parametrize("missing", ["--out", "--dataset"])
def test_what_has_no_default(missing, capsys):
    at = BUILD.index(missing)
    with pytest.raises(SystemExit) as left:
        parser().parse_args(BUILD[:at] + BUILD[at + 2 :])
    assert left.value.code == 2
    assert missing in capsys.readouterr().err


def test_parts():
    assert part_of("3/16") == Part(3, 16)
    for word in ("3", "3/", "a/b", "-1/4", "4/4"):
        with pytest.raises(BuildError, match="--part"):
            part_of(word)


def test_what_values_and_bands_mean():
    policy = build_settings(parser().parse_args([*BUILD, "--scale=-1:1", "--bands", "4,3,2"])).policy
    assert (policy.scale, policy.bands, policy.convert) == ((-1.0, 1.0), (4, 3, 2), True)
    for words in (["--scale", "4095"], ["--scale", "a:b"], ["--bands", "r,g,b"], ["--bands", ""]):
        with pytest.raises(BuildError, match=words[0]):
            build_settings(parser().parse_args([*BUILD, *words]))


def test_tiles_overlap_by_an_eighth_unless_said_otherwise():
    policy = build_settings(parser().parse_args([*BUILD, "--tile", "512"])).policy
    assert (policy.tile, policy.overlap, policy.convert) == (512, 64, False)
    policy = build_settings(parser().parse_args([*BUILD, "--tile", "512", "--tile-overlap", "0"])).policy
    assert policy.overlap == 0


def test_void_values():
    assert source_request(parser().parse_args([*BUILD, "--ignore-index", "none"])).ignore_index == NO_VOID
    assert source_request(parser().parse_args([*BUILD, "--ignore-index", "0"])).ignore_index == 0
    with pytest.raises(SystemExit):
        parser().parse_args([*BUILD, "--ignore-index", "-1"])
