"""What a configuration leaves to the data: which split is meant, and how many classes the head has."""

from __future__ import annotations

import logging
from dataclasses import replace

from maskshards.shards.errors import ManifestError, counted
from maskshards.shards.format.manifest import Manifest, open_split
from maskshards.train.config.data import other_name, split_url
from maskshards.train.config.schema import ConfigError, TrainConfig

logger = logging.getLogger(__name__)


def with_data_facts(config: TrainConfig) -> TrainConfig:
    """`config` with the splits that are there and, where none is given, the manifest's number of classes.

    ManifestError where a split is found under neither of its usual names, ConfigError where its classes are
    not as many as the head has.
    """
    datasets, manifests = config.datasets, []
    if not config.load_from:
        train, manifest = split_there(datasets.root, datasets.train or "training")
        datasets, manifests = replace(datasets, train=train), [manifest]
    val, manifest = split_there(datasets.root, datasets.val or "validation")
    head = config.decoder_head
    if head.num_classes is None:
        classes = counted(len(manifest.classes), "class")
        logger.info("the head has %s, as %s lists", classes, manifest.dataset)
        head = replace(head, num_classes=len(manifest.classes))
    config = replace(config, datasets=replace(datasets, val=val), decoder_head=head)
    for one in (*manifests, manifest):
        check_classes(config, one)
    return config


def check_classes(config: TrainConfig, manifest: Manifest) -> None:
    """ConfigError unless a split has as many classes as the head."""
    wanted = config.decoder_head.classes
    if len(manifest.classes) != wanted:
        remedy = f"set decoder_head.num_classes={len(manifest.classes)}"
        if config.load_from:
            remedy = "weights are scored on shards that were built with the class list of their training"
        raise ConfigError(
            f"decoder_head.num_classes is {wanted}, but the manifest of {manifest.dataset!r} "
            f"({manifest.split}) lists {counted(len(manifest.classes), 'class')}; {remedy}"
        )


def split_there(root: str, descriptor: str) -> tuple[str, Manifest]:
    """`descriptor`, or the other usual name of its split where only that is there, and its manifest."""
    try:
        return descriptor, open_split(split_url(root, descriptor)).manifest
    except ManifestError as error:
        other = other_name(descriptor)
        if other is None:
            raise
        if not is_there(root, other):
            raise ManifestError(f"{error}{training_alone(root, descriptor)}") from error
    logger.info("%s: there is no split %s; %s is taken", root, descriptor, other)
    return other, open_split(split_url(root, other)).manifest


def is_there(root: str, descriptor: str) -> bool:
    """Whether a split can be opened."""
    try:
        open_split(split_url(root, descriptor))
    except ManifestError:
        return False
    return True


def training_alone(root: str, descriptor: str) -> str:
    """What to do where the data have a training split and nothing to score on; else nothing."""
    if descriptor not in ("validation", "val") or not (is_there(root, "training") or is_there(root, "train")):
        return ""
    return (
        ". Runs are scored on a validation split: build one, or say datasets.val=training for scores on the "
        "images that are learned from, which say little about others"
    )
