"""The benchmark command: every stage is measured, and wrong words are refused."""

import json

import pytest
import simplejpeg
import torch

from maskshards.shards.__main__ import main
from maskshards.shards.augment.crop import CropSettings
from maskshards.shards.commands import bench
from maskshards.shards.decode.nvjpeg import GpuDecoder
from maskshards.shards.format.manifest import open_split

STAGES = ["read", "decompress", "decode", "pack", "crop", "loader", "all", "limit"]
SMALL = ["--batch", "3", "--batches", "2", "--rounds", "1", "--crop", "32", "--device", "cpu"]


@pytest.fixture(scope="module")
def split(make_split):
    return make_split("benched", [5, 4])


def test_every_stage_is_measured(split, capsys):
    assert main(["bench", str(split.folder), *SMALL, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["batch"], facts["batches"]) == (3, 2)
    assert list(facts["stages"]) == STAGES
    assert all(0 < figure for stage in facts["stages"].values() for figure in stage.values())
    assert facts["bottleneck"] in STAGES[:5]
    limit, loader = facts["stages"]["limit"], facts["stages"]["loader"]
    assert facts["of_limit"] == pytest.approx(limit["wall_ms"] / loader["wall_ms"])


def test_the_table_names_the_bottleneck():
    stages = {name: {"cpu_ms": 0.5, "wall_ms": 0.25} for name in STAGES}
    facts = {
        "batches": 2,
        "batch": 3,
        "threads": 2,
        "crop": 32,
        "photometric": "none",
        "device": "cpu",
        "stages": stages,
        "bottleneck": "decode",
        "crop_ms_per_batch": 1.5,
        "of_limit": 0.83,
        "of_limit_cpu": 0.9,
    }
    text = bench.as_text(facts)
    assert "decode                 0.500          0.250      4000" in text
    assert "bottleneck: decode" in text
    assert "crop: 1.50 ms a batch on cpu" in text
    assert "83%" in text


@pytest.mark.parametrize("word", ["--batch", "--batches", "--rounds", "--threads"])
def test_counts_must_be_positive(split, capsys, word):
    for value in ("0", "1000000000"):
        assert main(["bench", str(split.folder), *SMALL, word, value]) == 2
        assert f"{word} is {value}; expected a whole number from 1 to" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("words", [["--device", "cuda"], ["--decode", "gpu"]])
def test_a_missing_gpu_is_said(split, capsys, words):
    assert main(["bench", str(split.folder), *SMALL, *words]) == 2
    assert "CUDA device" in capsys.readouterr().err


def test_decoding_on_the_device_is_measured_in_the_place_of_decoding(split):
    decoder = GpuDecoder(
        "cpu",
        lambda files: [
            torch.from_numpy(simplejpeg.decode_jpeg(f.numpy(), "RGB")).permute(2, 0, 1) for f in files
        ],
    )
    settings = CropSettings(crop_px=(32, 32), image_px=32)
    timings = bench.Bench(open_split(split.folder), 3, 2, 2, torch.device("cpu"), settings, decoder).timings()
    assert timings["decode"].args[0].__name__ == timings["limit"].args[0].__name__ == "_decode_on_device"
    assert timings["loader"]()["wall_ms"] > 0
    assert timings["decode"]()["wall_ms"] > 0


def test_a_folder_of_splits_will_do(split, tmp_path, capsys):
    (tmp_path / "training").symlink_to(split.folder)
    (tmp_path / "another").symlink_to(split.folder)
    assert main(["bench", str(tmp_path), *SMALL, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["batches"] == 2
