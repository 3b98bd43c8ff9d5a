"""A training step as a few CUDA graphs: frozen features; predictions and costs; loss; gradients.

Between costs and loss the host solves the assignment, which no graph can hold. Everything before and behind
it has fixed shapes: labels and matched rows are filled up to a `Room` with rows that weigh nothing, and each
room that batches need is recorded when it is met. Crops, the assignment, normalisers, clip, optimiser,
average and guard stay outside. Gradients are added up in tensors that live outside of the graphs.

Nothing is drawn in here: points are hashed from keys, and drop factors come in, both made on the host before.
Without graphs (`graphs` None, as on a CPU) the same works run as they stand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from maskshards.shards.batch import CropBatch
from maskshards.train.capture.cuda_graphs import CudaGraphs, Graphs, Places, Recorded
from maskshards.train.losses.host_copies import HostCopy, to_device
from maskshards.train.losses.matched_loss import LossTerms, MatchedLoss, normalisers
from maskshards.train.losses.matches import Room, room_for, without_matches
from maskshards.train.losses.nonfinite import NonFiniteError
from maskshards.train.model.segmenter import Segmenter

Reduce = Callable[[Tensor], Tensor]
FEATURES = "features {}"


@dataclass(frozen=True, slots=True)
class Answer:
    """One micro-step's loss. `learn` adds its gradients, and is called before the next micro-step."""

    total: Tensor  # detached scalar
    parts: dict[str, Tensor]  # detached scalars: means over the layers
    flag_on_host: float | None
    learn: Callable[[], None]


class CapturedStep:
    """The frozen features and the loss of batches of one size.

    `weight`: what a micro-step's gradients count of an optimiser step. `autocast` gives the context that
    the model computes under. The decoder is not wrapped for several ranks.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        matched: MatchedLoss,
        autocast: Callable[[], AbstractContextManager[Any]],
        graphs: Callable[[], Graphs] | None,
        *,
        weight: float = 1.0,
    ) -> None:
        self.segmenter, self.matched, self.autocast, self.weight = segmenter, matched, autocast, weight
        self.places = Places()
        # Features of the next batch are made between the works of this one: memory of their own.
        self._graphs = None if graphs is None else graphs()
        self._frozen = Recorded(None if graphs is None else graphs(), [self._look])
        self._features: tuple[Tensor, ...] = ()
        self._rooms: dict[Room, RoomStep] = {}
        self._gradients: list[Tensor] | None = None

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """As Segmenter.features gives them; they are overwritten by the next call."""
        self.places.put("next images", images)
        self._frozen.begin()
        self._frozen.run(0)
        return self._features

    def _look(self) -> None:
        with self.autocast():
            self._features = self.segmenter.features(self.places["next images"])

    def __call__(
        self,
        crops: CropBatch,
        num_labels: Sequence[int],
        features: tuple[Tensor, ...],
        *,
        seed: int,
        reduce: Reduce | None = None,
        flag: Tensor | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> Answer:
        """The loss of crops of images with `num_labels` labels each; the rest is as MatchedLoss has it."""
        decoder, places = self.segmenter.decoder, self.places
        device = crops.images.device
        places.put("images", crops.images)
        places.put("owner map", crops.owner_map)
        for number, feature in enumerate(features):
            places.put(FEATURES.format(number), feature)
        drops = decoder.draw_drops(crops.positions, seed)
        if drops is not None:
            places.put("drops", to_device(drops.numpy(), device))
        places.put("flag", torch.zeros(1, device=device) if flag is None else flag.detach().float())
        return self._room(num_labels).step(crops, seed, reduce, flag is not None, meanwhile)

    def _room(self, num_labels: Sequence[int]) -> RoomStep:
        counts = self.segmenter.decoder.mask_counts
        room = room_for(num_labels, counts[1])
        if room not in self._rooms:
            self._rooms[room] = RoomStep(self, room, self._graphs, counts)
        return self._rooms[room]

    def predict(self, drawn: bool) -> Any:
        """The decoder's answer to what stands in the places."""
        places = self.places
        maps = tuple(places[FEATURES.format(number)] for number in range(len(self.segmenter.indices)))
        with self.autocast():
            return self.segmenter.decoder(places["images"], maps, places["drops"] if drawn else None)

    def keep_gradients(self) -> None:
        """Have every `.grad` be the tensor that graphs add to, whatever was put in its place meanwhile."""
        trained = [p for p in self.segmenter.decoder.parameters() if p.requires_grad]
        if self._gradients is None:
            if any(p.grad is None for p in trained):
                return
            self._gradients = [p.grad for p in trained if p.grad is not None]
        for parameter, kept in zip(trained, self._gradients, strict=True):
            if parameter.grad is not kept:
                kept.zero_() if parameter.grad is None else kept.copy_(parameter.grad)
                parameter.grad = kept


def captured_step(
    segmenter: Segmenter,
    matched: MatchedLoss | None,
    autocast: Callable[[], AbstractContextManager[Any]],
    device: torch.device,
    weight: float = 1.0,
) -> CapturedStep:
    """A step that is recorded on CUDA, and runs with the same padding as it stands elsewhere.

    TypeError for a head whose loss matches nothing.
    """
    if matched is None:
        raise TypeError(f"the step of a {segmenter.decoder.rules.name} head cannot be recorded")
    segmenter.replayed = True
    graphs = partial(CudaGraphs, device) if device.type == "cuda" else None
    return CapturedStep(segmenter, matched, autocast, graphs, weight=weight)


class RoomStep:
    """The works of one room, and the tensors whose size hangs on it."""

    def __init__(
        self, owner: CapturedStep, room: Room, graphs: Graphs | None, counts: tuple[int, int]
    ) -> None:
        self.owner, self.room = owner, room
        self.num_layers, self.num_queries = counts
        self.most = self.num_layers * min(self.num_queries, room.labels)
        self.places = Places()
        self._works = Recorded(graphs, [self._ask, self._compare, self._learn])
        self._answer: Any = None  # of the decoder, with its graph, between the works
        self._terms: LossTerms | None = None
        self._asked = self._figures = torch.empty(0)

    def step(
        self,
        crops: CropBatch,
        seed: int,
        reduce: Reduce | None,
        wants_flag: bool,
        meanwhile: Callable[[], None] | None,
    ) -> Answer:
        """Costs, assignment and loss; the gradients are left to the answer's `learn`."""
        matched, places, device = self.owner.matched, self.places, crops.images.device
        missing = self.room.labels - crops.labels.shape[1]
        places.put("labels", torch.nn.functional.pad(crops.labels, (0, missing), value=-1))
        places.put("keys", to_device(matched.keys(seed, crops.positions, self.num_layers), device))
        self._make_room(device)
        self.owner.keep_gradients()
        self._works.begin()
        self._works.run(0)
        copy = HostCopy(self._asked)
        if meanwhile is not None:
            meanwhile()
        shape = (self.num_layers, len(crops.keys), self.num_queries, self.room.labels)
        try:
            matches, flags = matched.matches(copy.wait(), shape, (), crops, room=self.room)
        except NonFiniteError:  # the guard hears of it by the gradient, and looks for the cause
            matches, flags = without_matches(shape, self.room), copy.wait()[-1:]
        places.put("rows", to_device(matches.rows, device))
        places.put("shares", normalisers(to_device(matches.numbers, device), reduce))
        self._works.run(1)
        total, mask, dice, classify = self._figures.clone().unbind()
        parts = {"mask": mask, "dice": dice, "class": classify}
        return Answer(total, parts, float(flags[0]) if wants_flag else None, self._learned)

    def _learned(self) -> None:
        self.owner.keep_gradients()
        self._works.run(2)

    def _make_room(self, device: torch.device) -> None:
        """Places for what the host will say, with rows that fit any batch: recordings come before it."""
        rows = torch.zeros((6, self.num_layers * self.room.rows), dtype=torch.int64, device=device)
        self.places.put("rows", rows)
        self.places.put("shares", torch.ones(2, device=device))

    def _ask(self) -> None:
        owner, places = self.owner, self.owner.places
        self._answer = owner.predict(owner.segmenter.decoder.training)
        self._asked = owner.matched.asked(
            self._answer, places["owner map"], self.places["labels"], self.places["keys"], places["flag"]
        )

    def _compare(self) -> None:
        inputs = self.owner.places["owner map"], self.places["labels"], self.places["keys"]
        found = self.owner.matched.terms(
            self._answer, *inputs, self.places["rows"], self.places["shares"], self.most
        )
        means = (value.detach().mean() for value in (found.mask, found.dice, found.classify))
        self._figures = torch.stack([found.total.detach(), *means])
        self._terms = found

    def _learn(self) -> None:
        assert self._terms is not None, "gradients come after their loss"
        (self._terms.total * self.owner.weight).backward()
        self._answer = self._terms = None
