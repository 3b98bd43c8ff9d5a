"""The few copies a step makes between host and device; the host waits for none unless it asks to."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """`values` on `device`, by one copy through pinned memory, queued and not waited for."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class HostCopy:
    """A device-to-host copy under way; work queued after it runs while the host waits for it alone."""

    def __init__(self, source: Tensor) -> None:
        self._done: torch.cuda.Event | None = None
        if source.device.type != "cuda":
            self._values = source.cpu()
            return
        self._values = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
        self._values.copy_(source, non_blocking=True)
        self._done = torch.cuda.Event(blocking=True)  # the waiting thread sleeps: spinning takes a core
        self._done.record()

    def wait(self) -> np.ndarray:
        """The values, once they are here: the one place of a step where the host waits for the device."""
        if self._done is not None:
            self._done.synchronize()
        return self._values.numpy()
