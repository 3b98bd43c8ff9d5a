"""What a model is a model of: its classes, the rule that made them, its backbone, the scale of its pixels.

Each is known in two places whenever weights meet data or settings. A score or a label under a wrong name is
worse than none, so what must agree is an error that names the first class that differs, and what may differ
on purpose is told by name.
"""

from __future__ import annotations

from collections.abc import Sequence

from maskshards.shards.format.manifest import Manifest
from maskshards.train.checkpoint.train_state import TrainState
from maskshards.train.config.schema import ConfigError, TrainConfig


def check_backbone(state: TrainState, config: TrainConfig, digest: str, where: str) -> None:
    """ConfigError if the weights at `where` were trained on another backbone than the one now loaded."""
    if (state.backbone, state.backbone_digest) != (config.model.dino_hub, digest):
        weights = config.model.weights or config.model.pretrained_weights or "its published weights"
        raise ConfigError(
            f"{where} was trained on the backbone {state.backbone} with digest {state.backbone_digest}, but "
            f"model.dino_hub={config.model.dino_hub} from {weights} has digest {digest}; "
            "point model.weights at the weights of the training run"
        )


def check_classes(trained: Sequence[str], manifest: Manifest, where: str) -> None:
    """ConfigError, with the first class that differs, if the shards list other classes than the model's."""
    found = manifest.classes
    if tuple(trained) == tuple(found):
        return
    shards = f"the shards of {manifest.dataset!r} ({manifest.split})"
    if len(trained) != len(found):
        raise ConfigError(f"{where} has {len(trained)} classes, {shards} have {len(found)}")
    place = next(k for k, (one, other) in enumerate(zip(trained, found, strict=True)) if one != other)
    same = sorted(trained) == sorted(found)
    raise ConfigError(
        f"{where} was trained on other classes than those of {shards}: class {place} is {trained[place]!r} "
        f"in the model and {found[place]!r} in the shards"
        + ("; they are the same names in another order" if same else "")
        + ". Build the shards with the class list of the training"
    )


def check_against_split(state: TrainState | None, manifest: Manifest, where: str) -> list[str]:
    """Compare a model's facts with the split that it is to be scored on.

    ConfigError for other classes; returns what else differs, a sentence each: the rule by which labels
    became classes. Nothing is compared with weights that came without facts.
    """
    if state is None:
        return []
    check_classes(state.class_names, manifest, where)
    if state.label_rule is None or state.label_rule == manifest.label_rule:
        return []
    return [
        f"the label rule was {_rule(state.label_rule)} in the training shards and is "
        f"{_rule(manifest.label_rule)} in those of {manifest.dataset!r} ({manifest.split})"
    ]


def told_differences(state: TrainState, config: TrainConfig) -> list[str]:
    """A sentence for each of mean and std that is not the one of the training."""
    stored = state.config.get("transforms")
    lines = []
    for name in ("mean", "std"):
        before, now = (stored or {}).get(name), list(getattr(config.transforms, name))
        if before is not None and list(before) != now:
            lines.append(f"transforms.{name} was {list(before)} in the training and is {now} now")
    return lines


def _rule(rule: dict[str, object]) -> str:
    return ", ".join(f"{key}={value}" for key, value in rule.items()) or "none"
