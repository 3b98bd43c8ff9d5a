"""Where a model runs when nobody says, and what is said about a device that is not there."""

from __future__ import annotations

import torch

from maskshards.train.prediction.image_files import PredictError


def choose_device(name: str | None) -> torch.device:
    """The device called `name`; without a name the first of CUDA, XPU, MPS and the CPU that is there."""
    try:
        device = torch.device((name or best_device()).lower())
    except RuntimeError as error:
        raise PredictError(f"device={name} is no device; say cpu, cuda, cuda:1, mps or xpu") from error
    if device.type not in ("cpu", *accelerators()):
        raise PredictError(
            f"device={name}, but there is no {device.type.upper()} device here; say device=cpu"
        )
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            raise PredictError(f"device={name}, but there are {torch.cuda.device_count()} CUDA devices here")
        torch.cuda.set_device(device)  # kernels and events of our own go to the current device
    return device


def best_device() -> str:
    """The accelerator of this machine, else "cpu"."""
    return next(iter(accelerators()), "cpu")


def accelerators() -> list[str]:
    """Kinds of devices beside the CPU that are there, the best first."""
    there = {
        "cuda": torch.cuda.is_available(),
        "xpu": torch.xpu.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    return [name for name, usable in there.items() if usable]
