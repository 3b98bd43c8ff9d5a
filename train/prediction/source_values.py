"""Back from class ids to the values that the data set's own label files hold.

ADE20K's files say 1 to 150 where the model says 0 to 149, and its server wants the former. Which rule made
the classes stands in the manifest of the training shards and, from there, in the checkpoint.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from maskshards.train.prediction.image_files import PredictError


def source_values(rule: dict[str, Any], num_classes: int) -> np.ndarray:
    """(num_classes,) uint16: the value in label files that stands for each class; of several the lowest.

    PredictError for a rule that gives a class no value, or that this version does not know.
    """
    if rule.get("mapping") is not None:
        values: dict[int, int] = {}
        for value, label in rule["mapping"].items():
            if label is not None:
                values[int(label)] = min(int(value), values.get(int(label), int(value)))
        missing = [k for k in range(num_classes) if k not in values]
        if missing:
            raise PredictError(
                f"--ids source: the label rule of the training gives class {missing[0]} no value"
            )
        return np.array([values[k] for k in range(num_classes)], np.uint16)
    strange = sorted(rule.keys() - {"num_classes", "ignore_index", "reduce_zero_label", "mapping"})
    if strange:
        raise PredictError(
            f"--ids source: the labels of the training were made by {strange[0]}, not by one value a class"
        )
    first = 1 if rule.get("reduce_zero_label") else 0
    return np.arange(first, first + num_classes, dtype=np.uint16)


def rule_of(label_rule: dict[str, Any] | None, config: dict[str, Any]) -> dict[str, Any] | None:
    """The label rule in a checkpoint's facts.

    Older ones have none: then what `eval.reduce_zero_label` of their configuration states; None where it
    states nothing.
    """
    if label_rule is not None:
        return label_rule
    stated = (config.get("eval") or {}).get("reduce_zero_label")
    return None if stated is None else {"reduce_zero_label": bool(stated)}
