import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from maskshards.shards.order.order import World
from maskshards.train.checkpoint.checkpoint import (
    CheckpointError,
    read_checkpoint,
    save_best,
    save_final,
    save_last,
)
from maskshards.train.checkpoint.retention import prune
from maskshards.train.checkpoint.run_files import LAST, checkpoints_of
from maskshards.train.checkpoint.train_state import checksum
from maskshards.train.config.load import load_config
from maskshards.train.config.schema import ConfigError, TrainConfig
from maskshards.train.distributed.ranks import Ranks
from maskshards.train.evaluation.provenance import check_trained_on
from maskshards.train.optim.optimizer import optimizer_tensors
from maskshards.train.trainer.build import Parts, build_parts
from maskshards.train.trainer.resume import (
    Start,
    begin,
    best_score,
    newest_whole,
    state_of,
    weights_of,
)

ALONE = Ranks(World(), torch.device("cpu"))
WHOLE = "eval.mode=whole"


@pytest.fixture
def parts(tiny_run: list[str]) -> Parts:
    return build_parts(load_config([*tiny_run, "decoder_head.type=linear"]), ALONE)


@pytest.fixture
def arguments(tiny_run: list[str]) -> list[str]:
    return [*tiny_run, "decoder_head.type=linear"]


def save_at(run: Path, config: TrainConfig, parts: Parts, step: int, order: str | None = "0" * 16) -> Path:
    for value in parts.decoder.parameters():
        value.grad = torch.full_like(value, 0.1)
    parts.optimizer.step()
    moments = optimizer_tensors(parts.decoder, parts.optimizer)
    return save_last(run, state_of(config, parts, step, None, order), weights_of(parts), moments)


def test_the_order_of_the_data_goes_on_and_a_checkpoint_without_one_counts_from_its_step(
    arguments: list[str], parts: Parts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config([*arguments, "resume_from=auto"])
    folder = save_at(tmp_path, config, parts, 4, order="00000000000000ff")
    assert begin(config, ALONE, parts, tmp_path).order == "00000000000000ff"
    assert "knows no order" not in caplog.text
    facts = json.loads((folder / "state.json").read_text())
    del facts["order"], facts["checksum"]  # as versions before them wrote
    (folder / "state.json").write_text(json.dumps(facts))
    assert begin(config, ALONE, parts, tmp_path).order is None
    assert "counts from step 4 on" in caplog.text


def test_without_a_word_a_run_is_fresh(arguments: list[str], parts: Parts, tmp_path: Path) -> None:
    assert begin(load_config(arguments), ALONE, parts, tmp_path) == Start(0, None)


def test_without_a_word_an_old_run_is_not_overwritten(
    arguments: list[str], parts: Parts, tmp_path: Path
) -> None:
    config = load_config(arguments)
    save_at(tmp_path, config, parts, 4)
    with pytest.raises(ConfigError, match="already holds a run; say resume_from=auto"):
        begin(config, ALONE, parts, tmp_path)


@pytest.mark.parametrize("word", ["auto", "the run", "the checkpoint"])
def test_weights_moments_step_and_best_come_back(
    arguments: list[str], parts: Parts, tmp_path: Path, word: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = load_config(arguments)
    path = save_at(tmp_path, config, parts, 4)
    save_best(tmp_path, state_of(config, parts, 4, 33.0), weights_of(parts))
    place = {"auto": "auto", "the run": tmp_path, "the checkpoint": path}[word]
    fresh = build_parts(config, ALONE)
    assert begin(load_config([*arguments, f"resume_from={place}"]), ALONE, fresh, tmp_path) == Start(
        4, 33.0, "0" * 16
    )
    assert f"continuing after step 4 from {path}" in caplog.text
    for own, saved in zip(fresh.decoder.parameters(), parts.decoder.parameters(), strict=True):
        assert torch.equal(own, saved)
    moments = optimizer_tensors(fresh.decoder, fresh.optimizer)
    for name, value in optimizer_tensors(parts.decoder, parts.optimizer).items():
        assert torch.equal(moments[name], value)


def test_auto_in_an_empty_folder_starts_fresh_or_from_init(
    arguments: list[str], parts: Parts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config(arguments)
    final = save_final(tmp_path, state_of(config, parts, 8, None), weights_of(parts))
    other = build_parts(load_config([*arguments, "seed=9"]), ALONE)
    start = begin(
        load_config([*arguments, "resume_from=auto", f"init_from={final}"]), ALONE, other, tmp_path / "new"
    )
    assert start == Start(0, None)
    assert torch.equal(next(other.decoder.parameters()), next(parts.decoder.parameters()))
    assert not [line for line in caplog.records if line.levelname == "WARNING"]  # the classes are the same
    renamed = replace(state_of(config, parts, 8, None), class_names=["ground", "disc", "box"])
    final = save_final(tmp_path, renamed, weights_of(parts))
    begin(load_config([*arguments, f"init_from={final}"]), ALONE, other, tmp_path / "new")
    assert "its rows are kept for 3 classes of the same name" in caplog.text


def test_weights_that_a_run_starts_from_are_told_and_its_average_begins_with_them(
    tiny_run: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    arguments = [*tiny_run, "decoder_head.type=linear", "ema.decay=0.9"]
    config = load_config(arguments)
    parts, other = build_parts(config, ALONE), build_parts(load_config([*arguments, "seed=9"]), ALONE)
    assert other.average is not None
    final = save_final(tmp_path, state_of(config, parts, 8, None), weights_of(parts))
    begin(load_config([*arguments, f"init_from={final}"]), ALONE, other, tmp_path / "new")
    assert f"weights from {final}; the schedule starts anew" in caplog.text
    own = parts.decoder.state_dict()
    assert all(torch.equal(shadow, own[name]) for name, shadow in other.average.shadow.items())


def test_no_checkpoint_changes_its_name_before_all_ranks_have_looked(
    arguments: list[str], parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, done = load_config([*arguments, "resume_from=auto"]), []
    path = save_at(tmp_path, config, parts, 4)
    monkeypatch.setattr(Ranks, "wait", lambda ranks, what: done.append(what))
    monkeypatch.setattr(
        "maskshards.train.trainer.resume.set_aside", lambda run, step: done.append(f"set aside {step}") or []
    )
    begin(config, ALONE, parts, tmp_path)
    assert done == [f"the weights of {path}", "set aside 4"]


def test_a_state_says_how_many_samples_it_has_seen(arguments: list[str], parts: Parts) -> None:
    assert state_of(load_config(arguments), parts, 5, None).position == 5 * 2


def test_a_damaged_newest_checkpoint_is_passed_over_loudly(
    arguments: list[str], parts: Parts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config(arguments)
    good, bad = (save_at(tmp_path, config, parts, step) for step in (4, 8))
    (bad / "optimizer.safetensors").write_bytes(b"torn")
    with caplog.at_level(logging.WARNING):
        assert newest_whole(tmp_path) == good
    assert str(bad) in caplog.text


@pytest.mark.parametrize(
    ("argument", "what"),
    [("seed=4", "seed was 3 and is 4"), ("global_batch=4", "global batch was 2 and is 4")],
)
def test_what_would_change_the_run_is_refused(
    arguments: list[str], parts: Parts, tmp_path: Path, argument: str, what: str
) -> None:
    save_at(tmp_path, load_config(arguments), parts, 4)
    with pytest.raises(ConfigError, match=what):
        begin(load_config([*arguments, argument, "resume_from=auto"]), ALONE, parts, tmp_path)


def test_other_training_data_is_refused(arguments: list[str], parts: Parts, tmp_path: Path) -> None:
    config = load_config([*arguments, "resume_from=auto"])
    state = replace(state_of(config, parts, 4, None), fingerprint="other")
    save_last(tmp_path, state, weights_of(parts), {})
    with pytest.raises(
        ConfigError, match=r"fingerprint was other and is \w+ now \(no setting .* shards are, .*; give"
    ):
        begin(config, ALONE, parts, tmp_path)
    repeated = load_config([*arguments, "resume_from=auto", "datasets.repeat_threshold=0.5"])
    with pytest.raises(ConfigError, match=r"now \(datasets.repeat_threshold was None and is 0.5\); give"):
        begin(repeated, ALONE, parts, tmp_path)


def test_another_list_of_classes_is_refused_by_the_first_that_differs(
    arguments: list[str], parts: Parts, tmp_path: Path
) -> None:
    config = load_config([*arguments, "resume_from=auto"])
    state = replace(
        state_of(config, parts, 4, None), class_names=["ground", "disc", "box"], fingerprint="other"
    )
    save_last(tmp_path, state, weights_of(parts), {})
    with pytest.raises(
        ConfigError, match="class 1 is 'disc' in the model and 'box' in the shards; they are the"
    ):
        begin(config, ALONE, parts, tmp_path)


def test_a_changed_setting_is_reported(
    arguments: list[str], parts: Parts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_at(tmp_path, load_config(arguments), parts, 4)
    config = load_config([*arguments, "resume_from=auto", "optimizer.lr=0.5"])
    with caplog.at_level(logging.WARNING):
        begin(config, ALONE, parts, tmp_path)
    assert "optimizer.lr was 0.001" in caplog.text
    assert caplog.text.count(" was saved and is ") == 1


def test_weights_alone_cannot_be_continued(arguments: list[str], parts: Parts, tmp_path: Path) -> None:
    config = load_config(arguments)
    final = save_final(tmp_path, state_of(config, parts, 8, None), weights_of(parts))
    again = load_config([*arguments, f"resume_from={final}"])
    with pytest.raises(CheckpointError, match="init_from takes weights"):
        begin(again, ALONE, parts, tmp_path)
    for path in final.parent.glob("*.json"):
        path.unlink()
    with pytest.raises(CheckpointError, match="init_from takes weights"):
        begin(again, ALONE, parts, tmp_path)


def test_a_best_of_the_future_does_not_count(arguments: list[str], parts: Parts, tmp_path: Path) -> None:
    config = load_config(arguments)
    save_best(tmp_path, state_of(config, parts, 8, 50.0), weights_of(parts))
    assert best_score(tmp_path, 4, config) is None
    assert best_score(tmp_path, 8, config) == 50.0


@pytest.mark.parametrize(
    "word",
    [
        "metric_to_save=aAcc",
        "eval.max_val_samples=2",
        "eval.stride=32",
        "eval.use_tta=True",
        "eval.mode=whole",
    ],
)
def test_a_best_that_was_scored_in_another_way_does_not_count(
    arguments: list[str], parts: Parts, tmp_path: Path, caplog: pytest.LogCaptureFixture, word: str
) -> None:
    """A share of pixels is larger than a mean over classes: no mIoU would ever be the best after it."""
    config, other = load_config(arguments), load_config([*arguments, word])
    save_best(tmp_path, state_of(other, parts, 8, 90.0), weights_of(parts))
    assert best_score(tmp_path, 8, other) == 90.0
    assert not caplog.messages
    assert best_score(tmp_path, 8, config) is None
    name, value = word.split("=")
    told = f"{name} was {value} when best-00000008 scored 90.0 and is "
    assert [message.startswith(told) for message in caplog.messages] == [True]
    assert "the next evaluation counts as the best" in caplog.text


def test_a_half_removed_best_stops_no_run(
    arguments: list[str], parts: Parts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config(arguments)
    best = save_best(tmp_path, state_of(config, parts, 8, 50.0), weights_of(parts))
    (best / "state.json").unlink()  # as a kill in the middle of removing it leaves it
    assert best_score(tmp_path, 8, config) is None
    assert "passing over a damaged checkpoint" in caplog.text
    older = shutil.copytree(best, best.with_name("best-00000004"))
    save_best(tmp_path / "other", state_of(config, parts, 4, 40.0), weights_of(parts))
    shutil.copytree(tmp_path / "other/checkpoints/best-00000004", older, dirs_exist_ok=True)
    assert best_score(tmp_path, 8, config) == 40.0


def test_a_score_of_another_validation_split_counts_no_more(
    arguments: list[str], parts: Parts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config(arguments)
    state = state_of(config, parts, 8, 50.0)
    save_best(tmp_path, state, weights_of(parts))
    assert best_score(tmp_path, 8, config, state.val_fingerprint) == 50.0
    assert best_score(tmp_path, 8, config, "0123456789abcdef" * 4) is None
    before = str(state.val_fingerprint)[:16]
    assert f"the validation split was {before} when best-00000008 scored 50.0 and" in caplog.text
    assert "and is 0123456789abcdef now" in caplog.text
    save_best(tmp_path, replace(state, val_fingerprint=None), weights_of(parts))  # of an older version
    assert best_score(tmp_path, 8, config, "another") == 50.0


def test_scores_come_from_the_backbone_that_was_trained_on(
    arguments: list[str], parts: Parts, tmp_path: Path
) -> None:
    config = load_config(arguments)
    checkpoint = read_checkpoint(save_final(tmp_path, state_of(config, parts, 8, None), weights_of(parts)))
    check_trained_on(checkpoint.state, config, parts.segmenter.backbone, "x")
    parts.segmenter.backbone.digest = "another"
    with pytest.raises(ConfigError, match="was trained on the backbone dinov3_tiny16"):
        check_trained_on(checkpoint.state, config, parts.segmenter.backbone, "x")


def test_a_run_without_one_whole_checkpoint_is_not_started_anew(
    arguments: list[str], parts: Parts, tmp_path: Path
) -> None:
    config = load_config([*arguments, "resume_from=auto"])
    for step in (4, 8):
        (save_at(tmp_path, config, parts, step) / "optimizer.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"none of its 2 checkpoints can be continued.*init_from"):
        begin(config, ALONE, parts, tmp_path)


def test_a_folder_that_holds_a_run_is_not_mixed_with_another_run(
    arguments: list[str], parts: Parts, tmp_path: Path
) -> None:
    config, run, other = load_config(arguments), tmp_path / "run", tmp_path / "other"
    save_at(other, config, parts, 4)
    again = load_config([*arguments, f"resume_from={other}"])
    assert begin(again, ALONE, parts, run).step == 4
    save_at(run, config, parts, 8)  # as the command left it when it died
    with pytest.raises(ConfigError, match="already holds a run; say resume_from=auto"):
        begin(again, ALONE, parts, run)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000008"]


def test_fewer_steps_than_were_taken_are_refused(arguments: list[str], parts: Parts, tmp_path: Path) -> None:
    save_at(tmp_path, load_config(arguments), parts, 8)
    config = load_config([*arguments, "scheduler.total_iter=4", "resume_from=auto"])
    with pytest.raises(ConfigError, match=r"it has 8 steps, and scheduler\.total_iter is 4; raise it"):
        begin(config, ALONE, parts, tmp_path)


def test_samples_dealt_by_another_rule_are_refused(
    arguments: list[str], parts: Parts, tmp_path: Path
) -> None:
    config = load_config([*arguments, "resume_from=auto"])
    save_last(tmp_path, replace(state_of(config, parts, 4, None), order_version=0), weights_of(parts), {})
    with pytest.raises(ConfigError, match="the version of the data order was 0 and is 1 now"):
        begin(config, ALONE, parts, tmp_path)


@pytest.mark.parametrize(
    ("change", "checked"),
    [
        ({"step": 6}, True),
        ({"step": 6}, False),
        ({"digests": {}}, True),
        ({"digests": {}}, False),
        ({"digests": None}, True),
        ({"digests": None}, False),
        ({"order": "00000000000000ff"}, True),
    ],
)
def test_changed_facts_are_passed_over_like_changed_tensors(
    arguments: list[str], parts: Parts, tmp_path: Path, change: dict[str, object], checked: bool
) -> None:
    config = load_config([*arguments, "resume_from=auto"])
    save_at(tmp_path, config, parts, 4)
    state = save_at(tmp_path, config, parts, 8) / "state.json"
    facts = json.loads(state.read_text()) | change
    if not checked:  # as older versions wrote it
        del facts["checksum"]
    state.write_text(json.dumps(facts))
    assert begin(config, ALONE, parts, tmp_path).step == 4


def test_a_checkpoint_of_a_newer_program_is_no_damage_and_nothing_is_taken_back(
    arguments: list[str], parts: Parts, tmp_path: Path
) -> None:
    config = load_config([*arguments, "resume_from=auto"])
    run = tmp_path / "run"
    save_at(run, config, parts, 2)
    newest = save_at(run, config, parts, 4)
    facts = json.loads((newest / "state.json").read_text())
    del facts["checksum"]
    facts["version"] += 1
    (newest / "state.json").write_text(json.dumps(facts | {"checksum": checksum(facts)}))
    with pytest.raises(CheckpointError, match="was written by a newer maskshards"):
        begin(config, ALONE, parts, run)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000002", "step-00000004"]


def test_a_best_that_is_set_aside_is_told_as_one_and_no_other_checkpoint_is(
    arguments: list[str], parts: Parts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config([*arguments, "resume_from=auto"])
    save_at(tmp_path, config, parts, 2)
    (save_at(tmp_path, config, parts, 4) / "weights.safetensors").write_bytes(b"torn")
    told = "the best up to step 2 is not kept"
    begin(config, ALONE, parts, tmp_path)
    assert "step-00000004 does not lead to step 2: set aside" in caplog.text
    assert told not in caplog.text
    save_best(tmp_path, state_of(config, parts, 4, 50.0), weights_of(parts))
    begin(config, ALONE, parts, tmp_path)
    assert told in caplog.text


def test_an_average_begins_anew_where_the_checkpoint_has_none_and_else_goes_on(
    tiny_run: list[str], tmp_path: Path
) -> None:
    config = load_config([*tiny_run, "decoder_head.type=linear", "ema.decay=0.9", "resume_from=auto"])
    parts = build_parts(config, ALONE)
    assert parts.average is not None
    save_at(tmp_path, config, parts, 2)
    for shadow in parts.average.shadow.values():
        shadow.fill_(7.0)
    begin(config, ALONE, parts, tmp_path)  # saved without an average
    own = parts.decoder.state_dict()
    assert all(torch.equal(shadow, own[name]) for name, shadow in parts.average.shadow.items())
    kept = {name: torch.full_like(shadow, 3.0) for name, shadow in parts.average.shadow.items()}
    moments = optimizer_tensors(parts.decoder, parts.optimizer)
    save_last(tmp_path, state_of(config, parts, 4, None), weights_of(parts), moments, kept)
    begin(config, ALONE, parts, tmp_path)
    assert all(torch.equal(shadow, kept[name]) for name, shadow in parts.average.shadow.items())


def test_a_copy_of_a_checkpoint_under_another_name_is_none(
    arguments: list[str], parts: Parts, tmp_path: Path
) -> None:
    config = load_config([*arguments, "resume_from=auto"])
    folder = save_at(tmp_path, config, parts, 4)
    for name in ("step-00000004.bak", "step-00000008-keep"):
        shutil.copytree(folder, folder.with_name(name))
    (folder.parent / "step-00000009").write_text("a file")
    assert begin(config, ALONE, parts, tmp_path).step == 4
    prune(tmp_path, 1, None)
    assert {path.name for path in folder.parent.iterdir()} == {
        "step-00000004", "step-00000004.bak", "step-00000008-keep", "step-00000009",
    }  # fmt: skip


def test_a_run_is_not_taken_back_in_its_own_folder_but_goes_on_from_there_in_another(
    arguments: list[str], parts: Parts, tmp_path: Path
) -> None:
    config, run = load_config(arguments), tmp_path / "run"
    old, newest = (save_at(run, config, parts, step) for step in (4, 8))
    (tmp_path / "link").symlink_to(newest)
    for same in (newest, run, tmp_path / "link"):
        assert begin(load_config([*arguments, f"resume_from={same}"]), ALONE, parts, run).step == 8
    back = load_config([*arguments, f"resume_from={old}"])
    with pytest.raises(ConfigError, match=r"after step 8, .*output_dir=NEW resume_from=PATH"):
        begin(back, ALONE, parts, run)
    assert begin(back, ALONE, parts, tmp_path / "new").step == 4
    assert [path.name for path in checkpoints_of(run, LAST)] == [old.name, newest.name]


@pytest.fixture
def dinov2(arguments: list[str]) -> list[str]:
    return [
        *arguments,
        "model.dino_hub=dinov2_tiny14",
        "transforms.train.crop_size=[56,56]",
        "eval.mode=whole",
    ]


def without_rule(folder: Path) -> None:
    """Make a checkpoint as versions before `model.position_rule` wrote it."""
    facts = json.loads((folder / "state.json").read_text())
    del facts["config"]["model"]["position_rule"], facts["checksum"]
    (folder / "state.json").write_text(json.dumps(facts))


def test_a_checkpoint_says_the_rule_that_it_was_trained_under(dinov2: list[str], tmp_path: Path) -> None:
    config = load_config(dinov2)
    for rule in ("offset", "size"):
        parts = build_parts(replace(config, model=replace(config.model, position_rule=rule)), ALONE)
        assert state_of(config, parts, 4, None).config["model"]["position_rule"] == rule


def test_another_rule_for_positions_than_the_checkpoints_is_refused(
    dinov2: list[str], tmp_path: Path
) -> None:
    config = load_config([*dinov2, "resume_from=auto"])
    published = build_parts(config, ALONE)
    by_size = build_parts(load_config([*dinov2, "model.position_rule=size"]), ALONE)
    folder = save_at(tmp_path, config, published, 4)
    assert begin(config, ALONE, published, tmp_path).step == 4
    with pytest.raises(ConfigError, match=r"model\.position_rule was offset and is size now"):
        begin(config, ALONE, by_size, tmp_path)
    with pytest.raises(ConfigError, match=r"trained with model\.position_rule=offset, not size"):
        check_trained_on(read_checkpoint(folder).state, config, by_size.segmenter.backbone, "x")
    without_rule(folder)
    assert begin(config, ALONE, by_size, tmp_path).step == 4
    with pytest.raises(ConfigError, match=r"model\.position_rule was size and is offset now"):
        begin(config, ALONE, published, tmp_path)
    with pytest.raises(ConfigError, match=r"trained with model\.position_rule=size, not offset"):
        check_trained_on(read_checkpoint(folder).state, config, published.segmenter.backbone, "x")


def test_starting_from_weights_of_another_rule_is_said(
    dinov2: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config(dinov2)
    parts = build_parts(config, ALONE)
    folder = save_at(tmp_path / "old", config, parts, 4)
    again = load_config([*dinov2, f"init_from={folder}"])
    begin(again, ALONE, parts, tmp_path / "new")
    assert "position_rule" not in caplog.text
    without_rule(folder)
    begin(again, ALONE, parts, tmp_path / "new")
    assert "trained with model.position_rule=size and goes on with offset" in caplog.text
