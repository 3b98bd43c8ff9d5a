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
    except ManifestError:
        other = other_name(descriptor)
        if other is None:
            raise
        try:
            open_split(split_url(root, other))
        except ManifestError:
            other = None
        if other is None:
            raise
        logger.info("%s: there is no split %s; %s is taken", root, descriptor, other)
        return other
    return descriptor
