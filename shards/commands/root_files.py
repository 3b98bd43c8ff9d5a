"""The two files at the root of a data set, `classes.json` and the card `README.md`, sealed against damage.

Each holds a digest of itself, so a flipped bit is told. A card may be written to by people, which breaks its
seal as well; that is a note and no fault. What one bit explains is damage: nobody writes a single bit.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from maskshards.shards.errors import StoreError
from maskshards.shards.storage.base import Store

CARD_NAME, CLASSES_NAME = "README.md", "classes.json"
SEAL_BYTES = len("\n<!-- maskshards  -->\n") + 64
MOST_BYTES = 16 << 20  # of each; what follows breaks its seal as well
MOST_SEARCHED_BYTES = 32 << 10  # each bit of it is tried: two seconds at most
_SEAL = re.compile(rb"\n<!-- maskshards ([0-9a-f]{64}) -->\n\Z")


def sealed_card(text: str) -> bytes:
    """A card with the digest of its text in its last line."""
    data = text.encode("utf-8", "backslashreplace")
    return data + _seal_line(data)


def card_is_sealed(data: bytes) -> bool:
    """Whether a card is as `sealed_card` made it."""
    seal = _SEAL.search(data)
    return seal is not None and hashlib.sha256(data[: seal.start()]).hexdigest() == seal[1].decode()


def card_lost_a_bit(data: bytes) -> bool:
    """Whether one flipped bit is all that parts a card, of up to 32 kB, from what `sealed_card` made."""
    text, line = data[:-SEAL_BYTES], data[-SEAL_BYTES:]
    if _flipped_bits(line, _seal_line(text)) == 1:
        return True
    seal = _SEAL.fullmatch(line)
    if seal is None or len(text) > MOST_SEARCHED_BYTES:
        return False
    wanted, before = bytes.fromhex(seal[1].decode()), hashlib.sha256()
    for place, byte in enumerate(text):
        for bit in range(8):
            digest = before.copy()
            digest.update(bytes([byte ^ 1 << bit]))
            digest.update(memoryview(text)[place + 1 :])
            if digest.digest() == wanted:
                return True
        before.update(text[place : place + 1])
    return False


def _seal_line(text: bytes) -> bytes:
    return f"\n<!-- maskshards {hashlib.sha256(text).hexdigest()} -->\n".encode()


def _flipped_bits(one: bytes, other: bytes) -> int:
    """In how many bits two texts of one length differ; many where their lengths do."""
    if len(one) != len(other):
        return 8 * max(len(one), len(other))
    return sum((a ^ b).bit_count() for a, b in zip(one, other, strict=True))


def sealed_classes(facts: dict[str, Any]) -> bytes:
    """JSON with the digest of everything else as its last field."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**facts, "checksum": digest}, indent=1) + "\n").encode()


def classes_are_sealed(data: bytes) -> bool:
    """Whether a class list is as `sealed_classes` made it, to the byte."""
    try:
        facts = json.loads(data)
        facts.pop("checksum")
        return data == sealed_classes(facts)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def classes_are_ours(data: bytes) -> bool:
    """Whether a file is a class list of ours, whole or damaged, and no other program's of that name."""
    return b'"source_values"' in data or b'"checksum"' in data


def root_faults(store: Store) -> tuple[list[str], list[str]]:
    """(faults, notes) about the files at the root of a data set, in words; none where they are not there."""
    faults, notes = [], []
    classes, card = _read(store, CLASSES_NAME), _read(store, CARD_NAME)
    if classes is not None and not classes_are_ours(classes):
        notes.append(f"{CLASSES_NAME} is none of ours")
    elif classes is not None and not classes_are_sealed(classes):
        faults.append(f"{CLASSES_NAME} was changed or damaged: its checksum does not fit; build it again")
    if card is not None and not card_is_sealed(card):
        if card_lost_a_bit(card):
            faults.append(f"{CARD_NAME} is damaged: one bit of it flipped; remove it and build again")
        else:
            notes.append(f"{CARD_NAME} is not as it was made: somebody wrote to it, or it was damaged")
    return faults, notes


def _read(store: Store, name: str) -> bytes | None:
    try:
        return store.read(name, 0, min(store.size(name), MOST_BYTES))
    except StoreError:
        return None
