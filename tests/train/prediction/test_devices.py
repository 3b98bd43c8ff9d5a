"""Devices by name, and what is said about those that are not there."""

import pytest
import torch

from maskshards.train.prediction import devices
from maskshards.train.prediction.devices import accelerators, best_device, choose_device
from maskshards.train.prediction.image_files import PredictError


def test_the_cpu_is_always_there():
    assert choose_device("cpu") == torch.device("cpu")


def test_without_a_name_the_best_is_taken(monkeypatch):
    monkeypatch.setattr(devices, "accelerators", lambda: [])
    assert choose_device(None) == torch.device("cpu")
    monkeypatch.setattr(devices, "accelerators", lambda: ["mps"])
    assert best_device() == "mps"
    assert choose_device(None) == torch.device("mps")


@pytest.mark.parametrize("name", ["cuda", "mps", "xpu"])
def test_a_device_that_is_not_here_is_named(name, monkeypatch):
    monkeypatch.setattr(devices, "accelerators", lambda: [])
    with pytest.raises(PredictError, match=f"device={name}, but there is no {name.upper()} device here"):
        choose_device(name)


def test_what_is_no_device_is_refused():
    with pytest.raises(PredictError, match="device=tpu9x is no device; say cpu"):
        choose_device("tpu9x")


def test_a_number_beyond_the_devices_is_refused(monkeypatch):
    monkeypatch.setattr(devices, "accelerators", lambda: ["cuda"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(PredictError, match="device=cuda:5, but there are 2 CUDA devices here"):
        choose_device("cuda:5")


def test_accelerators_are_those_that_torch_finds(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert accelerators()[0] == "cuda"
