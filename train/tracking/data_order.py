"""One short word for all that a run has read: which samples stood where, and how each of them was cropped.

Every step adds one digest, a sum over its samples and so the same however they were dealt to ranks and
micro-steps; the word after a step hashes the word before it with that digest. Equal words at equal steps mean
equal data in every step so far, so two runs can be compared from their logs alone. Digests of steps wait on
the host, one a step, until a log line or a checkpoint is due; then one message among the hosts sums them over
the ranks, so a step itself pays neither a message nor a wait.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from maskshards.shards.augment.crop import CropDraws
from maskshards.shards.batch import CropBatch
from maskshards.train.distributed.ranks import Ranks

WORD_BYTES = 8
ROOM = 1 << (8 * WORD_BYTES)


class OrderChain:
    """The running hash of one run. `word` counts all steps up to the last `resolve`, 16 hexadecimal digits.

    `word` None starts a chain after `step` steps on the data of this fingerprint; chains that start at
    different steps or on different data never agree.
    """

    def __init__(self, word: str | None = None, step: int = 0, fingerprint: str = "") -> None:
        self.word = word if word is not None else hashed(f"from step {step} of {fingerprint}".encode())
        self._pending: list[int] = []

    def add(self, digest: int) -> None:
        """One more step, of which this rank's samples have this digest (a signed word)."""
        self._pending.append(digest)

    def resolve(self, ranks: Ranks) -> str:
        """The word after all steps added so far.

        Every rank calls it at the same step, and waits for the other hosts only.
        """
        if self._pending:
            for digest in ranks.sum(torch.tensor(self._pending)).tolist():
                self.word = hashed(bytes.fromhex(self.word) + (digest % ROOM).to_bytes(WORD_BYTES, "little"))
            self._pending.clear()
        return self.word


def hashed(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=WORD_BYTES).hexdigest()


def order_digest(crops: CropBatch, draws: CropDraws) -> int:
    """A signed 64-bit number for B samples, whatever the order they come in.

    It covers each one's position, key and drawn crop numbers (size ratio, candidate places, flip, colour).
    Sums over micro-steps and ranks wrap.

    Not covered: pixels and labels (the fingerprint that the chain starts with stands for them), the crop's
    own size and normalisation, which of the candidate places the device took, the loss's points, drop path.
    """
    numbers = np.ascontiguousarray(draws.rows(), dtype="<f8")
    total = 0
    for key, position, row in zip(crops.keys, crops.positions, numbers, strict=True):
        sample = hashlib.blake2b(f"{position} {key} ".encode() + row.tobytes(), digest_size=WORD_BYTES)
        total += int.from_bytes(sample.digest(), "little")
    return wrapped(total)


def wrapped(number: int) -> int:
    """`number` modulo 2^64, as the signed word that an int64 tensor holds."""
    return (number + ROOM // 2) % ROOM - ROOM // 2
