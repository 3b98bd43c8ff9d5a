"""The training loop: rate -> micro-steps -> clip -> step -> log, checkpoint, evaluate when due.

A run is a chain of finished optimiser steps. What a step does depends on weights, optimiser state and its own
number only, so a run that was cut anywhere and continued from its last checkpoint takes the same steps as one
that was not.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.batch import RaggedBatch
from shards.loader import Loader
from shards.transfer import DevicePrefetcher
from train.assembly import Parts, autocast_dtype, open_loader
from train.checkpoint import TrainState, prune, save_best, save_final, save_last
from train.distributed import Ranks, average_batch_norms
from train.evaluate import evaluate, evaluation_settings
from train.guards import Guard, Seen, order_digest
from train.log import Meter, MetricsFile
from train.metrics import EvalResult
from train.optimizer import clip_gradients, optimizer_tensors, set_rates
from train.results import write_results
from train.resume import Start, state_of, weights_of
from train.schema import TrainConfig
from train.stop import Stopped, StopSignals

logger = logging.getLogger(__name__)


@dataclass
class Training:
    """One process's share of a run."""

    config: TrainConfig
    ranks: Ranks
    parts: Parts
    run: Path  # the output folder
    metrics: MetricsFile
    stop: StopSignals
    guard: Guard
    best_score: float | None
    result: EvalResult | None = None  # of the newest evaluation


def train(training: Training, start: Start) -> EvalResult | None:
    """Take the steps that are left, then leave `model_final.pth`; returns the last evaluation.

    Raises Stopped after saving when a signal asked for it.
    """
    config, total = training.config, training.config.scheduler.total_iter
    if evaluation_due(config, start.step) and not training.metrics.has("eval", start.step):
        evaluate_now(training, start.step)
    if start.step < total:
        with open_loader(config, training.ranks, training.parts.train_split, start.step) as loader:
            take_steps(training, loader, start.step)
    if training.ranks.is_first:
        with training.parts.scored_weights():
            final = save_final(training.run, state(training, total), weights_of(training.parts))
        logger.info("wrote %s", final)
    training.ranks.wait("the end of training")
    return training.result


def take_steps(training: Training, loader: Loader, first: int) -> None:
    config, ranks, parts = training.config, training.ranks, training.parts
    meter = Meter(config.optimizer.gradient_clip)
    batches = iter(DevicePrefetcher(loader, ranks.device))
    for step in range(first, config.scheduler.total_iter):
        rate = set_rates(parts.optimizer, parts.schedule, step)
        one_step(training, batches, meter, step + 1)
        taken = step + 1
        if is_due(taken, config.log.interval, config.scheduler.total_iter) or taken == 1:
            report(training, meter, taken, rate)
        wish = ranks.any(training.stop.number)
        if wish or checkpoint_due(config, taken):
            save(training, taken)
        if wish:
            raise Stopped(wish)
        if evaluation_due(config, taken):
            since = time.monotonic()
            evaluate_now(training, taken)
            meter.since += time.monotonic() - since


def one_step(training: Training, batches: Iterator[RaggedBatch], meter: Meter, step: int) -> None:
    """Gradients of all micro-steps, one clip, one update, equal batch statistics everywhere."""
    parts, guard, share = training.parts, training.guard, 1 / training.parts.micro_steps
    guard.begin_step()
    seen = []
    waited_ms = 0.0
    for micro_step in range(parts.micro_steps):
        since = time.monotonic()
        batch = next(batches)
        waited_ms += 1000 * (time.monotonic() - since)
        with parts.gradients_averaged(last=micro_step == parts.micro_steps - 1):
            losses = parts.objective(batch)
            if micro_step == 0:
                guard.settle()  # the step before, whose gradients still stand
                parts.optimizer.zero_grad(set_to_none=True)
            (losses.total * share).backward()
        seen.append(Seen(losses.crops, losses.total.detach()))
        meter.add("loss", losses.total.detach() * share)
        for name, value in losses.parts.items():
            meter.add(f"loss_{name}", value * share)
    guard.after_backward()
    norm = clip_gradients(parts.segmenter.decoder, training.config.optimizer.gradient_clip)
    guard.watch(step, norm, seen)
    parts.optimizer.step()
    if parts.average is not None:
        parts.average.update(step)
    average_batch_norms(parts.segmenter.decoder, training.ranks)
    order = order_digest(one.crops for one in seen)
    meter.add_step(norm, order, training.config.bs * parts.micro_steps, waited_ms)


def report(training: Training, meter: Meter, taken: int, rate: float) -> None:
    figures = meter.take(training.ranks)
    training.metrics.write("train", taken, lr=rate, **figures)
    total = training.config.scheduler.total_iter
    logger.info(
        "step %d/%d  loss %.4f  lr %.3g  grad norm %.3g  %.1f images/s  waiting for data %.0f %%",
        taken, total, figures["loss"], rate, figures["grad_norm"], figures["images_per_s"],
        100 * figures["wait_share"],
    )  # fmt: skip


def save(training: Training, taken: int) -> None:
    """Write the checkpoint of this step on the first rank; the others wait for it."""
    parts, config = training.parts, training.config
    training.guard.settle()
    if training.ranks.is_first:
        moments = optimizer_tensors(parts.segmenter.decoder, parts.optimizer)
        average = None if parts.average is None else parts.average.shadow
        path = save_last(training.run, state(training, taken), weights_of(parts), moments, average)
        prune(training.run, config.checkpoint.keep_last, config.checkpoint.archive_interval)
        logger.info("wrote %s", path)
    training.ranks.wait(f"the checkpoint of step {taken}")


def evaluate_now(training: Training, taken: int) -> None:
    """Score the validation split on all ranks; keep the weights if they are the best so far."""
    with training.parts.scored_weights():
        score_weights(training, taken)
    training.ranks.wait(f"the evaluation of step {taken}")


def score_weights(training: Training, taken: int) -> None:
    config, ranks, parts = training.config, training.ranks, training.parts
    since = time.monotonic()
    result = evaluate(
        parts.segmenter,
        parts.val_split,
        evaluation_settings(config),
        world=ranks.world,
        device=ranks.device,
        autocast_dtype=autocast_dtype(config, ranks.device),
        reduce=ranks.sum,
        progress=lambda _: training.stop.check(),
    )
    training.result = result
    score = result.metric(config.metric_to_save)
    improved = math.isfinite(score) and (training.best_score is None or score > training.best_score)
    training.metrics.write(
        "eval", taken, **scores(result), num_images=result.num_images, seconds=time.monotonic() - since
    )
    logger.info("step %d: %s %.2f over %d images", taken, config.metric_to_save, score, result.num_images)
    if improved and taken > 0:
        training.best_score = score
    if ranks.is_first:
        write_results(result, training.run)
        if improved and taken > 0:
            save_best(training.run, state(training, taken), weights_of(parts))


def scores(result: EvalResult) -> dict[str, float]:
    names = ("mIoU", "acc", "aAcc", "dice", "fscore", "precision", "recall")
    return {name: result.metric(name) for name in names}


def state(training: Training, taken: int) -> TrainState:
    """The facts of the run after `taken` steps."""
    return state_of(training.config, training.parts, taken, training.best_score)


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
