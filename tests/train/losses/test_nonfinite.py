"""Non-finite costs: what the error says and what the dump holds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from maskshards.shards.batch import CropBatch
from maskshards.train.losses.nonfinite import NonFiniteError, check_costs
from maskshards.train.model.heads.prediction import Prediction


def inputs() -> tuple[np.ndarray, list[Prediction], CropBatch]:
    costs = np.zeros((2, 2, 3, 4), dtype=np.float32)
    predictions = [
        Prediction(torch.full((2, 3, 5), float(i)), torch.full((2, 3, 2, 2), float(i))) for i in range(2)
    ]
    crops = CropBatch(
        torch.zeros(2, 3, 8, 8),
        torch.zeros(2, 8, 8, dtype=torch.int16),
        torch.tensor([[1, 2, 3, -1]] * 2),
        ("a", "b/c"),
        (7, 8),
    )
    return costs, predictions, crops


def test_finite_costs_pass(tmp_path: Path) -> None:
    check_costs(*inputs(), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_bad_pair_is_named_and_dumped(value: float, tmp_path: Path) -> None:
    costs, predictions, crops = inputs()
    costs[1, 1, 2] = value
    with pytest.raises(
        NonFiniteError, match=r"layer 1, image 'b/c' \(position 8\), 1 of 3 queries; 1 of 4"
    ) as raised:
        check_costs(costs, predictions, crops, tmp_path)
    (path,) = tmp_path.iterdir()
    assert str(path) in str(raised.value)
    with safe_open(path, "pt") as dump:
        assert dump.metadata() == {"key": "b/c", "position": "8", "layer": "1"}
        assert dump.get_tensor("mask_logits").eq(1.0).all()
        assert set(dump.keys()) == {"image", "owner_map", "labels", "class_logits", "mask_logits"}


def test_without_a_folder_the_error_says_so() -> None:
    costs, predictions, crops = inputs()
    costs[0, 0, 0, 0] = np.nan
    with pytest.raises(NonFiniteError, match="no folder was given"):
        check_costs(costs, predictions, crops, None)


def test_a_dump_never_follows_a_link(tmp_path: Path) -> None:
    costs, predictions, crops = inputs()
    costs[1, 1, 2] = np.nan
    precious, folder = tmp_path / "precious", tmp_path / "nonfinite"
    precious.write_text("keep")
    folder.mkdir()
    name = "nonfinite-position8-layer1.safetensors"
    for link in (name, f".{name}.part"):
        (folder / link).symlink_to(precious)
    with pytest.raises(NonFiniteError):
        check_costs(costs, predictions, crops, folder)
    assert precious.read_text() == "keep"
    assert [path.name for path in folder.iterdir()] == [name]
    assert not (folder / name).is_symlink()
