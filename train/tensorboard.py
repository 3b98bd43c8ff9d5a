"""Scalars as TensorBoard event files, written without TensorBoard.

The format is small: TFRecord frames (length, masked CRC-32C of the length, payload, masked CRC-32C of the
payload) around protocol-buffer messages `Event{wall_time = 1, step = 2, file_version = 3, summary = 5}` with
`Summary{value = 1}` and `Value{tag = 1, simple_value = 2}` (tensorflow/core/util/event.proto, summary.proto).
"""

from __future__ import annotations

import math
import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

import google_crc32c

FOLDER = "tensorboard"
NOT_SCALARS = ("kind", "step")


class TensorBoardFile:
    """One event file below `RUN/tensorboard`; every figure of a metrics record becomes `KIND/NAME`."""

    def __init__(self, run: Path) -> None:
        folder = run / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        self.path = folder / f"events.out.tfevents.{now:.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(self.path, "xb")  # closed by close()
        self._put(event(now, 0, file_version="brain.Event:2"))

    def record(self, record: dict[str, Any]) -> None:
        """Write the finite numbers of one line of metrics.jsonl, and make them visible at once."""
        scalars = {
            f"{record['kind']}/{name}": float(value)
            for name, value in record.items()
            if name not in NOT_SCALARS and isinstance(value, int | float) and math.isfinite(value)
        }
        self._put(event(time.time(), record["step"], scalars=scalars))

    def close(self) -> None:
        self._file.close()

    def _put(self, payload: bytes) -> None:
        self._file.write(frame(payload))
        self._file.flush()


def frame(payload: bytes) -> bytes:
    """One TFRecord."""
    length = struct.pack("<Q", len(payload))
    return length + struct.pack("<I", masked_crc(length)) + payload + struct.pack("<I", masked_crc(payload))


def masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def event(
    wall_time: float, step: int, *, file_version: str = "", scalars: dict[str, float] | None = None
) -> bytes:
    """An Event message of either a file version or scalars."""
    parts = [b"\x09" + struct.pack("<d", wall_time), b"\x10" + varint(step)]
    if file_version:
        parts.append(field(3, file_version.encode()))
    if scalars:
        values = [
            field(1, field(1, tag.encode()) + b"\x15" + struct.pack("<f", value))
            for tag, value in scalars.items()
        ]
        parts.append(field(5, b"".join(values)))
    return b"".join(parts)


def field(number: int, content: bytes) -> bytes:
    """A length-delimited protocol-buffer field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    """Seven bits a byte, lowest first, the top bit set on all but the last."""
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])
