"""The training loop: rate -> micro-steps -> clip -> step -> log, checkpoint, evaluate when due.

A run is a chain of finished optimiser steps. What a step does depends on weights, optimiser state and its own
number only, so a run that was cut anywhere and continued from its last checkpoint takes the same steps as one
that was not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from maskshards.shards.batch import RaggedBatch
from maskshards.shards.loading.device_prefetcher import DevicePrefetcher
from maskshards.shards.loading.loader import Loader
from maskshards.shards.loading.lookahead import Lookahead
from maskshards.train.checkpoint.checkpoint import save_final, save_last
from maskshards.train.checkpoint.retention import prune
from maskshards.train.config.schema import TrainConfig
from maskshards.train.distributed.early_stop import Stopped
from maskshards.train.distributed.ranks import batch_statistics
from maskshards.train.evaluation.metrics import EvalResult
from maskshards.train.model.compile import GRAPH, begin_step, uses_cuda_graphs
from maskshards.train.optim.optimizer import clip_gradients, optimizer_tensors, set_rates
from maskshards.train.trainer.build import open_loader
from maskshards.train.trainer.resume import Start, weights_of
from maskshards.train.trainer.session import Session
from maskshards.train.trainer.step import Prepared
from maskshards.train.trainer.validate import evaluate_now

logger = logging.getLogger(__name__)


def train(session: Session, start: Start) -> EvalResult | None:
    """Take the steps that are left, then leave `model_final.pth`; returns the last evaluation.

    Raises Stopped after saving when a signal asked for it.
    """
    config, total = session.config, session.config.scheduler.total_iter
    if evaluation_due(config, start.step) and not session.has_evaluated(start.step):
        evaluate_now(session, start.step)
    if start.step < total:
        with open_loader(config, session.ranks, session.parts.selection, start.step) as loader:
            take_steps(session, loader, start.step)
    with session.parts.scored_weights():
        state, weights = session.state(total), weights_of(session.parts)
        session.ranks.at(total, "writing model_final.pth")
        final = session.ranks.from_first(lambda: save_final(session.run, state, weights))
    logger.info("wrote %s", final)
    return session.result


def take_steps(session: Session, loader: Loader, first: int) -> None:
    """The optimiser steps from `first` to the end, with lines, checkpoints and evaluations where due.

    Raises Stopped after saving when a signal asked for it, NonFiniteError and GuardError as Guard says.
    """
    config, ranks, parts = session.config, session.ranks, session.parts
    session.watch.meter.restart()
    session.progress.restart()
    source = DevicePrefetcher(loader, ranks.device)
    batches: Iterator[RaggedBatch] = iter(source)
    if ranks.world.num_ranks > 2:
        batches = rehearse(session, batches)
    ahead = Lookahead(batches, parts.objective.prepare, source.at_hand)
    for step in range(first, config.scheduler.total_iter):
        rate = set_rates(parts.optimizer, parts.schedule, step)
        taken = step + 1
        due = is_due(taken, config.log.interval, config.scheduler.total_iter)
        with session.watch.around(taken, parts.segmenter, timed=due and step > first):  # first: warm-up
            one_step(session, ahead, taken)
        if due or taken == 1:
            log(session, taken, rate)
        since = time.monotonic()
        stop_signal = ranks.any(session.stop.number)
        if stop_signal or checkpoint_due(config, taken):
            save(session, taken)
        if stop_signal:
            raise Stopped(stop_signal)
        if evaluation_due(config, taken):
            evaluate_now(session, taken)
        session.watch.meter.since += time.monotonic() - since
        session.progress.step(taken)


def rehearse(session: Session, batches: Iterator[RaggedBatch]) -> Iterator[RaggedBatch]:
    """One pass whose gradients are thrown away; returns the same batches from the first on.

    DistributedDataParallel lays its messages out anew after its first backward pass. More than two numbers
    are not summed the same in every layout, so without this the first step of a continued run would round
    otherwise than the same step of a run that was not interrupted.
    """
    parts = session.parts
    first = session.watch.read_ahead(batches)
    begin_step(session.config.compile_mode)
    kept = [buffer.clone() for buffer in batch_statistics(parts.segmenter.decoder)]
    session.watch.guard.begin_step()
    parts.objective(first).total.backward()
    session.watch.guard.after_backward()  # before DistributedDataParallel complains in its own words
    parts.optimizer.zero_grad(set_to_none=True)
    for buffer, before in zip(batch_statistics(parts.segmenter.decoder), kept, strict=True):
        buffer.copy_(before)
    return chain([first], batches)


def one_step(session: Session, batches: Lookahead[RaggedBatch, Prepared], step: int) -> None:
    """Gradients of all micro-steps, one clip, one update."""
    parts, watch, mode = session.parts, session.watch, session.config.compile_mode
    weight = 1 / parts.micro_steps
    meanwhile = partial(prepare_next, session, batches) if looks_ahead(session) else None
    if uses_cuda_graphs(mode):  # gradients lie in memory that the next replay writes
        watch.guard.resolve()
        parts.optimizer.zero_grad(set_to_none=True)
        begin_step(mode)
    for micro_step in range(parts.micro_steps):
        batch = watch.next_batch(batches)
        with parts.gradients_averaged(last=micro_step == parts.micro_steps - 1):
            losses = parts.objective(batch, watch.flag, meanwhile)  # crop -> frozen features -> head -> loss
            watch.losses_known(losses, weight)
            if micro_step == 0:  # a recorded step adds to tensors that stay where they are
                parts.optimizer.zero_grad(set_to_none=mode != GRAPH)
            losses.backward(weight)
        watch.gradients_known()
    norm = clip_gradients(parts.segmenter.decoder, session.config.optimizer.gradient_clip)
    watch.norm_known(norm)
    parts.optimizer.step()
    if parts.average is not None:
        parts.average.update(step)
    watch.updated()


def looks_ahead(session: Session) -> bool:
    """Whether steps prepare the next batch: where there is a queue, unless graphs would overwrite it."""
    return session.ranks.device.type == "cuda" and not uses_cuda_graphs(session.config.compile_mode)


def prepare_next(session: Session, batches: Lookahead[RaggedBatch, Prepared]) -> None:
    session.watch.phases.mark("loss")  # what follows is the crop's and the backbone's time
    batches.meanwhile()


def log(session: Session, taken: int, rate: float) -> None:
    """One line of figures for the stretch that ends at step `taken`; here training waits for the device."""
    watch, ranks = session.watch, session.ranks
    figures = {"lr": rate, **watch.meter.take(ranks), "order": watch.order.resolve(ranks)}
    session.record("train", taken, **figures)
    if phases := watch.phases.take():  # the figures above waited for the device already
        session.record("phases", taken, **phases)
    session.progress.interval(taken, figures)


def save(session: Session, taken: int) -> None:
    """Write the checkpoint of this step on the first rank; the others wait for it, and learn if it failed."""
    parts, config, since = session.parts, session.config, time.monotonic()
    session.watch.guard.resolve()
    session.watch.order.resolve(session.ranks)
    session.ranks.at(taken, "saving")
    session.progress.clear()

    def write() -> Path:
        moments = optimizer_tensors(parts.segmenter.decoder, parts.optimizer)
        average = None if parts.average is None else parts.average.shadow
        doing = session.ranks.doing
        path = save_last(session.run, session.state(taken), weights_of(parts), moments, average, doing)
        prune(session.run, config.checkpoint.keep_last, config.checkpoint.archive_interval)
        return path

    logger.info("wrote %s", session.ranks.from_first(write))
    session.record("checkpoint", taken, seconds=time.monotonic() - since)


def is_due(step: int, every: int, total: int) -> bool:
    """Every `every` steps, and at the end."""
    return step > 0 and (step % every == 0 or step == total)


def evaluation_due(config: TrainConfig, taken: int) -> bool:
    if taken == 0:
        return config.eval.before_training
    return is_due(taken, config.eval.eval_interval, config.scheduler.total_iter)


def checkpoint_due(config: TrainConfig, taken: int) -> bool:
    interval = config.checkpoint.interval or config.eval.eval_interval
    return is_due(taken, interval, config.scheduler.total_iter) or evaluation_due(config, taken)
