import os
import subprocess
import sys

from maskshards.shards.augment.presets import IMAGENET_MEAN, IMAGENET_STD, PRESETS


def test_the_numbers_are_imagenets() -> None:
    assert [round(value / 255, 3) for value in IMAGENET_MEAN] == [0.485, 0.456, 0.406]
    assert [round(value / 255, 3) for value in IMAGENET_STD] == [0.229, 0.224, 0.225]


def test_names_and_their_strength() -> None:
    assert list(PRESETS) == ["reference", "mmseg", "eomt", "none"]
    assert PRESETS["none"] is None


def test_the_table_needs_no_torch() -> None:
    program = "import sys, maskshards.shards.augment.presets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], env={**os.environ}).returncode == 0
