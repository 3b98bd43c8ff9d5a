"""Why a step was not finite: whose images, which module, and where the batch was kept.

All ranks know that a gradient is not finite, for it was averaged; the cause lies on one of them. Each looks
at its own losses, and only if all of those are finite at its own gradients, and what they find goes to every
rank. A suspect batch is computed again by its rank alone, module by module, which meets nobody and changes
nothing: weights are those of the step, since it was not taken, and everything random hangs on positions. What
is sound alone was spoiled through the batch norms that all share, and is not blamed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from maskshards.shards.batch import CropBatch
from maskshards.shards.storage.atomic_write import replacing
from maskshards.train.distributed.ranks import Ranks
from maskshards.train.losses.nonfinite import NonFiniteError
from maskshards.train.model.ops.sync_batch_norm import SyncedBatchNorm
from maskshards.train.optim.optimizer import named_trainables

Look = Callable[[nn.Module, Callable[[CropBatch], Tensor], CropBatch], str]

NAMED_IMAGES = 16  # of a batch; its file lists all
NAMED_PARAMETERS = 8


@dataclass(frozen=True, slots=True)
class Seen:
    """One micro-step as it is kept until its step is known to be sound."""

    crops: CropBatch
    total: Tensor  # detached loss


@dataclass(frozen=True)
class Diagnosis:
    """Finds and keeps what was not finite. Every rank calls it for the same step."""

    ranks: Ranks
    model: nn.Module  # backbone and decoder, not wrapped
    decoder: nn.Module
    loss_of: Callable[[CropBatch], Tensor]  # a micro-step's loss by `model`, on this rank alone
    folder: Path  # for batches

    def __call__(self, step: int, seen: Sequence[Seen]) -> str:
        """What all ranks found about `step`, with the images and files of the batches to blame.

        Ranks other than the first refer to it. The gradients of the step must still stand.
        """
        bad = [one for one in seen if not torch.isfinite(one.total)]
        accounts = self._all_find(first_output, step, bad)
        if not any(accounts):
            accounts = self._all_find(first_gradient, step, seen)
        if not any(accounts):
            accounts = self.ranks.gather("; ".join(keep(self.folder, step, one) for one in bad or seen))
            accounts = [text and f"computed again alone, everything is finite: {text}" for text in accounts]
        if not self.ranks.is_first:  # one account is enough
            return f"step {step}: the gradient is not finite, rank 0 says why"
        several = self.ranks.world.num_ranks > 1
        found = [f"rank {rank}: {text}" if several else text for rank, text in enumerate(accounts) if text]
        return "\n  ".join([f"step {step}: {bad_parameters(self.decoder)}", *found])

    def _all_find(self, look: Look, step: int, batches: Sequence[Seen]) -> list[str]:
        """What `look` finds in each rank's batches; nothing is kept of a batch that is sound."""
        found = [(look(self.model, self.loss_of, one.crops), one) for one in batches]
        return self.ranks.gather("; ".join(f"{s}; {keep(self.folder, step, one)}" for s, one in found if s))


def bad_parameters(decoder: nn.Module) -> str:
    """How many gradients are not finite, and which if they are few."""
    gradients = {name: p.grad for name, p, _ in named_trainables(decoder) if p.grad is not None}
    bad = [name for name, gradient in gradients.items() if not torch.isfinite(gradient).all()]
    names = f" ({', '.join(bad)})" if 0 < len(bad) <= NAMED_PARAMETERS else ""
    return f"the gradient is not finite in {len(bad)} of {len(gradients)} parameters{names}"


def keep(folder: Path, step: int, seen: Seen) -> str:
    """Write the crops of a micro-step into `folder`, and say which images they are and where.

    The file is safetensors: `images`, `owner_map`, `labels`; all keys and positions in its metadata.
    """
    crops = seen.crops
    path = folder / f"step{step}-position{crops.positions[0]}.safetensors"
    tensors = {"images": crops.images, "owner_map": crops.owner_map, "labels": crops.labels}
    facts = {"keys": "\n".join(crops.keys), "positions": " ".join(map(str, crops.positions))}
    whole = {name: value.cpu().contiguous() for name, value in tensors.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as hidden:
            save_file(whole, hidden, metadata=facts)
        where = f"crops in {path}"
    except (OSError, SafetensorError) as error:  # a run that skips the step goes on all the same
        where = f"crops could not be written: {error}"
    more = "" if len(crops.keys) <= NAMED_IMAGES else f" and {len(crops.keys) - NAMED_IMAGES} more"
    return f"images {', '.join(crops.keys[:NAMED_IMAGES])}{more}; {where}"


def first_output(model: nn.Module, loss_of: Callable[[CropBatch], Tensor], crops: CropBatch) -> str:
    """What is not finite in a forward pass; empty if nothing is.

    That is the crops, a weight, or the first module's output, saying if its inputs were finite.
    """
    if not finite(crops.images):
        return "the crops themselves are not finite"
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"parameter {name} itself is not finite"
    found: list[str] = []

    def look(name: str, inputs: Any, output: Any) -> None:
        if found or finite(output):
            return
        inputs_are = "although its inputs are" if finite(inputs) else "nor are its inputs"
        found.append(f"the first output that is not finite is that of {name}, {inputs_are}")

    loss = ""
    try:
        with torch.no_grad(), alone(model), hooked(model, look):
            if not torch.isfinite(loss_of(crops)):
                loss = "the loss is not finite"
    except NonFiniteError as error:
        loss = str(error).removesuffix(".")
    except torch.OutOfMemoryError:
        return "too little memory was left to look for the module"
    if loss and not found:
        found.append("the output of every module is finite")
    return "; ".join([*([loss] if loss else []), *found])


def first_gradient(model: nn.Module, loss_of: Callable[[CropBatch], Tensor], crops: CropBatch) -> str:
    """The module at whose output the gradient of the loss first is not finite; empty if all are.

    Backward runs from the loss, so what turned it is what comes after that module. No `.grad` is touched.
    """
    found: list[str] = []

    def note(name: str, gradient: Tensor) -> None:
        if not found and not torch.isfinite(gradient).all():
            found.append(name)

    def watch(name: str, inputs: Any, output: Any) -> None:
        for value in tensors_of(output):
            if value.requires_grad:
                value.register_hook(lambda gradient: note(name, gradient))

    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        with alone(model), hooked(model, watch):
            gradients = torch.autograd.grad(loss_of(crops), list(trainable.values()), allow_unused=True)
    except NonFiniteError as error:  # with this rank's own batch statistics; the other ranks wait for a word
        return str(error).removesuffix(".")
    except torch.OutOfMemoryError:
        return "too little memory was left to look for the module"
    blame = "the loss is finite, but the first gradient that is not is that of"
    if found:
        return f"{blame} the output of {found[0]}"
    named = zip(trainable, gradients, strict=True)
    bad = [name for name, gradient in named if gradient is not None and not torch.isfinite(gradient).all()]
    return f"{blame} {bad[0]}" if bad else ""


@contextmanager
def alone(model: nn.Module) -> Iterator[None]:
    """Inside, the model runs eagerly, and its batch norms look at this rank's images alone.

    They update copies of their statistics, because the next step's graph already holds the true ones and
    would notice a change.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    synced = [norm for norm in norms if isinstance(norm, SyncedBatchNorm)]
    kept = [norm._buffers for norm in norms]
    for norm in norms:
        norm._buffers = {name: None if b is None else b.clone() for name, b in norm._buffers.items()}
    for norm in synced:
        norm.alone = True
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers = buffers
        for norm in synced:
            norm.alone = False


@contextmanager
def hooked(model: nn.Module, look: Callable[[str, Any, Any], None]) -> Iterator[None]:
    """Inside, `look` sees the name, inputs and output of every module of `model` as it ends."""

    def hook(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: look(name, inputs, output)

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def finite(value: Any) -> bool:
    return all(bool(torch.isfinite(one).all()) for one in tensors_of(value))


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Every floating-point tensor in nested sequences, mappings and dataclasses."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        yield from tensors_of(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_of(each)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from tensors_of([getattr(value, field.name) for field in dataclasses.fields(value)])
