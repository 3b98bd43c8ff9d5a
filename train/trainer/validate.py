"""Evaluations during training: score, remember, report, keep the best weights."""

from __future__ import annotations

import logging
import math
import shlex
import time
from datetime import datetime

from torch import Tensor

from maskshards.shards.errors import counted
from maskshards.shards.format.class_pixels import count_class_pixels
from maskshards.shards.format.manifest import Split
from maskshards.train.checkpoint.checkpoint import save_best
from maskshards.train.config.load import to_yaml
from maskshards.train.config.schema import TrainConfig
from maskshards.train.distributed.ranks import Ranks
from maskshards.train.distributed.stop_signals import LeftEarly, StopSignals
from maskshards.train.evaluation.evaluate import evaluate, evaluation_settings, num_expected
from maskshards.train.evaluation.metrics import METRICS, EvalResult
from maskshards.train.evaluation.results import write_results
from maskshards.train.model.segmenter import Segmenter
from maskshards.train.report.gallery import Gallery
from maskshards.train.report.report import RunFacts, write_report
from maskshards.train.trainer.build import MOST_COUNTED, autocast_dtype
from maskshards.train.trainer.resume import weights_of
from maskshards.train.trainer.session import Session

logger = logging.getLogger(__name__)


def evaluate_now(session: Session, taken: int) -> None:
    """Score the validation split on all ranks; keep the weights if they are the best so far."""
    session.progress.clear()
    session.ranks.at(taken, "evaluating")
    with session.parts.scored_weights():
        score_weights(session, taken)
    session.ranks.wait(f"the evaluation of step {taken}")


def score_weights(session: Session, taken: int) -> None:
    """The evaluation itself, of the weights that the decoder holds. An untrained head is never the best."""
    config, since = session.config, time.monotonic()
    gallery = open_gallery(session)
    session.result = result = score_split(
        config, session.ranks, session.stop, session.parts.segmenter, session.parts.val_split, gallery
    )
    score = result.metric(config.metric_to_save)
    seconds = time.monotonic() - since
    logger.info(
        "step %d: %s %.2f over %s", taken, config.metric_to_save, score, counted(result.num_images, "image")
    )
    session.ranks.doing("keeping the best weights")
    session.ranks.from_first(lambda: keep_if_best(session, taken, score))
    # Only now: a run killed while the best was written finds no line of this evaluation and repeats it.
    figures = {name: result.metric(name) for name in METRICS}
    session.record("eval", taken, **figures, num_images=result.num_images, seconds=seconds)
    session.ranks.doing("writing results and report")
    session.ranks.from_first(lambda: publish(session, taken, result, gallery))


def keep_if_best(session: Session, taken: int, score: float) -> None:
    """On the first rank, which alone remembers the best score: write these weights if none scored higher."""
    improved = math.isfinite(score) and (session.best_score is None or score > session.best_score)
    if taken == 0 or not improved:
        return
    session.best_score = score
    save_best(session.run, session.state(taken), weights_of(session.parts), session.ranks.doing)


def publish(session: Session, taken: int, result: EvalResult, gallery: Gallery | None) -> None:
    """Write results and report."""
    config = session.config
    write_results(result, session.run)
    if gallery is not None:
        facts = RunFacts(
            title=f"{session.run.name}: {config.decoder_head.type} head on {config.model.dino_hub}",
            state=session.state(taken),
            config_yaml=to_yaml(config),
            device=str(session.ranks.device),
            num_ranks=session.ranks.world.num_ranks,
            data=f"{session.parts.val_split.manifest.dataset}, {session.parts.val_split.base}",
            written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
            command=shlex.join(["maskshards", "train", f"config={session.run / 'config.yaml'}"]),
            folder=str(session.run),
            unseen=unseen_classes(session.parts.train_split),
        )
        write_report(session.run, facts, session.metrics.records, result, gallery)


def unseen_classes(split: Split) -> list[str]:
    """Names of the classes that no image of the split shows.

    Empty for a very large split, or one whose index cannot be read now: that ends no run.
    """
    if split.manifest.num_samples > MOST_COUNTED:
        return []
    try:
        counts = count_class_pixels(split).pixels
    except (OSError, ValueError) as error:
        logger.warning("the report cannot say which classes the training split lacks: %s", error)
        return []
    return [name for name, count in zip(split.manifest.classes, counts, strict=True) if not count]


def open_gallery(session: Session) -> Gallery | None:
    """Pictures are kept on the first rank, of the images that fall to it."""
    if not (session.ranks.is_first and session.config.log.report):
        return None
    expected = num_expected(session.parts.val_split.manifest, evaluation_settings(session.config))
    return Gallery(session.config.decoder_head.classes, expected // session.ranks.world.num_ranks)


def score_split(
    config: TrainConfig,
    ranks: Ranks,
    stop: StopSignals,
    segmenter: Segmenter,
    split: Split,
    gallery: Gallery | None = None,
) -> EvalResult:
    """The split's scores as `eval` asks for them.

    Raises Stopped on all ranks if a signal asked any of them: that one leaves its images and meets the others
    where they would add up.
    """

    done = 0

    def get_on(*_: object) -> None:
        ranks.doing(f"evaluating, {done} images done")

    def note(images: int) -> None:
        nonlocal done
        stop.leave()
        done += images
        get_on()

    def reduce(values: Tensor) -> Tensor:
        ranks.doing("waiting for the scores of all ranks")
        stop.check(ranks)
        return ranks.sum(values)

    # Windows are progress too: one large image may take longer than ranks wait for each other.
    hook = segmenter.decoder.register_forward_pre_hook(get_on)
    try:
        return evaluate(
            segmenter,
            split,
            evaluation_settings(config),
            world=ranks.world,
            device=ranks.device,
            autocast_dtype=autocast_dtype(config, ranks.device),
            reduce=reduce,
            observe=gallery,
            progress=note,
        )
    except LeftEarly:
        stop.check(ranks)
        raise
    finally:
        hook.remove()
