"""What is wrong with a run and can be told before torch is loaded, which takes seconds.

By a single process only: of several each would end by itself, while the others still wait for it. The rules
are those of the run, which asks them again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from maskshards.train.checkpoint.output_place import check_output
from maskshards.train.checkpoint.run_files import meant_by, newest_in
from maskshards.train.config.data_facts import with_data_facts
from maskshards.train.config.schema import TrainConfig
from maskshards.train.distributed.launch import alone


def check_early(config: TrainConfig, words: Sequence[str], environment: Mapping[str, str]) -> None:
    """The ValueError or OSError that the run would end with, for what cannot be right.

    That is a launch, an output folder, weights or data.
    """
    if not alone(environment):
        return
    check_output(config, words)
    for weights in (config.load_from, config.init_from):
        if weights is not None:
            meant_by(Path(weights))
    if config.resume_from not in (None, "auto"):
        meant_by(newest_in(Path(config.resume_from)))
    if "://" not in config.datasets.root:  # what a network keeps waiting is read once
        with_data_facts(config)
