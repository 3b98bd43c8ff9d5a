"""`maskshards plan`: which samples a rank gets in a step, without reading one of them.

Two runs can be compared, and a bad batch found again, from the numbers in a log: the order is a pure
function.
"""

from __future__ import annotations

import argparse
from typing import Any

from maskshards.shards.format.manifest import open_split
from maskshards.shards.order.order import (
    EPOCH_ENDS,
    ORDER_VERSION,
    Order,
    World,
    micro_batch_positions,
    num_micro_steps,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("url", help="a split: its folder or URL")
    parser.add_argument(
        "--global-batch", type=int, required=True, help="samples in one optimiser step, all ranks"
    )
    parser.add_argument("--ranks", type=int, default=1, help="how many ranks there are (default 1)")
    parser.add_argument("--rank", type=int, default=0, help="which of them (default 0)")
    parser.add_argument("--batch-per-rank", type=int, help="samples in one batch (default: no micro-steps)")
    parser.add_argument("--seed", type=int, default=0, help="of the order (default 0)")
    parser.add_argument("--epoch-end", choices=EPOCH_ENDS, default="carry", help="default carry")
    parser.add_argument("--step", type=int, default=0, help="optimiser step, from 0 (default 0)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The plan as JSON values; `keys` are the rank's samples of the step in the order of its batches."""
    world = World(args.rank, args.ranks)
    batch_per_rank = args.batch_per_rank or max(1, args.global_batch // args.ranks)
    micro_steps = num_micro_steps(args.global_batch, batch_per_rank, args.ranks)
    split = open_split(args.url)
    order = Order(split.manifest.shard_samples, args.seed, args.global_batch, args.epoch_end)
    samples = []
    for micro_step in range(micro_steps):
        positions = micro_batch_positions(args.step, micro_step, world, batch_per_rank, args.global_batch)
        shards, places = order.samples(positions)
        indexes = {int(shard): split.index(int(shard)) for shard in set(shards.tolist())}
        samples += [
            {
                "position": int(position),
                "epoch": int(epoch),
                "micro_step": micro_step,
                "shard": split.manifest.shards[shard].name,
                "key": indexes[shard].keys[place],
            }
            for position, epoch, shard, place in zip(
                positions, order.epochs(positions), shards.tolist(), places.tolist(), strict=True
            )
        ]
    return {
        "fingerprint": split.manifest.fingerprint,
        "order_version": ORDER_VERSION,
        "seed": args.seed,
        "global_batch": args.global_batch,
        "rank": args.rank,
        "ranks": args.ranks,
        "step": args.step,
        "keys": [sample["key"] for sample in samples],
        "samples": samples,
    }


def as_text(facts: dict[str, Any]) -> str:
    """One line a sample under a line about the stream."""
    head = (
        f"step {facts['step']}, rank {facts['rank']} of {facts['ranks']}, seed {facts['seed']}, "
        f"global batch {facts['global_batch']}, fingerprint {facts['fingerprint'][:16]}"
    )
    lines = [
        f"{sample['position']:>12}  epoch {sample['epoch']}  micro-step {sample['micro_step']}  "
        f"{sample['shard']}  {sample['key']}"
        for sample in facts["samples"]
    ]
    return "\n".join([head, *lines])
