"""What the figures of a run say, in words: what is odd, and what to do next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from maskshards.train.evaluation.metrics import EvalResult

MUCH = 0.9  # share of the labelled pixels at which one class hides the others
WAITING = 0.05  # share of the time at which waiting for data is worth a word
SHOWN = 6  # names in a list


def findings(
    config: dict[str, Any],
    records: list[dict[str, Any]],
    result: EvalResult,
    unseen: Sequence[str] = (),
) -> list[str]:
    """Sentences about the run, the most useful first.

    `config` is plain values, `records` metrics.jsonl, `unseen` the classes without a pixel in the training
    split.
    """
    return [
        *about_training_data(unseen),
        *about_classes(result, unseen),
        *about_schedule(config),
        *about_scores(records, str(config.get("metric_to_save", "mIoU"))),
        *about_time(records),
    ]


def about_training_data(unseen: Sequence[str]) -> Iterator[str]:
    """Classes that nothing can be learned of."""
    if unseen:
        yield (
            f"{counted(unseen)} never seen in training, since no image of the training split shows "
            f"{some(unseen)}."
        )


def about_classes(result: EvalResult, unseen: Sequence[str]) -> Iterator[str]:
    """Classes that are hardly there, never found, or nearly everything."""
    pixels, names = result.labelled_pixels, result.class_names
    total = sum(pixels)
    if total and max(pixels) > MUCH * total:
        name = names[max(range(len(names)), key=lambda k: pixels[k])]
        yield (
            f"One class, {name}, takes {100 * max(pixels) / total:.0f} % of the labelled pixels: pixel "
            "accuracy says little, look at the IoU of the others."
        )
    missing = [name for name, count in zip(names, pixels, strict=True) if not count]
    if missing:
        share = f"{len(missing)} of {len(names)} classes {'has' if len(missing) == 1 else 'have'}"
        yield f"{share} no pixel in the validation split: {some(missing)}."
    never = [
        name
        for name, count, predicted in zip(names, pixels, result.predicted_pixels, strict=True)
        if count and not predicted and name not in unseen
    ]
    if never:
        yield f"{counted(never)} never predicted: {some(never)}. A longer training may find what is rare."


def about_schedule(config: dict[str, Any]) -> Iterator[str]:
    """A warm-up that the run never leaves."""
    scheduler = config.get("scheduler") or {}
    steps = scheduler.get("total_iter")
    warmup = (scheduler.get("constructor_kwargs") or {}).get("warmup_iters")
    if steps and warmup and warmup >= steps:
        yield (
            f"Warm-up takes {warmup} steps and the run {steps}: the full learning rate was never reached. "
            "Lower scheduler.constructor_kwargs.warmup_iters."
        )


def about_scores(records: list[dict[str, Any]], metric: str) -> Iterator[str]:
    """Whether longer training is likely to help."""
    scores = [
        (one["step"], one[metric])
        for one in records
        if one["kind"] == "eval" and one["step"] and one.get(metric) is not None
    ]
    if len(scores) < 2:
        return
    best = max(scores, key=lambda point: point[1])
    if best == scores[-1]:
        yield (
            f"The last evaluation is the best ({best[1]:.2f} after step {best[0]}): a longer run may do "
            "better (scheduler.total_iter in a new output_dir)."
        )
    else:
        yield (
            f"The best evaluation was after step {best[0]} ({best[1]:.2f}), the last one gives "
            f"{scores[-1][1]:.2f}: checkpoints/best-* holds the better weights."
        )


def about_time(records: list[dict[str, Any]]) -> Iterator[str]:
    """Whether the device waited for data."""
    train = [one for one in records if one["kind"] == "train"]
    whole, waited = spent(train), spent(train, "wait_share")
    if whole and waited > WAITING * whole:
        yield (
            f"{100 * waited / whole:.0f} % of the training time went into waiting for data: raise "
            "num_workers, or see `maskshards bench loader`."
        )


def spent(records: list[dict[str, Any]], share: str | None = None) -> float:
    """Seconds of these lines, or the `share` of them that a figure of each tells; none of lines without."""
    return sum(
        float(one.get("seconds") or 0.0) * (1.0 if share is None else float(one.get(share) or 0.0))
        for one in records
    )


def counted(names: Sequence[str]) -> str:
    """How many classes, with their verb."""
    return f"{len(names)} {'class was' if len(names) == 1 else 'classes were'}"


def some(names: Sequence[str]) -> str:
    """The first few names."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
