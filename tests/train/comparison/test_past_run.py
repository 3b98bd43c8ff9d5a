"""Folders of runs read again, and folders that are none."""

import json
from pathlib import Path

import pytest

from maskshards.train.checkpoint.train_state import TrainState, state_json
from maskshards.train.comparison.past_run import RunError, check_run, read_run

STATE = TrainState(
    step=4, position=8, fingerprint="f00d", global_batch=2, seed=1, backbone="dinov3_tiny16",
    backbone_digest="d", class_names=["sky", "sea"], config={}, val_fingerprint="beef",
)  # fmt: skip
RESULT = {
    "unit": "percent", "num_images": 3, "mIoU": 50.0, "aAcc": None,
    "classes": [{"name": "sky", "iou": 50.0}, {"name": "sea", "iou": None}],
}  # fmt: skip


def made(folder: Path, result=RESULT) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("bs: 2\noptimizer:\n  lr: 0.001\n")
    (folder / "metrics.jsonl").write_text('{"kind": "eval", "step": 4, "mIoU": 50.0}\n')
    (folder / "results-semantic-segmentation.json").write_text(json.dumps(result))
    (folder / "model_final.json").write_bytes(state_json(STATE, {}))
    return folder


def test_all_files_of_a_run(tmp_path):
    run = read_run(made(tmp_path / "a"))
    assert run.config == {"bs": 2, "optimizer.lr": 0.001}
    assert run.records == [{"kind": "eval", "step": 4, "mIoU": 50.0}]
    assert (run.means["mIoU"], run.means["aAcc"]) == (50.0, None)
    assert run.classes == {"sky": 50.0, "sea": None}
    assert run.num_images == 3
    assert run.state is not None
    assert run.state.val_fingerprint == "beef"


def test_a_run_on_its_way_and_an_evaluation(tmp_path):
    started = made(tmp_path / "started")
    for name in ("results-semantic-segmentation.json", "model_final.json"):
        (started / name).unlink()
    newest = started / "checkpoints/step-00000004"
    newest.mkdir(parents=True)
    (newest / "state.json").write_bytes(state_json(STATE, {}))
    run = read_run(started)
    assert (run.means["mIoU"], run.classes, run.num_images) == (None, {}, None)
    assert run.state == STATE
    evaluation = made(tmp_path / "evaluation")
    for name in ("metrics.jsonl", "model_final.json"):
        (evaluation / name).unlink()
    assert (read_run(evaluation).records, read_run(evaluation).state) == ([], None)


def test_folders_that_are_no_runs(tmp_path):
    with pytest.raises(RunError, match=r"/none does not exist; name the output_dir"):
        check_run(tmp_path / "none")
    with pytest.raises(RunError, match=r"is no run: there is no config\.yaml"):
        check_run(tmp_path)
    (tmp_path / "config.yaml").write_text("bs: 1\n")
    with pytest.raises(RunError, match="nothing was trained or evaluated there yet"):
        check_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("config.yaml", "- 1\n", "holds a list"),
        ("config.yaml", "a: [", "cannot be read"),
        ("config.yaml", "a: !!int ''", "cannot be read"),
        ("config.yaml", "a: 2001-99-99", "cannot be read"),
        ("results-semantic-segmentation.json", '{"mIoU": NaN}', "NaN is no JSON"),
        ("results-semantic-segmentation.json", '{"mIoU": 1, "mIoU": 2}', "stands in it twice"),
        ("results-semantic-segmentation.json", f'{{"mIoU": 1{"0" * 400}}}', "is no result"),
        ("results-semantic-segmentation.json", "{", "cannot be read"),
        ("results-semantic-segmentation.json", "[" * 100_000, "cannot be read"),
        (
            "results-semantic-segmentation.json",
            '{"classes": [{"name": "a"}]}',
            "is no result of an evaluation",
        ),
        ("results-semantic-segmentation.json", '{"classes": 7}', "is no result"),
        ("results-semantic-segmentation.json", '{"mIoU": "high"}', "is no result"),
        ("results-semantic-segmentation.json", '{"classes": [[]]}', "is no result"),
        ("model_final.json", "{}", "is not the state of a checkpoint"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, told):
    made(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=told) as caught:
        read_run(tmp_path)
    assert str(tmp_path / name) in str(caught.value)
