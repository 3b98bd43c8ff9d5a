"""CUDA equals the CPU; here also that the comparison would see it if it did not."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend

from maskshards.train.bench.parts import parity
from maskshards.train.bench.parts.parity import Answers, Twins, breaches, compare, errors

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def answers() -> tuple[Answers, Answers]:
    twins = Twins(CPU, low=False)
    return twins.on_cpu(), twins.on_device(SDPBackend.MATH)


def test_a_copy_gives_the_same_within_rounding(answers: tuple[Answers, Answers]) -> None:
    found = errors(answers[1], answers[0])
    assert len(found) == 6
    assert max(found.values()) < parity.EXACT_LIMIT  # one flipped choice is more than a rounding


def test_a_wrong_number_and_a_nan_are_seen(answers: tuple[Answers, Answers]) -> None:
    exact = answers[0]
    gradients = {**exact.gradients, "adapter": exact.gradients["adapter"] * 1.01}
    wrong = replace(exact, gradients=gradients, loss=exact.loss * torch.nan)
    found = errors(wrong, exact)
    limits = {f"{name} limit": parity.EXACT_LIMIT for name in found}
    said = breaches({"float32": {"MATH": found | limits}})
    assert [line.split(" ")[2] for line in said] == ["loss", "gradient,"]
    assert "adapter 0.01, limit 0.005" in said[1]


@pytest.mark.gpu
def test_cuda_equals_the_cpu_for_every_backend_of_attention() -> None:
    assert breaches(compare(torch.device("cuda"))) == []
