"""torch.compile for training, in place: the same modules, parameters, keys and hooks, with compiled forwards.

Only training runs compiled: there every batch has one shape, so each piece is compiled once. Evaluation
meets windows and images of many sizes and runs eagerly (`Segmenter.scores`), so it never compiles again and
scores do not depend on the choice. The pieces are the backbone's blocks (which share one program), and those
that the head names. Pieces rather than one whole, because a phase clock hooks between them.
"""

from __future__ import annotations

from typing import Any

import torch

from maskshards.train.model.backbone.frozen import blocks_of
from maskshards.train.model.segmenter import Segmenter

DEFAULT_MODE = "default"  # of torch.compile; its other modes use CUDA graphs
GRAPH = "graph"  # ours: the step is recorded as a whole (`maskshards.train.capture`), whatever is compiled


def compile_in_place(segmenter: Segmenter, what: str, **options: Any) -> None:
    """Let `what` (none, backbone or model) be compiled at its first training step.

    `options` go to torch.compile.

    Call it once batch norms are synced, before DistributedDataParallel.
    """
    if what == "none":
        return
    options = {"dynamic": False, **options}
    if options.get("mode") == GRAPH:
        options["mode"] = DEFAULT_MODE
    # Gradients cross the ranks a piece at a time as it is; splitting pieces further refuses checkpointing.
    torch._dynamo.config.optimize_ddp = False
    segmenter.backbone.compile_blocks(**options)
    if what == "model":
        for piece in segmenter.decoder.pieces():
            # nn.Module.compile would take the piece's hooks into the graph, and a clock must not be traced.
            piece.__dict__["forward"] = torch.compile(piece.forward, **options)
    segmenter.compiled = True


def run_eagerly(segmenter: Segmenter) -> None:
    """Take back what `compile_in_place` did: forwards are the modules' own again."""
    for block in blocks_of(segmenter.backbone.vit):
        block._compiled_call_impl = None
    for piece in segmenter.decoder.pieces():
        piece.__dict__.pop("forward", None)
    segmenter.compiled = False


def uses_cuda_graphs(mode: str) -> bool:
    """Whether a step's tensors may be overwritten by the next step's, so that `begin_step` must part them.

    Not where the whole step is recorded: what it hands out is copied, and its gradients stay.
    """
    return mode not in (DEFAULT_MODE, GRAPH)


def begin_step(mode: str) -> None:
    """Once an optimiser step, before its first forward pass: nothing of the step before is read any more.

    Without it torch would take each piece's call for a step of its own, and the maps that the backbone just
    gave for free memory. Micro-steps of one optimiser step share it, since their gradients add up.
    """
    if uses_cuda_graphs(mode):
        torch.compiler.cudagraph_mark_step_begin()
