"""Starting from a head that was trained on other classes: all of it stays but the rows of the classifier.

Rows are taken over by the name of their class, whatever its number, so a class that both data sets have keeps
what was learned about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from maskshards.shards.errors import counted
from maskshards.train.checkpoint.checkpoint import Checkpoint, load_weights

# Entries with one row a class; the query head has one more, for "no object", at the end.
CLASSIFIERS = ("segmentation_model.1.predictor.class_embed.", "segmentation_model.1.conv.")
SHOWN = 8


def load_by_class(decoder: nn.Module, checkpoint: Checkpoint, class_names: Sequence[str]) -> str:
    """Put the weights into `decoder`, whose classes are `class_names`; returns what to say about it.

    It is empty where the checkpoint's classes are the same.

    Of weights without facts nothing is known but the number of their classes: if it is the same, all is
    taken. CheckpointError for a head that differs in more than its classes.
    """
    own, given = decoder.state_dict(), dict(checkpoint.weights)
    trained = checkpoint.state.class_names if checkpoint.state else []
    keys = [key for key in own if key.startswith(CLASSIFIERS) and key in given]
    same_shape = all(own[key].shape == given[key].shape for key in keys)
    if list(trained) == list(class_names) or (not trained and same_shape):
        load_weights(decoder, checkpoint)
        return ""
    pairs = shared_classes(trained, class_names)
    for key in keys:
        if own[key].shape[1:] == given[key].shape[1:]:
            given[key] = rows_by_class(own[key], given[key], pairs, len(class_names))
    load_weights(decoder, replace(checkpoint, weights=given))
    names = [class_names[now] for _, now in pairs]
    listed = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    before = counted(len(trained), "class") if trained else "another number of classes"
    return (
        f"{checkpoint.path} was trained on {before}, here are {len(class_names)} others or in another order: "
        "all is kept but the classifier; "
        + (
            f"its rows are kept for {counted(len(names), 'class')} of the same name: {listed}"
            if names
            else "it is new"
        )
    )


def shared_classes(before: Sequence[str], now: Sequence[str]) -> list[tuple[int, int]]:
    """(place before, place now) of every name that stands once in each list."""
    once = {name: k for k, name in enumerate(before) if list(before).count(name) == 1}
    return [(once[name], k) for k, name in enumerate(now) if name in once and list(now).count(name) == 1]


def rows_by_class(fresh: Tensor, trained: Tensor, pairs: list[tuple[int, int]], num_classes: int) -> Tensor:
    """`fresh` with the rows of `trained` for each pair, and the last row where there is one for no object."""
    rows = fresh.clone()
    for before, now in pairs:
        rows[now] = trained[before]
    if len(rows) == num_classes + 1:
        rows[-1] = trained[-1]
    return rows
