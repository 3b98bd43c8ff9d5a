"""From found images to files of labels, several images at once through the model.

Threads decode images ahead of it and write labels behind it.

One bad image never ends a run: it is kept with its reason. What fails the place of the outputs does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from maskshards.train.prediction.image_files import PredictError, image_px, read_image
from maskshards.train.prediction.outputs import Outputs

AHEAD_PX = 1 << 25  # pixels that are decoded before their turn, or wait to be written
BATCH_PX = 1 << 23  # pixels of the images that go through the model together
LARGE_PX = 1 << 26  # pixels from which an image is told to be shrunk
MOST_SCORES = 1 << 31  # values of one image's scores


class Labeller(Protocol):
    """What labels arrays: a Predictor."""

    @property
    def num_classes(self) -> int: ...

    def label(self, arrays: Sequence[np.ndarray], mosaic: bool) -> list[np.ndarray]: ...

    def scores(self, images: np.ndarray) -> np.ndarray: ...


@dataclass
class Report:
    """What became of the images."""

    labelled: int = 0
    shrunk: int = 0  # of these, images beyond LARGE_PX that were not labelled at their own scale
    failed: list[tuple[Path, str]] = field(default_factory=list)  # path, reason


@dataclass(frozen=True)
class Pace:
    """How much happens at once."""

    together: int = 8  # images that go through the model together
    threads: int = 4  # that decode, and as many that write
    scores: bool = False  # also write scores
    mosaic: bool = False  # label window by window at own scale


def label_files(
    labeller: Labeller,
    images: Sequence[tuple[Path, str]],
    outputs: Outputs,
    pace: Pace,
    done: Callable[[int], object] = lambda count: None,
) -> Report:
    """Label (path, name) one after another; `done` is told how many images are finished with.

    Raises OSError where the outputs cannot be written.
    """
    report = Report()
    writing: deque[tuple[Future[None], int]] = deque()
    with ThreadPoolExecutor(pace.threads) as readers, ThreadPoolExecutor(pace.threads) as writers:
        try:
            for batch in batches(decoded(images, readers, report, done), pace):
                for (path, name, image), answer in zip(batch, answers(labeller, batch, pace), strict=True):
                    if isinstance(answer, str):
                        report.failed.append((path, answer))
                        done(1)
                        continue
                    task = writers.submit(write_one, outputs, name, image, *answer)
                    px = image.shape[0] * image.shape[1]
                    writing.append((task, px))
                    report.labelled += 1
                    report.shrunk += px > LARGE_PX and not pace.mosaic
                    while sum(px for _, px in writing) > AHEAD_PX:
                        writing.popleft()[0].result()
                        done(1)
            for task, _ in writing:
                task.result()
                done(1)
        except BaseException:
            readers.shutdown(wait=False, cancel_futures=True)
            writers.shutdown(wait=False, cancel_futures=True)
            raise
    return report


def decoded(
    images: Sequence[tuple[Path, str]],
    readers: ThreadPoolExecutor,
    report: Report,
    done: Callable[[int], object],
) -> Iterator[tuple[Path, str, np.ndarray]]:
    """The images that can be read, in order; others go into the report. Large ones are not read ahead."""
    waiting: deque[tuple[Path, str, Future[np.ndarray], int]] = deque()
    left = deque(images)
    while left or waiting:
        while left and (not waiting or sum(px for *_, px in waiting) < AHEAD_PX):
            path, name = left.popleft()
            px = max(image_px(path), 1 << 16)
            waiting.append((path, name, readers.submit(read_image, path), px))
        path, name, reading, _ = waiting.popleft()
        try:
            image = reading.result()
        except PredictError as error:
            report.failed.append((path, str(error)))
            done(1)
            continue
        yield path, name, image


def batches(
    images: Iterator[tuple[Path, str, np.ndarray]], pace: Pace
) -> Iterator[list[tuple[Path, str, np.ndarray]]]:
    """Images in groups of `together`, fewer where they are large; scores are made one by one."""
    batch: list[tuple[Path, str, np.ndarray]] = []
    held = 0
    for one in images:
        px = one[2].shape[0] * one[2].shape[1]
        if batch and (pace.scores or len(batch) == pace.together or held + px > BATCH_PX):
            yield batch
            batch, held = [], 0
        batch.append(one)
        held += px
    if batch:
        yield batch


Answer = tuple[np.ndarray, np.ndarray | None]  # (H, W) class ids and (C, H, W) scores


def answers(
    labeller: Labeller, batch: Sequence[tuple[Path, str, np.ndarray]], pace: Pace
) -> list[Answer | str]:
    """The answer for each image of a batch, or the reason why there is none."""
    arrays = [image for _, _, image in batch]
    if not pace.scores:
        try:
            return [(class_map, None) for class_map in labeller.label(arrays, pace.mosaic)]
        except (ValueError, RuntimeError, MemoryError) as error:
            if len(batch) == 1:
                return [f"cannot be labelled: {_first_line(error)}"]
    return [_answer_alone(labeller, array, pace) for array in arrays]


def _answer_alone(labeller: Labeller, array: np.ndarray, pace: Pace) -> Answer | str:
    try:
        if not pace.scores:
            return labeller.label([array], pace.mosaic)[0], None
        if labeller.num_classes * array.shape[0] * array.shape[1] > MOST_SCORES:
            return "is too large for --scores; cut it into parts"
        scores = labeller.scores(array)
        return scores.argmax(0).astype(np.uint8 if len(scores) <= 256 else np.uint16), scores
    except (ValueError, RuntimeError, MemoryError) as error:
        return f"cannot be labelled: {_first_line(error)}"


def write_one(
    outputs: Outputs, name: str, image: np.ndarray, class_map: np.ndarray, scores: np.ndarray | None
) -> None:
    """All files of one image."""
    outputs.write(name, image, class_map)
    if scores is not None:
        outputs.write_scores(name, scores)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
