import itertools
import logging
import math

import pytest

from maskshards.train.config.schedules import OneCycleSettings
from maskshards.train.config.schema import ConfigError, SchedulerConfig
from maskshards.train.optim.lr_schedule import build_schedule, one_cycle_factor

PUBLISHED = {"warmup_iters": 1500, "warmup_ratio": 1e-6, "final_div_factor": "inf", "pct_start": 0}


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 1e-9),
        (1, 6.68e-7),
        (749, 4.900e-4),
        (1499, 9.619e-4),
        (1500, 9.965e-4),
        (19999, 5.0e-4),
        (39998, 1.5e-12),
    ],
)
def test_one_cycle_reproduces_the_published_run(step: int, rate: float) -> None:
    schedule = build_schedule(SchedulerConfig("WarmupOneCycleLR", 40000, dict(PUBLISHED)))
    assert 1e-3 * schedule(step) == pytest.approx(rate, rel=3e-2 if rate < 1e-11 else 1e-3)


def test_one_cycle_without_ratio_warms_up_from_the_final_rate() -> None:
    settings = OneCycleSettings(warmup_iters=10, final_div_factor=1000.0)
    assert one_cycle_factor(0, 100, settings) == pytest.approx(1e-3)
    assert one_cycle_factor(5, 100, settings) == pytest.approx(
        1e-3 + 0.5 * (1 + math.cos(math.pi * 0.05)) / 2
    )


@pytest.mark.parametrize("warmup", [0, 1, 4, 12])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("anneal", ["cos", "linear"])
@pytest.mark.parametrize(("division", "final"), [(25.0, 1000.0), (2.0, 3.0), (1.0, 1.0), (4.0, math.inf)])
def test_one_cycle_is_the_published_formula_at_every_step(
    warmup: int, ratio: float, anneal: str, division: float, final: float
) -> None:
    """Written down once more, in learning rates from the first to the last instead of shares of the full."""
    settings = OneCycleSettings(
        warmup_iters=warmup, warmup_ratio=ratio, anneal_strategy=anneal, div_factor=division,
        final_div_factor=final,
    )  # fmt: skip
    full, total = 0.3, 10
    first = full / division
    least = first / final
    for step in range(total):
        if step < warmup and ratio:
            lacking = (1 - step / warmup) * (1 - ratio)
            rate = full * (1 - step / total) * (1 - lacking)
        elif step < warmup:
            start, end = full / final, full
            rate = start + step / warmup * end * math.cos(math.pi * step / (2 * total)) ** 2
        elif anneal == "linear":
            rate = full * (total - step) / total + least * step / total
        else:
            rate = least + (full - least) * math.cos(math.pi * (step + 1) / (2 * total)) ** 2
        assert full * one_cycle_factor(step, total, settings) == pytest.approx(rate, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("warmup", [0, 1, 4])
@pytest.mark.parametrize(("ratio", "least", "power"), [(0.0, 0.0, 1.0), (0.25, 0.1, 2.0), (1.0, 0.5, 0.9)])
def test_decays_are_what_they_say_at_every_step(
    warmup: int, ratio: float, least: float, power: float
) -> None:
    arguments = {"warmup_iters": warmup, "warmup_ratio": ratio, "min_ratio": least}
    poly = build_schedule(SchedulerConfig("WarmupPolyLR", 10, {**arguments, "power": power}))
    cosine = build_schedule(SchedulerConfig("WarmupCosineLR", 10, dict(arguments)))
    for step in range(10):
        left = (10 - step) / (10 - warmup)
        rising = ratio * (warmup - step) / max(warmup, 1) + step / max(warmup, 1)
        for schedule, falling in ((poly, left**power), (cosine, math.sin(math.pi / 2 * left) ** 2)):
            expected = rising if step < warmup else least + (1 - least) * falling
            assert schedule(step) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_one_cycle_linear_falls_along_a_line() -> None:
    settings = OneCycleSettings(anneal_strategy="linear", final_div_factor=math.inf)
    assert [one_cycle_factor(step, 4, settings) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_one_cycle_ends_on_the_smallest_rate() -> None:
    assert one_cycle_factor(9, 10, OneCycleSettings()) == pytest.approx(1 / 25000)


@pytest.mark.parametrize("kind", ["WarmupPolyLR", "WarmupCosineLR"])
def test_decays_rise_to_one_then_fall_without_a_jump(kind: str) -> None:
    schedule = build_schedule(SchedulerConfig(kind, 100, {"warmup_iters": 20, "warmup_ratio": 0.1}))
    rates = [schedule(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[20] == 1.0
    assert max(rates) == 1.0
    assert all(a < b for a, b in itertools.pairwise(rates[:21]))
    assert all(a > b for a, b in itertools.pairwise(rates[20:]))
    assert max(abs(a - b) for a, b in itertools.pairwise(rates)) < 0.05


def test_poly_and_cosine_have_their_shapes() -> None:
    poly = build_schedule(SchedulerConfig("WarmupPolyLR", 10, {"power": 2.0}))
    cosine = build_schedule(SchedulerConfig("WarmupCosineLR", 10, {"min_ratio": 0.2}))
    assert poly(5) == pytest.approx(0.25)
    assert cosine(5) == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("kind", "arguments", "expected"),
    [
        ("StepLR", {}, "expected one of WarmupOneCycleLR"),
        ("WarmupOneCycleLR", {"warmup_iter": 5}, "did you mean 'warmup_iters'"),
        ("WarmupOneCycleLR", {"warmup_iters": "many"}, "expected int"),
        ("WarmupOneCycleLR", {"warmup_iters": math.inf}, "expected int"),
        ("WarmupOneCycleLR", {"use_beta1": True}, "must be False"),
        ("WarmupOneCycleLR", {"use_beta1": "no"}, "expected bool"),
        ("WarmupOneCycleLR", {"anneal_strategy": "step"}, "expected cos or linear"),
        ("WarmupOneCycleLR", {"div_factor": 0.5}, "at least 1"),
        ("WarmupPolyLR", {"power": 0}, "power above 0"),
        ("WarmupPolyLR", {"warmup_ratio": 2}, "0..1"),
    ],
)
def test_bad_schedules_are_refused(kind: str, arguments: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        build_schedule(SchedulerConfig(kind, 10, arguments))


def test_a_warm_up_longer_than_the_run_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    build_schedule(SchedulerConfig("WarmupOneCycleLR", 10, dict(PUBLISHED)))
    assert "warm-up of 1500 steps outlasts the run of 10" in caplog.text
    caplog.clear()
    build_schedule(SchedulerConfig("WarmupPolyLR", 10, {"warmup_iters": 9}))
    assert caplog.text == ""
    build_schedule(SchedulerConfig("WarmupPolyLR", 10, {"warmup_iters": 10}))
    assert "warm-up of 10 steps outlasts the run of 10" in caplog.text


@pytest.mark.parametrize("kind", ["WarmupOneCycleLR", "WarmupPolyLR", "WarmupCosineLR"])
def test_a_schedule_has_no_rate_beyond_its_end(kind: str) -> None:
    schedule = build_schedule(SchedulerConfig(kind, 10, {}))
    for step in (-1, 10):
        with pytest.raises(ValueError, match=f"a schedule of 10 steps has no .* after step {step}$"):
            schedule(step)


def test_a_finite_final_division_lifts_the_whole_cosine() -> None:
    settings = OneCycleSettings(div_factor=2.0, final_div_factor=4.0)  # ends on an eighth
    for step in range(10):
        cosine = (1 + math.cos(math.pi * (step + 1) / 10)) / 2
        assert one_cycle_factor(step, 10, settings) == pytest.approx(1 / 8 + 7 / 8 * cosine)


@pytest.mark.parametrize("kind", ["WarmupPolyLR", "WarmupCosineLR"])
def test_without_a_warm_up_the_first_step_has_the_full_rate(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert build_schedule(SchedulerConfig(kind, 1, {}))(0) == 1.0
    assert build_schedule(SchedulerConfig(kind, 10, {}))(0) == 1.0
    assert caplog.text == ""  # nothing outlasts the run


@pytest.mark.parametrize("kind", ["WarmupOneCycleLR", "WarmupCosineLR"])
def test_a_run_that_goes_on_after_its_end_jumps_to_what_the_document_says(kind: str) -> None:
    arguments = {"final_div_factor": "inf"} if kind == "WarmupOneCycleLR" else {}
    for factor, share in ((1.5, 0.25), (2.0, 0.5)):
        longer = build_schedule(SchedulerConfig(kind, int(10_000 * factor), dict(arguments)))
        assert longer(10_000) == pytest.approx(share, abs=1e-3)
