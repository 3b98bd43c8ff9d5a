from argparse import ArgumentParser

import pytest

from maskshards.shards.commands.root_files import (
    CARD_NAME,
    CLASSES_NAME,
    card_is_sealed,
    classes_are_sealed,
    root_faults,
    sealed_card,
    sealed_classes,
)
from maskshards.shards.commands.verify import add_arguments, as_text, run
from maskshards.shards.storage.local import LocalStore

CARD, CLASSES = sealed_card("# Straßen\n\nWords.\n"), sealed_classes({"dataset": "ü", "classes": [{"id": 0}]})


@pytest.mark.parametrize(("data", "holds"), [(CARD, card_is_sealed), (CLASSES, classes_are_sealed)])
def test_every_flipped_bit_breaks_the_seal(data, holds):
    assert holds(data)
    for place in range(8 * len(data)):
        broken = bytearray(data)
        broken[place // 8] ^= 1 << (place % 8)
        assert not holds(bytes(broken)), place
    for other in (data[:-1], data + b"\n", b"", b"[1]", b"{}"):
        assert not holds(other)


def test_what_is_told_of_a_root(tmp_path):
    assert root_faults(LocalStore(str(tmp_path))) == ([], [])
    (tmp_path / CARD_NAME).write_bytes(CARD)
    (tmp_path / CLASSES_NAME).write_bytes(CLASSES)
    assert root_faults(LocalStore(str(tmp_path))) == ([], [])
    (tmp_path / CARD_NAME).write_bytes(CARD + b"mine")
    (tmp_path / CLASSES_NAME).write_bytes(CLASSES.replace(b"0", b"1"))
    faults, notes = root_faults(LocalStore(str(tmp_path)))
    assert faults == ["classes.json was changed or damaged: its checksum does not fit; build it again"]
    assert "somebody wrote to it" in notes[0]
    for place in (0, 8 * len(CARD) // 3, 8 * len(CARD) - 9, 8 * len(CARD) - 8 * 40, 8 * len(CARD) - 8 * 84):
        broken = bytearray(CARD)
        broken[place // 8] ^= 1 << (place % 8)
        (tmp_path / CARD_NAME).write_bytes(broken)
        assert root_faults(LocalStore(str(tmp_path)))[0][1:] == [
            "README.md is damaged: one bit of it flipped; remove it and build again"
        ]
    (tmp_path / CLASSES_NAME).write_bytes(b'["sky"]')
    assert root_faults(LocalStore(str(tmp_path)))[1][0] == "classes.json is none of ours"
    (tmp_path / CLASSES_NAME).write_bytes(CLASSES)
    (tmp_path / CARD_NAME).write_bytes(CARD.replace(b"Words", b"Other words"))
    assert "somebody wrote to it" in root_faults(LocalStore(str(tmp_path)))[1][0]


def test_check_looks_at_the_root(make_split, tmp_path):
    made = make_split("rooted", [2])
    root = tmp_path / "root"
    root.mkdir()
    (root / "training").symlink_to(made.folder)
    (root / CLASSES_NAME).write_bytes(CLASSES)
    parser = ArgumentParser()
    add_arguments(parser)
    assert run(parser.parse_args([str(root)]))["ok"]
    (root / CLASSES_NAME).write_bytes(CLASSES[:-3])
    facts = run(parser.parse_args([str(root)]))
    assert not facts["ok"]
    assert "classes.json was changed or damaged" in as_text(facts)
