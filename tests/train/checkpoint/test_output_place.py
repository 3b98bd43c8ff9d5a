"""Places where a run may not write, each told before anything is made there."""

from pathlib import Path

import pytest

from maskshards.train.__main__ import main
from maskshards.train.checkpoint.output_place import LOCK, check_no_run, check_not_moved, check_output
from maskshards.train.config.load import WRITTEN, load_config, write_config
from maskshards.train.config.schema import ConfigError


def test_a_run_that_was_moved_is_not_begun_anew_where_it_was(
    tmp_path: Path, tiny_run: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own config.yaml names the former place."""
    moved, former = tmp_path / "moved", tmp_path / "run"
    write_config(load_config(tiny_run), tmp_path / WRITTEN)
    (moved / "checkpoints" / "step-00000002").mkdir(parents=True)
    (tmp_path / WRITTEN).rename(moved / WRITTEN)
    words = [f"config={moved / WRITTEN}", "resume_from=auto"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"says output_dir {former}, where no run is" in said
    assert f"Say output_dir={moved} to continue it" in said
    assert not former.exists()
    for fine in ([*words, "out=elsewhere"], ["config=demo", "resume_from=auto"]):
        check_not_moved(load_config([*words, f"output_dir={former}"]), fine, former)
    (former / "checkpoints" / "step-00000002").mkdir(parents=True)
    check_not_moved(load_config(words), words, former)


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard", "model_final.pth", "metrics.jsonl", WRITTEN])
def test_what_stands_in_the_place_of_a_file_or_folder_of_the_run_is_told_at_its_start(
    tiny_run: list[str], tmp_path: Path, name: str
) -> None:
    place = tmp_path / "run" / name
    place.parent.mkdir()
    place.mkdir() if "." in name else place.touch()
    with pytest.raises(ConfigError, match=rf"{name} is a \w+, where a run keeps a \w+ of that name; move it"):
        check_output(load_config(tiny_run))
    place.rmdir() if "." in name else place.unlink()
    check_output(load_config(tiny_run))


def test_a_run_does_not_begin_among_shards(tiny_run: list[str], tmp_path: Path) -> None:
    root = Path(load_config(tiny_run).datasets.root)
    for place in (root, root / "training"):
        with pytest.raises(ConfigError, match=r"holds shards, .* name a folder of its own"):
            check_output(load_config([*tiny_run, f"output_dir={place}"]))
    check_output(load_config([*tiny_run, f"output_dir={root / 'run'}"]))
    run = tmp_path / "run"  # of an older version, which let it begin there
    (run / "checkpoints" / "step-00000002").mkdir(parents=True)
    (run / "manifest.json").touch()
    check_output(load_config(tiny_run))


def test_a_file_a_link_and_a_training_in_the_place_of_an_evaluation_are_refused(
    tiny_run: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.touch()
    with pytest.raises(ConfigError, match=r"run is a file; name a folder"):
        check_output(load_config(tiny_run))
    run.unlink()
    run.mkdir()
    (run / LOCK).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"run/\.lock is a link"):
        check_output(load_config(tiny_run))
    (run / LOCK).unlink()
    (run / "metrics.jsonl").touch()
    check_output(load_config(tiny_run))
    with pytest.raises(ConfigError, match=r"holds a training \(metrics\.jsonl\).*evaluation"):
        check_no_run(run)
