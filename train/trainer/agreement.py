"""All ranks do the same job: one program, one configuration, one data set, one backbone.

Nodes that were started with other words, or hold another checkout or another copy of the data, would average
gradients of different things, or stop in different steps, without a word.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch

import maskshards
from maskshards.shards.order.order import ORDER_VERSION
from maskshards.train.config.load import flatten, to_plain
from maskshards.train.config.schema import ConfigError, TrainConfig
from maskshards.train.distributed.ranks import Ranks

# Places and threads may differ between nodes: what stands there is compared instead. `output_dir` is the
# first rank's.
OF_A_NODE = (
    "output_dir", "resume_from", "init_from", "load_from", "num_workers",
    "datasets.root", "datasets.train", "datasets.val",
    "model.weights", "model.pretrained_weights",
)  # fmt: skip
SECTIONS_OF_A_NODE = ("loader.", "log.")


def check_same_job(config: TrainConfig, ranks: Ranks) -> None:
    """ConfigError on every rank for the first setting or version that is not the same on all."""
    plain = to_plain(config)
    facts = {
        "the version of maskshards": maskshards.__version__,
        "the digest of the program's files": program_digest() if ranks.control else "",
        "the version of torch": torch.__version__,
        "the version of the data order": ORDER_VERSION,
    }
    for key in flatten(plain):
        if key not in OF_A_NODE and not key.startswith(SECTIONS_OF_A_NODE):
            value: object = plain
            for part in key.split("."):
                value = value[part] if isinstance(value, dict) else None
            facts[key] = value
    check_same(facts, ranks)


def program_digest(root: Path = Path(maskshards.__file__).parent) -> str:
    """SHA-256, in hexadecimal, over the package's sources.

    Checkouts of one version differ by commits and edits.
    """
    # A checkout's rooms are links, which `rglob` does not follow.
    folders = os.walk(root, followlinks=True)
    paths = [Path(folder, name) for folder, _, names in folders for name in names if name.endswith(".py")]
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def check_same(facts: Mapping[str, object], ranks: Ranks) -> None:
    """ConfigError on every rank for the first of `facts`, plain values, that is another than rank 0's."""
    first, *others = (json.loads(text) for text in ranks.gather(json.dumps(facts)))
    for rank, theirs in enumerate(others, start=1):
        for name in [*first, *(name for name in theirs if name not in first)]:
            if first.get(name) != theirs.get(name):
                raise ConfigError(
                    f"the ranks do not do the same job: {name} is {first.get(name)} on rank 0 and "
                    f"{theirs.get(name)} on rank {rank}; start every node with the same command, program "
                    "and data"
                )
