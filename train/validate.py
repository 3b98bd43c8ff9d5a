"""Evaluations during training: score, remember, report, keep the best weights."""

from __future__ import annotations

import logging
import math
import time

from train.assembly import autocast_dtype
from train.checkpoint import save_best
from train.config import to_yaml
from train.evaluate import evaluate, evaluation_settings, num_expected
from train.gallery import Gallery
from train.metrics import METRICS, EvalResult
from train.report import RunFacts, write_report
from train.results import write_results
from train.resume import weights_of
from train.session import Session

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
    session.result = result = run_evaluation(session, gallery)
    score = result.metric(config.metric_to_save)
    seconds = time.monotonic() - since
    logger.info("step %d: %s %.2f over %d images", taken, config.metric_to_save, score, result.num_images)
    improved = math.isfinite(score) and (session.best_score is None or score > session.best_score)
    if taken > 0 and improved:
        session.best_score = score
        if session.ranks.is_first:
            save_best(session.run, session.state(taken), weights_of(session.parts))
    # Only now: a run killed while the best was written finds no line of this evaluation and repeats it.
    figures = {name: result.metric(name) for name in METRICS}
    session.record("eval", taken, **figures, num_images=result.num_images, seconds=seconds)
    if not session.ranks.is_first:
        return
    write_results(result, session.run)
    if gallery is not None:
        facts = RunFacts(
            title=f"{session.run.name}: {config.decoder_head.type} head on {config.model.dino_hub}",
            state=session.state(taken),
            config_yaml=to_yaml(config),
            device=str(session.ranks.device),
            num_ranks=session.ranks.world.num_ranks,
        )
        write_report(session.run, facts, session.metrics.records, result, gallery)


def open_gallery(session: Session) -> Gallery | None:
    """Pictures are kept on the first rank, of the images that fall to it."""
    if not (session.ranks.is_first and session.config.log.report):
        return None
    expected = num_expected(session.parts.val_split.manifest, evaluation_settings(session.config))
    return Gallery(session.config.decoder_head.num_classes, expected // session.ranks.world.num_ranks)


def run_evaluation(session: Session, gallery: Gallery | None) -> EvalResult:
    ranks, parts = session.ranks, session.parts
    return evaluate(
        parts.segmenter,
        parts.val_split,
        evaluation_settings(session.config),
        world=ranks.world,
        device=ranks.device,
        autocast_dtype=autocast_dtype(session.config, ranks.device),
        reduce=ranks.sum,
        observe=gallery,
        progress=lambda _: session.stop.check(),
    )
