"""Divergence is reported where it shows first: a matching cost that is not a number stops the step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from maskshards.shards.batch import CropBatch
from maskshards.shards.storage.atomic_write import replacing
from maskshards.train.model.heads.prediction import Prediction


class NonFiniteError(ArithmeticError):
    """The model's answer to one image holds NaN or infinity."""


def check_costs(
    costs: np.ndarray, predictions: Sequence[Prediction], crops: CropBatch, dump_dir: Path | None
) -> None:
    """Raise NonFiniteError that names layer and image if any of `costs` (L, B, Q, K) is not finite.

    The image's crop, its labels and that layer's logits go to a safetensors file in `dump_dir`, if one
    is given.
    """
    bad = ~np.isfinite(costs).all(axis=(2, 3))
    if not bad.any():
        return
    layer, image = (int(i) for i in np.argwhere(bad)[0])
    queries = ~np.isfinite(costs[layer, image]).all(axis=1)
    key, position = crops.keys[image], crops.positions[image]
    where = "nothing was dumped: no folder was given"
    if dump_dir is not None:
        where = f"see {_dump(dump_dir, layer, image, predictions[layer], crops)}"
    raise NonFiniteError(
        f"matching costs are not finite: layer {layer}, image {key!r} (position {position}), "
        f"{int(queries.sum())} of {len(queries)} queries; {int(bad.sum())} of {bad.size} layer-image pairs "
        f"in all; {where}. Lower the learning rate or resume from the last checkpoint."
    )


def _dump(folder: Path, layer: int, image: int, prediction: Prediction, crops: CropBatch) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"nonfinite-position{crops.positions[image]}-layer{layer}.safetensors"
    tensors = {
        "image": crops.images[image],
        "owner_map": crops.owner_map[image],
        "labels": crops.labels[image],
        "class_logits": prediction.class_logits[image],
        "mask_logits": prediction.mask_logits[image],
    }
    whole = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    facts = {"key": crops.keys[image], "position": str(crops.positions[image]), "layer": str(layer)}
    with replacing(path) as hidden:
        save_file(whole, hidden, metadata=facts)
    return path
