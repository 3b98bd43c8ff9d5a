import errno
import hashlib
import json
import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from maskshards.train.checkpoint.checkpoint import (
    CheckpointError,
    TrainState,
    load_weights,
    read_checkpoint,
    read_part,
    read_state,
    save_best,
    save_checkpoint,
    save_final,
    save_last,
)
from maskshards.train.checkpoint.run_files import BEST, LAST, checkpoints_of
from maskshards.train.config.load import TrainConfig
from maskshards.train.config.schema import BackboneLayers
from maskshards.train.trainer.build import build_model

STATE = TrainState(
    step=0,
    position=0, fingerprint="f", global_batch=4, seed=1, backbone="dinov3_tiny16", backbone_digest="d",
    class_names=["sky", "road"], config={"bs": 2, "gradient_clip": "inf"},
)  # fmt: skip


def weights(value: float = 1.0) -> dict[str, Tensor]:
    return {"segmentation_model.1.conv.weight": torch.full((2, 3), value), "count": torch.tensor(3)}


def save_step(run: Path, step: int, value: float = 1.0) -> Path:
    moments = {"exp_avg/segmentation_model.1.conv.weight": torch.full((2, 3), 0.5)}
    return save_last(run, replace(STATE, step=step, position=4 * step), weights(value), moments)


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    folder = save_step(tmp_path, 7, 0.25)
    found = read_checkpoint(folder)
    assert found.state == replace(STATE, step=7, position=28, digests=found.state.digests)  # type: ignore[union-attr]
    assert found.weights.keys() == weights().keys()
    assert all(torch.equal(found.weights[key], value) for key, value in weights(0.25).items())
    moments = read_part(folder, "optimizer.safetensors", read_state(folder / "state.json"))
    assert float(moments["exp_avg/segmentation_model.1.conv.weight"].sum()) == 3.0


def test_every_file_of_a_checkpoint_is_told_while_it_is_written(tmp_path: Path) -> None:
    told: list[str] = []
    save_last(tmp_path, STATE, {"a": torch.ones(2)}, {"m": torch.ones(2)}, {"a": torch.ones(2)}, told.append)
    each = [f"saving {part}" for part in ("weights.safetensors", "optimizer.safetensors", "ema.safetensors")]
    assert told == [words for words in each for _ in range(2)]  # before and after it was written
    save_best(tmp_path, STATE, {"a": torch.ones(2)}, told.append)
    assert told[-1] == "saving weights.safetensors"


def test_run_folder_means_best_then_last(tmp_path: Path) -> None:
    save_step(tmp_path, 9)
    assert read_checkpoint(tmp_path).path.name == "step-00000009"
    save_best(tmp_path, replace(STATE, step=4, score=50.0), weights())
    assert read_checkpoint(tmp_path).path.name == "best-00000004"


def test_the_newest_of_several_is_meant_and_a_final_file_where_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")  # of somebody's, and no export without tensors beside it
    final = save_final(tmp_path, replace(STATE, step=12), weights())
    assert read_checkpoint(tmp_path).path == final
    for step in (9, 100, 11):
        save_step(tmp_path, step)
    assert [path.name for path in checkpoints_of(tmp_path, LAST)] == [
        "step-00000009", "step-00000011", "step-00000100",
    ]  # fmt: skip
    assert read_checkpoint(tmp_path).path.name == "step-00000100"


def test_a_step_that_is_saved_again_takes_the_place_of_the_former(tmp_path: Path) -> None:
    save_step(tmp_path, 7, 1.0)
    folder = save_step(tmp_path, 7, 2.0)
    assert float(read_checkpoint(folder).weights["segmentation_model.1.conv.weight"].max()) == 2.0
    assert list((tmp_path / "checkpoints").iterdir()) == [folder]


def test_a_best_that_cannot_be_removed_is_told_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    former = save_best(tmp_path, replace(STATE, step=4), weights())

    def busy(path: Path, **_: object) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))

    monkeypatch.setattr("maskshards.train.checkpoint.checkpoint.shutil.rmtree", busy)
    newest = save_best(tmp_path, replace(STATE, step=8), weights())
    assert f"{former} cannot be removed yet" in caplog.text
    assert checkpoints_of(tmp_path, BEST) == [former, newest]


def test_each_file_is_on_disk_before_the_checkpoint_shows_and_its_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut then finds a whole checkpoint, or none."""
    done: list[tuple[str, ...]] = []
    flush, show = os.fsync, Path.rename

    def fsync(handle: int) -> None:
        done.append(("flush", Path(os.readlink(f"/proc/self/fd/{handle}")).name))
        flush(handle)

    def rename(path: Path, target: Path) -> Path:
        done.append(("show", path.name, target.name))
        return show(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    for number, first in ((1, [("flush", tmp_path.name)]), (2, [])):
        done.clear()
        name = save_step(tmp_path, number).name
        assert done == [
            *first,
            ("flush", "weights.safetensors"),
            ("flush", "optimizer.safetensors"),
            ("flush", "state.json"),
            ("flush", f".{name}"),
            ("show", f".{name}", name),
            ("flush", "checkpoints"),
        ]


def test_a_new_best_replaces_the_former_even_an_earlier_step(tmp_path: Path) -> None:
    save_best(tmp_path, replace(STATE, step=8), weights())
    save_best(tmp_path, replace(STATE, step=4), weights())
    assert [path.name for path in checkpoints_of(tmp_path, BEST)] == ["best-00000004"]


def test_best_cannot_be_continued(tmp_path: Path) -> None:
    folder = save_best(tmp_path, STATE, weights())
    with pytest.raises(CheckpointError, match="cannot be continued"):
        read_part(folder, "optimizer.safetensors", read_state(folder / "state.json"))


def test_leftover_of_a_killed_write_is_no_checkpoint_and_is_cleaned(tmp_path: Path) -> None:
    save_step(tmp_path, 1)
    torn = tmp_path / "checkpoints" / ".step-00000002"
    torn.mkdir()
    (torn / "weights.safetensors").write_bytes(b"half")
    assert [path.name for path in checkpoints_of(tmp_path, LAST)] == ["step-00000001"]
    save_step(tmp_path, 2)
    assert not torn.exists()


@pytest.mark.parametrize("part", ["weights.safetensors", "state.json"])
def test_damage_is_noticed_and_named(tmp_path: Path, part: str) -> None:
    folder = save_step(tmp_path, 1)
    data = bytearray((folder / part).read_bytes())
    data[len(data) // 2] ^= 0xFF
    (folder / part).write_bytes(data)
    with pytest.raises(CheckpointError, match=part):
        read_checkpoint(folder)


def test_final_file_holds_tensors_only_and_its_facts_beside_it(tmp_path: Path) -> None:
    path = save_final(tmp_path, replace(STATE, step=5), weights())
    plain = torch.load(path, weights_only=True)
    assert plain.keys() == weights().keys()
    found = read_checkpoint(path)
    assert found.state is not None
    assert (found.state.step, found.state.class_names) == (5, ["sky", "road"])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model_final.json", "model_final.pth"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(path)


def test_bare_and_wrapped_weight_files(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "flat.pth")
    torch.save({"model": weights(), "step": 3}, tmp_path / "wrapped.pth")
    for name in ("flat.pth", "wrapped.pth"):
        found = read_checkpoint(tmp_path / name)
        assert found.weights.keys() == weights().keys()
        assert found.state is None


@pytest.mark.parametrize("content", [b"", b"no tensors", json.dumps([1]).encode()])
@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors"])
def test_files_that_hold_no_tensors(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        read_checkpoint(tmp_path / name)


def test_an_exported_folder_is_read_like_a_checkpoint(tmp_path: Path) -> None:
    folder = save_best(tmp_path, replace(STATE, step=4), weights())
    facts = json.loads((folder / "state.json").read_text())
    facts |= {"digests": {"model.safetensors": facts["digests"]["weights.safetensors"]}, "model_type": "x"}
    del facts["checksum"]  # people write into that file
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "config.json").write_text(json.dumps(facts))
    (folder / "weights.safetensors").rename(hub / "model.safetensors")
    found = read_checkpoint(hub)
    assert found.state is not None
    assert found.state.step == 4
    assert found.weights.keys() == weights().keys()


@pytest.mark.parametrize("content", [[1], {"step": 3}, {"model": {"step": 3}}, {"model": [torch.ones(1)]}])
def test_a_pth_of_other_things_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth holds something else than named tensors"):
        read_checkpoint(tmp_path / "other.pth")


def test_a_file_that_went_missing_is_named(tmp_path: Path) -> None:
    folder = save_step(tmp_path, 1)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"weights\.safetensors cannot be read"):
        read_checkpoint(folder)


def test_pth_with_code_in_it_is_refused(tmp_path: Path) -> None:
    torch.save({"model": nn.Linear(1, 1)}, tmp_path / "code.pth")
    with pytest.raises(CheckpointError, match=r"code\.pth .*never run\. Pass") as caught:
        read_checkpoint(tmp_path / "code.pth")
    assert "weights_only" not in str(caught.value)  # torch would advise to switch that off


def test_files_that_only_look_like_a_head_are_told_apart(tmp_path: Path) -> None:
    page, other = tmp_path / "page.pth", tmp_path / "head-0123abcd.pth"
    page.write_bytes(b"<!DOCTYPE html><html>")
    with pytest.raises(CheckpointError, match=r"page\.pth: is a web page"):
        read_checkpoint(page)
    torch.save(weights(), other)
    with pytest.raises(CheckpointError, match="promises a sha256 that begins with 0123abcd"):
        read_checkpoint(other)


def mask_decoder(hidden_dim: int = 32, num_classes: int = 5, seed: int = 0) -> nn.Module:
    config = TrainConfig()
    config.model.dino_hub, config.model.weights, config.seed = "dinov3_tiny16", "random", seed
    head = config.decoder_head
    head.backbone_out_layers = BackboneLayers.FOUR_EVEN_INTERVALS
    head.hidden_dim, head.num_classes, head.ffn_dim, head.num_queries = hidden_dim, num_classes, 64, 10
    return build_model(config, torch.device("cpu")).decoder


def test_published_heads_load_strictly_flat_and_wrapped_under_a_name_with_their_digest(
    tmp_path: Path,
) -> None:
    given = mask_decoder(seed=1).state_dict()
    assert len(given) == 479
    torch.save({"model": given, "optimizer": {"lr": 1.0}}, tmp_path / "wrapped.pth")
    torch.save(given, tmp_path / "flat.pth")
    digest = hashlib.sha256((tmp_path / "flat.pth").read_bytes()).hexdigest()[:8]
    flat = (tmp_path / "flat.pth").rename(tmp_path / f"dinov3_vit7b16_ade20k_m2f_head-{digest}.pth")
    for path in (flat, tmp_path / "wrapped.pth"):
        head = mask_decoder()
        load_weights(head, read_checkpoint(path))
        assert all(torch.equal(tensor, given[key]) for key, tensor in head.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"hidden_dim": 64}, r"of another shape \(segmentation_model\.1\..*hidden_dim"),
        ({"num_classes": 7}, r"class_embed\.bias \(6,\), the model has \(8,\).*num_classes"),
    ],
)
def test_a_head_of_another_width_or_class_count_is_refused(
    settings: dict[str, int], words: str, tmp_path: Path
) -> None:
    torch.save(mask_decoder().state_dict(), tmp_path / "head.pth")
    with pytest.raises(CheckpointError, match=words):
        load_weights(mask_decoder(**settings), read_checkpoint(tmp_path / "head.pth"))


@pytest.mark.parametrize("name", ["nothing.pth", "."])
def test_nothing_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"does not exist; give a run|holds no checkpoint"):
        read_checkpoint(tmp_path / name)


def test_loading_is_strict_and_lists_what_differs(tmp_path: Path) -> None:
    head = nn.Linear(3, 2)
    torch.save({"weight": torch.ones(2, 4), "extra": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError) as caught:
        load_weights(head, read_checkpoint(tmp_path / "other.pth"))
    for part in (
        "other.pth",
        "1 missing (bias)",
        "1 unexpected (extra)",
        "weight (2, 4), the model has (2, 3)",
    ):
        assert part in str(caught.value)


def test_of_many_faults_the_first_four_are_listed(tmp_path: Path) -> None:
    torch.save({f"extra{number}": torch.ones(1) for number in range(6)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError) as caught:
        load_weights(nn.Linear(3, 2), read_checkpoint(tmp_path / "other.pth"))
    assert "6 unexpected (extra0; extra1; extra2; extra3)" in str(caught.value)


def test_backbone_keys_of_a_full_model_are_passed_over(tmp_path: Path) -> None:
    head = nn.Linear(3, 2)
    full = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
    torch.save(full | {"segmentation_model.0.backbone.norm.weight": torch.ones(4)}, tmp_path / "full.pth")
    load_weights(head, read_checkpoint(tmp_path / "full.pth"))
    assert torch.equal(head.weight, torch.ones(2, 3))


def test_a_full_disk_leaves_the_checkpoints_of_before(tmp_path: Path) -> None:
    before = save_step(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # bytes of a file: like a disk that is full
    try:
        with pytest.raises(OSError, match=r"too large.*\.step-00000002/weights"):
            save_step(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoints_of(tmp_path, LAST) == [before]
    assert read_checkpoint(tmp_path).path == before
    after = save_step(tmp_path, 3)
    assert sorted((tmp_path / "checkpoints").iterdir()) == [before, after]


def test_a_link_in_place_of_the_hidden_file_is_not_followed(tmp_path: Path) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside.json"
    run.mkdir()
    outside.write_text("precious")
    (run / ".model_final.json.part").symlink_to(outside)
    save_final(run, STATE, weights())
    assert outside.read_text() == "precious"


def test_a_strangers_dot_file_stops_no_save(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    (folder / ".step-00000002").mkdir(parents=True)  # what a killed save leaves
    (folder / ".DS_Store").write_bytes(b"\0")
    save_checkpoint(tmp_path, "step-00000003", STATE, {})
    assert sorted(path.name for path in folder.iterdir()) == [".DS_Store", "step-00000003"]


@pytest.mark.parametrize("fails", ["fsync", "rename"])
def test_a_disk_that_refuses_leaves_the_former_checkpoint_and_no_half_of_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    former = save_step(tmp_path, 4)

    def refused(*given: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os if fails == "fsync" else Path, fails, refused)
        with pytest.raises(OSError, match="No space left"):
            save_step(tmp_path, 8)
    assert list((tmp_path / "checkpoints").iterdir()) == [former]
    assert read_checkpoint(former).state is not None
    save_step(tmp_path, 8)
    assert [path.name for path in checkpoints_of(tmp_path, LAST)] == ["step-00000004", "step-00000008"]


def test_what_stopped_a_save_is_told_and_not_that_its_rest_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def busy(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr("maskshards.train.checkpoint.checkpoint.shutil.rmtree", busy)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(OSError, match="No space left"):
        save_step(tmp_path, 8)
