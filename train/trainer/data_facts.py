"""What a configuration leaves to the data: which split is meant, and how many classes the head has."""

from __future__ import annotations

import logging
from dataclasses import replace

from maskshards.shards.errors import ManifestError
from maskshards.shards.format.manifest import open_split
from maskshards.train.config.data import other_name, split_url
from maskshards.train.config.schema import TrainConfig

logger = logging.getLogger(__name__)


def with_data_facts(config: TrainConfig) -> TrainConfig:
    """`config` with the splits that are there and, where none is given, the manifest's number of classes.

    ManifestError where a split is found under neither of its usual names.
    """
    root, datasets = config.datasets.root, config.datasets
    train = datasets.train if config.load_from else split_there(root, datasets.train or "training")
    val = split_there(root, datasets.val or "validation")
    head = config.decoder_head
    if head.num_classes is None:
        manifest = open_split(split_url(root, val)).manifest
        logger.info("the head has %d classes, as %s lists", len(manifest.classes), manifest.dataset)
        head = replace(head, num_classes=len(manifest.classes))
    return replace(config, datasets=replace(datasets, train=train, val=val), decoder_head=head)


def split_there(root: str, descriptor: str) -> str:
    """`descriptor`, or the other usual name of its split where only that is there."""
    try:
        open_split(split_url(root, descriptor))
    except ManifestError as error:
        other = other_name(descriptor)
        if other is None:
            raise
        if not is_there(root, other):
            raise ManifestError(f"{error}{training_alone(root, descriptor)}") from error
        logger.info("%s: there is no split %s; %s is taken", root, descriptor, other)
        return other
    return descriptor


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
