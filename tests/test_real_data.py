"""What must hold on real images: ade20k, camvid and cocostuff below MASKSHARDS_TEST_DATA."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from maskshards.shards.augment.crop import crop, draw_crops
from maskshards.shards.format.coco import to_coco
from maskshards.shards.format.manifest import open_split
from maskshards.shards.format.rle import IGNORE, binary_mask, decode_label_map, unpack_runs
from maskshards.shards.loading.loader import Loader
from maskshards.train.config.load import load_config
from maskshards.train.distributed.ranks import joined
from maskshards.train.predictor import load_model
from maskshards.train.trainer.build import build_parts, crop_settings, open_loader

coco = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")

ROOT = Path(__file__).resolve().parents[1]
CAMVID = "Sky Building Pole Road Pavement Tree SignSymbol Fence Car Pedestrian Bicyclist".split()
NUM_CLASSES = {"ade20k": 150, "camvid": 11, "cocostuff": 182}
SMALL = [
    "config=configs/config-ade20k-m2f-training.yaml",
    "model.dino_hub=dinov3_tiny16",
    "model.weights=random",
    "model_dtype=FLOAT32",
    "decoder_head.hidden_dim=64",
    "m2f_train.num_points=512",
    "transforms.train.img_size=96",
    "transforms.train.crop_size=[96,96]",
    "transforms.eval.img_size=96",
    "eval.crop_size=96",
    "eval.stride=64",
    "num_workers=1",
    "log.interval=1",
]
TWENTY = [
    "scheduler.total_iter=20",
    "scheduler.constructor_kwargs.warmup_iters=2",
    "optimizer.lr=1e-3",
    "optimizer.gradient_clip=1.0",
    "eval.eval_interval=20",
    "eval.max_val_samples=20",
    "global_batch=4",
]


def _source(name):
    place = os.environ.get("MASKSHARDS_TEST_DATA")
    if not place:
        pytest.skip("MASKSHARDS_TEST_DATA is not set: no real images here")
    folder = Path(place) / name
    if not folder.is_dir():
        pytest.skip(f"MASKSHARDS_TEST_DATA holds no {name}")
    return folder


def _environment():
    return os.environ | {"OMP_NUM_THREADS": "1"}


def _run(*words):
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words)], cwd=ROOT, env=_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def _build(name, place):
    """Shards of a real data set, built and verified by the commands."""
    source, out = _source(name), place / f"{name}-shards"
    words = ["--dataset", "ade20k", "--allow-count-mismatch"]
    if name != "ade20k":
        names = CAMVID if name == "camvid" else [f"class {k}" for k in range(NUM_CLASSES[name])]
        (place / f"{name}.txt").write_text("\n".join(names) + "\n")
        words = ["--dataset", "folder", "--classes", place / f"{name}.txt", "--reduce-zero-label"]
    _run(
        *("preprocess", "build", *words, "--root", source, "--out", out),
        *("--samples-per-shard", 64 if name == "camvid" else 4, "--workers", 2, "--quiet"),
    )
    _run("preprocess", "verify", out, "--against", source, "--workers", 2)
    return out


@pytest.fixture(scope="module")
def ade20k(tmp_path_factory):
    return _build("ade20k", tmp_path_factory.mktemp("ade20k"))


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    return _build("camvid", tmp_path_factory.mktemp("camvid"))


@pytest.fixture(scope="module")
def cocostuff(tmp_path_factory):
    return _build("cocostuff", tmp_path_factory.mktemp("cocostuff"))


def _words(name, shards, run):
    return [f"datasets.root={shards}", f"output_dir={run}", f"decoder_head.num_classes={NUM_CLASSES[name]}"]


def _losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def _check_masks(source, shards):
    """Every stored mask against the label map that it came from; returns (pairs, masks) compared."""
    pairs = masks = 0
    for path in sorted(shards.glob("*/*.tar")):
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        for name, data in members.items():
            key, ending = name.split(".", 1)
            if ending != "rle.zst":
                continue
            split = path.parent.name
            values = np.array(Image.open(source / "annotations" / split / f"{key}.png")).astype(np.int64)
            truth = np.where(values == 0, IGNORE, values - 1)
            runs = unpack_runs(data, *truth.shape)
            assert np.array_equal(decode_label_map(runs, *truth.shape), truth)
            assert runs.labels.tolist() == sorted(set(truth.ravel().tolist()) - {IGNORE})
            assert members[f"{key}.jpg"] == (source / "images" / split / f"{key}.jpg").read_bytes()
            ours = to_coco(runs, *truth.shape)
            for owner, label in enumerate(runs.labels.tolist(), start=1):
                mask = truth == label
                assert np.array_equal(binary_mask(runs, owner, *truth.shape), mask)
                assert ours[owner - 1] == coco.encode(np.asfortranarray(mask.astype(np.uint8)))
            pairs, masks = pairs + 1, masks + len(runs.labels)
    return pairs, masks


@pytest.mark.parametrize(("name", "pairs"), [("ade20k", 14), ("cocostuff", 13)])
def test_masks_equal_their_label_maps_and_pycocotools(name, pairs, request):
    found = _check_masks(_source(name), request.getfixturevalue(name))
    assert found[0] == pairs
    assert found[1] > 5 * pairs


@pytest.mark.slow
def test_masks_of_camvid_equal_their_label_maps_and_pycocotools(camvid):
    assert _check_masks(_source("camvid"), camvid)[0] == 468


def test_a_first_batch_becomes_crops(ade20k):
    config = load_config([*SMALL, *_words("ade20k", ade20k, "unused")])
    with Loader(open_split(ade20k / "training"), batch_per_rank=2, seed=0) as loader:
        batch = next(iter(loader))
        settings = crop_settings(config)
        crops = crop(batch, draw_crops(batch, 0, settings), settings)
    assert crops.images.shape == (2, 3, 96, 96)


def test_one_step_reaches_every_trainable_part_and_nothing_frozen(ade20k, tmp_path):
    config = load_config(
        [*SMALL, "bs=2", "n_gpus=1", "optimizer.lr=1e-3", *_words("ade20k", ade20k, tmp_path)]
    )
    with joined() as ranks:
        parts = build_parts(config, ranks)
        frozen = {name: value.clone() for name, value in parts.segmenter.backbone.state_dict().items()}
        before = {name: value.clone() for name, value in parts.segmenter.decoder.state_dict().items()}
        with open_loader(config, ranks, parts.selection, 0) as loader:
            losses = parts.objective(next(iter(loader)))
        losses.total.backward()
        parts.optimizer.step()
    lacking = [name for name, p in parts.segmenter.decoder.named_parameters() if p.grad is None]
    assert lacking == []
    assert not any(p.requires_grad or p.grad is not None for p in parts.segmenter.backbone.parameters())
    after = parts.segmenter.backbone.state_dict()
    assert frozen.keys() == after.keys()
    assert all(torch.equal(frozen[name], after[name]) for name in frozen)
    statistics = [name for name in before if name.endswith(("running_mean", "running_var"))]
    trained = parts.segmenter.decoder.state_dict()
    assert statistics
    assert [name for name in statistics if torch.equal(before[name], trained[name])] == []


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("name", ["ade20k", "camvid"])
def test_twenty_steps_learn_and_are_scored(name, num_processes, request, tmp_path):
    shards, run = request.getfixturevalue(name), tmp_path / "run"
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", num_processes, "-m"]
    _run(
        *(launcher if num_processes > 1 else []),
        *("train", *SMALL, *TWENTY, f"bs={4 // num_processes}", *_words(name, shards, run)),
    )
    losses = _losses(run)
    assert len(losses) == 20
    assert all(math.isfinite(loss) for loss in losses)
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    results = json.loads((run / "results-semantic-segmentation.json").read_text())
    assert results["num_images"] == {"ade20k": 5, "camvid": 20}[name]
    assert 0 <= results["mIoU"] <= 100


@pytest.mark.slow
def test_a_run_continued_half_way_ends_where_the_undisturbed_one_does(ade20k, tmp_path):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    words = ["train", *SMALL, *TWENTY, "bs=2", "checkpoint.interval=10"]
    _run(*words, *_words("ade20k", ade20k, straight))
    half = straight / "checkpoints" / "step-00000010"
    _run(*words, *_words("ade20k", ade20k, resumed), f"resume_from={half}")
    assert _losses(resumed) == _losses(straight)[10:]
    ours, theirs = (
        load_file(run / "checkpoints" / "step-00000020" / "weights.safetensors")
        for run in (resumed, straight)
    )
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def _naive_scores(segmenter, image, tall, wide, mirrored, crop, stride):
    """Class scores (C, tall, wide) float64 of one photograph: resized by Pillow, one window at a time."""
    seen = np.asarray(image.resize((wide, tall), Image.Resampling.BILINEAR), np.float64)
    seen = (seen - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]
    seen = np.ascontiguousarray((seen[:, ::-1] if mirrored else seen).transpose(2, 0, 1))
    total, counts = np.zeros((segmenter.num_classes, tall, wide)), np.zeros((tall, wide))
    for top in sorted({min(y, tall - crop) for y in range(0, tall, stride)}):
        for left in sorted({min(x, wide - crop) for x in range(0, wide, stride)}):
            window = torch.from_numpy(seen[None, :, top : top + crop, left : left + crop]).float()
            scores = segmenter.scores(window)[0].double().numpy()
            total[:, top : top + crop, left : left + crop] += scores
            counts[top : top + crop, left : left + crop] += 1
    return total / counts


def _naive_miou(segmenter, source, keys, ratios, short_px, crop, stride):
    """mIoU in percent over the validation images of a folder, straight from its files, with flips and
    ratios."""
    right, union = np.zeros(segmenter.num_classes), np.zeros(segmenter.num_classes)
    for key in keys:
        image = Image.open(source / "images" / "validation" / f"{key}.jpg").convert("RGB")
        truth = np.array(Image.open(source / "annotations" / "validation" / f"{key}.png")).astype(int) - 1
        shares = np.zeros((segmenter.num_classes, *truth.shape))
        for ratio in ratios:
            px = int(short_px * ratio)
            px = px + -px % 32 if ratio < 1 else px
            scale = px / min(truth.shape)
            tall, wide = (int(side * scale + 0.5) for side in truth.shape)
            for mirrored in (False, True):
                scores = _naive_scores(segmenter, image, tall, wide, mirrored, crop, stride)
                full = torch.nn.functional.interpolate(
                    torch.from_numpy(scores)[None], truth.shape, mode="bilinear", align_corners=False
                )[0].numpy()
                full = np.exp(full[:, :, ::-1] if mirrored else full)
                shares += full / full.sum(axis=0)
        found = shares.argmax(axis=0)
        for k in range(segmenter.num_classes):
            right[k] += ((found == k) & (truth == k)).sum()
            union[k] += (((found == k) & (truth >= 0)) | (truth == k)).sum()
    return 100 * np.mean(right[union > 0] / union[union > 0])


@pytest.mark.slow
def test_sliding_with_augmentation_scores_camvid_as_a_naive_evaluation_does(camvid, tmp_path):
    run, scored, ratios = tmp_path / "run", tmp_path / "scored", (0.9, 1.0, 1.1)
    words = [*SMALL, *TWENTY, "bs=4", "decoder_head.type=linear", "optimizer.lr=1e-2"]
    words += ["scheduler.total_iter=100", "eval.eval_interval=100"]
    _run("train", *words, *_words("camvid", camvid, run))
    _run(
        *("train", *words, f"load_from={run / 'model_final.pth'}", *_words("camvid", camvid, scored)),
        *("eval.use_tta=true", "transforms.eval.tta_ratios=[0.9,1.0,1.1]"),
        *("eval.compute_metric_per_image=true", "eval.max_val_samples=16"),
    )
    results = json.loads((scored / "results-semantic-segmentation.json").read_text())
    with (scored / "results-semantic-segmentation-images.csv").open() as file:
        keys = [row["key"] for row in csv.DictReader(file)]
    assert results["num_images"] == len(set(keys)) == 16
    predictor = load_model(run / "model_final.pth", device="cpu")
    naive = _naive_miou(predictor.segmenter, _source("camvid"), keys, ratios, 96, 96, 64)
    assert naive > 10
    assert results["mIoU"] == pytest.approx(naive, abs=0.01)


@pytest.mark.slow
def test_any_number_of_processes_gives_the_same_scores(camvid, tmp_path):
    run = tmp_path / "run"
    words = [*SMALL, *TWENTY, "bs=4", "decoder_head.type=linear", "optimizer.lr=1e-2"]
    _run("train", *words, *_words("camvid", camvid, run))
    found = []
    for num_processes in (1, 3):
        out = tmp_path / f"scored-{num_processes}"
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", num_processes, "-m"]
        _run(
            *(launcher if num_processes > 1 else []),
            *("train", *words, f"load_from={run / 'model_final.pth'}", *_words("camvid", camvid, out)),
            *("eval.max_val_samples=null", "eval.compute_metric_per_image=true", "eval.boundary_iou=true"),
        )
        found.append({path.name: path.read_text() for path in out.glob("results-*")})
    assert len(found[0]) == 3
    assert found[0] == found[1]
    assert json.loads(found[0]["results-semantic-segmentation.json"])["num_images"] == 101


@pytest.mark.gpu
@pytest.mark.slow
def test_the_smoke_run_at_full_width(ade20k, tmp_path):
    _run(
        *("train", SMALL[0], "model.dino_hub=dinov3_vitl16", "model.weights=random"),
        *("scheduler.total_iter=10", "eval.eval_interval=10", "eval.max_val_samples=10", "log.interval=1"),
        *("bs=1", "n_gpus=1", *_words("ade20k", ade20k, tmp_path / "run")),
    )
    assert all(math.isfinite(loss) for loss in _losses(tmp_path / "run"))
    results = json.loads((tmp_path / "run" / "results-semantic-segmentation.json").read_text())
    assert results["num_images"] == 5


@pytest.mark.slow
def test_the_smoke_run_of_the_published_recipe(ade20k, tmp_path):
    _run(
        *("train", *SMALL, "scheduler.total_iter=10", "eval.eval_interval=10", "eval.max_val_samples=10"),
        *("bs=1", "n_gpus=1", *_words("ade20k", ade20k, tmp_path / "run")),
    )
    assert len(_losses(tmp_path / "run")) == 10
    assert (tmp_path / "run" / "model_final.pth").is_file()


def _processes_of(run):
    """Ids of the processes that carry this run's mark in their environment, whatever their parent is."""
    mark, found = f"RUN_OF_THIS_TEST={run}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue  # it is gone, or somebody else's
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_stopped_run_leaves_no_process_and_nothing_half_written(num_processes, number, ade20k, tmp_path):
    run = tmp_path / "run"
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes), "-m"]
    words = [
        *(launcher if num_processes > 1 else []),
        *("train", *SMALL, *TWENTY, "scheduler.total_iter=100000", "eval.eval_interval=100000"),
        *(f"bs={4 // num_processes}", *_words("ade20k", ade20k, run)),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env=_environment() | {"RUN_OF_THIS_TEST": str(run)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A suite that runs in the background ignores SIGINT, and its children would inherit that.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    try:
        seen = []
        for line in process.stderr:
            seen.append(line)
            if "step 3/" in line:
                break
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        seen.append(process.communicate(timeout=900)[1])
        assert process.returncode != 0, "".join(seen)
        assert _processes_of(run) == []
    finally:
        for pid in _processes_of(run):
            os.kill(pid, signal.SIGKILL)
        process.communicate()
    hidden = [path for path in run.rglob("*") if path.name.startswith(".")]
    assert hidden == [], "".join(seen)
    saved = sorted((run / "checkpoints").glob("step-*"))
    assert len(saved) == 1, "".join(seen)
    assert (saved[0] / "state.json").is_file()
