"""Which job a config describes.

That is evaluation (`load_from`), or training of the head that `decoder_head.type` names.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from maskshards.shards.errors import counted
from maskshards.train.checkpoint.checkpoint import load_weights, read_checkpoint
from maskshards.train.checkpoint.run_files import FINAL
from maskshards.train.config.data_facts import with_data_facts
from maskshards.train.config.load import WRITTEN, write_config
from maskshards.train.config.schema import TrainConfig
from maskshards.train.distributed.ranks import Ranks
from maskshards.train.distributed.stop_signals import StopSignals
from maskshards.train.evaluation.metrics import EvalResult
from maskshards.train.evaluation.provenance import check_against_split, check_trained_on
from maskshards.train.evaluation.results import write_results
from maskshards.train.model.cpu_memory import keep_freed_memory
from maskshards.train.tracking.data_order import OrderChain
from maskshards.train.tracking.metrics_log import MetricsFile
from maskshards.train.tracking.progress import ProgressLine
from maskshards.train.tracking.trackers import check_trackers, open_trackers
from maskshards.train.trainer.agreement import check_same, check_same_job
from maskshards.train.trainer.build import (
    Parts,
    build_model,
    build_parts,
    nonfinite_folder,
    open_validation_split,
)
from maskshards.train.trainer.cpu_type import with_cpu_type
from maskshards.train.trainer.diagnosis import Diagnosis
from maskshards.train.trainer.guards import Guard
from maskshards.train.trainer.hub_pin import earlier_config, like_last_run, with_commit, with_rule
from maskshards.train.trainer.instruments import Instruments
from maskshards.train.trainer.loop import train
from maskshards.train.trainer.resume import begin
from maskshards.train.trainer.run_folder import run_folder
from maskshards.train.trainer.session import Session
from maskshards.train.trainer.validate import score_split

logger = logging.getLogger(__name__)


def run(config: TrainConfig, ranks: Ranks, stop: StopSignals, words: Sequence[str] = ()) -> str:
    """Do the job and return one closing line for people. `words` were given for `config`, and are kept."""
    check_same_job(config, ranks)
    if ranks.device.type == "cpu":
        keep_freed_memory()
    job = run_evaluation if config.load_from else run_training
    return job(config, ranks, stop, words)


def run_training(config: TrainConfig, ranks: Ranks, stop: StopSignals, words: Sequence[str] = ()) -> str:
    """Start or continue the run of `output_dir` and take it to its end."""
    with run_folder(config, ranks, words) as folder:
        config = like_last_run(config, folder, ranks)
        ranks.doing("reading the data set")
        config = with_data_facts(config)
        config = with_cpu_type(config, ranks, lambda: earlier_config(config, folder))
        check_trackers(config, ranks)
        parts = build_parts(config, ranks)
        check_same_data(parts, ranks)
        start = begin(config, ranks, parts, folder)
        if ranks.is_first:
            write_config(config, folder / WRITTEN, words)
        metrics = MetricsFile(folder, ranks, start.step)
        trackers = open_trackers(config, folder, ranks, start.step)
        guard = build_guard(config, ranks, parts)
        stream = sys.stderr if ranks.is_first else None
        order = OrderChain(start.order, start.step, parts.selection.fingerprint)
        session = Session(
            config=config,
            ranks=ranks,
            parts=parts,
            run=folder,
            metrics=metrics,
            progress=ProgressLine(start.step, config.scheduler.total_iter, stream),
            watch=Instruments(ranks, guard, config.optimizer.gradient_clip, order),
            stop=stop,
            best_score=start.best_score,
            trackers=trackers,
        )
        try:
            stop.check(ranks, begun=False)
            result = train(session, start)
        finally:
            session.progress.close()
            for tracker in session.trackers:
                tracker.close()
        return closing_line(config, result, folder / FINAL)


def check_same_data(parts: Parts, ranks: Ranks) -> None:
    """ConfigError on every rank where one holds other data or another backbone than the first."""
    facts = {
        "the training data's fingerprint": parts.selection.fingerprint,
        "the validation data's fingerprint": parts.val_split.manifest.fingerprint,
        "the backbone's weights digest": parts.segmenter.backbone.digest,
    }
    check_same(facts, ranks)


def build_guard(config: TrainConfig, ranks: Ranks, parts: Parts) -> Guard:
    segmenter, folder = parts.segmenter, nonfinite_folder(config)
    diagnosis = Diagnosis(ranks, segmenter, segmenter.decoder, parts.objective.alone, folder)
    flag_with_loss = parts.objective.loss.brings_flag
    return Guard(config.guards, segmenter.decoder, parts.optimizer, diagnosis, flag_with_loss=flag_with_loss)


def run_evaluation(config: TrainConfig, ranks: Ranks, stop: StopSignals, words: Sequence[str] = ()) -> str:
    """Score the weights behind `load_from` on the validation split, and write the results."""
    with run_folder(config, ranks) as folder:
        checkpoint = read_checkpoint(config.load_from or "")
        trained = checkpoint.state.config if checkpoint.state else None
        config = with_rule(with_commit(config, trained), trained)
        ranks.doing("reading the data set")
        config = with_data_facts(config)
        config = with_cpu_type(config, ranks, lambda: trained)
        split = open_validation_split(config)
        check_against_split(checkpoint.state, split.manifest, str(checkpoint.path))
        check_same({"the validation data's fingerprint": split.manifest.fingerprint}, ranks)
        ranks.doing("loading the model", slow=True)
        segmenter = build_model(config, ranks.device)
        check_trained_on(checkpoint.state, config, segmenter.backbone, str(checkpoint.path))
        load_weights(segmenter.decoder, checkpoint)
        result = score_split(config, ranks, stop, segmenter, split)
        if ranks.is_first:
            write_config(config, folder / WRITTEN, words)
            write_results(result, folder)
        return closing_line(config, result, checkpoint.path)


def closing_line(config: TrainConfig, result: EvalResult | None, weights: Path) -> str:
    if result is None:
        run, total = weights.parent, config.scheduler.total_iter
        return (
            f"nothing was left to do: {counted(total, 'step')} of scheduler.total_iter done; the weights are "
            f"in {weights}. To use them: maskshards predict {shlex.quote(str(run))} IMAGES --output OUT. To "
            f"train on: the same command with resume_from=auto scheduler.total_iter={2 * total}. To train "
            f"anew from them: another output_dir and init_from={shlex.quote(str(run))}"
        )
    score = result.metric(config.metric_to_save)
    return (
        f"{config.metric_to_save} {score:.2f} over {counted(result.num_images, 'image')}; weights: {weights}"
    )
