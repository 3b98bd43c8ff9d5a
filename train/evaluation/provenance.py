"""What a model is a model of: its classes, the rule that made them, its backbone, the scale of its pixels.

Each is known in two places whenever weights meet data or settings. A score or a label under a wrong name is
worse than none, so what must agree is an error that names the first class that differs, and what may differ
on purpose is told by name.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from maskshards.shards.errors import counted
from maskshards.shards.format.manifest import Manifest
from maskshards.train.checkpoint.train_state import TrainState
from maskshards.train.config.schema import ConfigError, TrainConfig
from maskshards.train.model.backbone.architectures import trained_position_rule, trained_precision
from maskshards.train.model.backbone.frozen import FrozenBackbone

logger = logging.getLogger(__name__)


def check_trained_on(
    state: TrainState | None, config: TrainConfig, backbone: FrozenBackbone, where: str
) -> None:
    """ConfigError if the weights at `where` were trained on another backbone, or rule of its positions.

    Another mean or std is told: it may be meant.
    """
    if state is None:
        return
    digest = backbone.digest
    if (state.backbone, state.backbone_digest) != (config.model.dino_hub, digest):
        weights = config.model.weights or config.model.pretrained_weights or "its published weights"
        raise ConfigError(
            f"{where} was trained on the backbone {state.backbone} with digest {state.backbone_digest}, but "
            f"model.dino_hub={config.model.dino_hub} from {weights} has digest {digest}; "
            "point model.weights at the weights of the training run"
        )
    if trained_rule(state) != backbone.position_rule:
        raise ConfigError(
            f"{where} was trained with model.position_rule={trained_rule(state)}, not "
            f"{backbone.position_rule}: leave the key out, and the checkpoint's is taken"
        )
    warn_of_another_precision(state, backbone, where)
    for line in told_differences(state, config):
        logger.warning("%s: %s", where, line)


def warn_of_another_rule(state: TrainState | None, backbone: FrozenBackbone, where: str) -> None:
    """Training may start from weights that saw features of another rule, but not unsaid."""
    if state is not None and state.backbone == backbone.arch.name:
        before, now = trained_rule(state), backbone.position_rule
        if before != now:
            logger.warning(
                "%s was trained with model.position_rule=%s and goes on with %s: features differ by some %%",
                *(where, before, now),
            )


def warn_of_another_precision(state: TrainState, backbone: FrozenBackbone, where: str) -> None:
    """Scores from features of another precision are near those of the training, but not the same."""
    before = trained_precision(state.config.get("model", {}))
    if before != backbone.precision:
        logger.warning(
            "%s was trained with model.backbone_precision=%s, and features are made with %s now: they differ "
            "by some %%; leave the key out, and the checkpoint's is taken",
            *(where, before, backbone.precision),
        )


def trained_rule(state: TrainState) -> str | None:
    """The rule for positions that the weights beside `state` were trained under."""
    return trained_position_rule({**state.config.get("model", {}), "dino_hub": state.backbone})


def check_classes(trained: Sequence[str], manifest: Manifest, where: str) -> None:
    """ConfigError, with the first class that differs, if the shards list other classes than the model's."""
    found = manifest.classes
    if tuple(trained) == tuple(found):
        return
    shards = f"the shards of {manifest.dataset!r} ({manifest.split})"
    if len(trained) != len(found):
        raise ConfigError(
            f"{where} has {counted(len(trained), 'class')}, {shards} have {len(found)}: build the shards "
            "with the class list of the training"
        )
    place = next(k for k, (one, other) in enumerate(zip(trained, found, strict=True)) if one != other)
    same = sorted(trained) == sorted(found)
    raise ConfigError(
        f"{where} was trained on other classes than those of {shards}: class {place} is {trained[place]!r} "
        f"in the model and {found[place]!r} in the shards"
        + ("; they are the same names in another order" if same else "")
        + ". Build the shards with the class list of the training"
    )


def check_against_split(state: TrainState | None, manifest: Manifest, where: str) -> None:
    """ConfigError if the model was trained on other classes than those of the split that it is scored on.

    Another rule by which labels became classes is told. Nothing is compared with weights without facts.
    """
    if state is None:
        return
    check_classes(state.class_names, manifest, where)
    if state.label_rule is not None and state.label_rule != manifest.label_rule:
        logger.warning(
            "%s: the label rule was %s in the training shards and is %s in those of %r (%s)",
            *(where, _rule(state.label_rule), _rule(manifest.label_rule), manifest.dataset, manifest.split),
        )


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
