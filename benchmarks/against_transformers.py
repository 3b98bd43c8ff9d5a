"""The same CamVid training with this package and with transformers' Mask2Former and Trainer.

    python benchmarks/against_transformers.py CAMVID SHARDS DINOV2_VITS14_FOLDER [--steps 150] [--val 30]

CAMVID holds images/{training,validation}/*.jpg and annotations/{training,validation}/*.png, in which 0 is
unlabelled and 1 to 11 are the classes, as transformers' processor wants them; SHARDS is what `maskshards
build --dataset folder --classes configs/camvid-classes.txt --reduce-zero-label` made of it. Both train a
Mask2Former head of width 256 on the same frozen backbone: batch 2, crops of 224 px from images resized to a
short side of 320 px times 0.7 to 1.4, flips, no colours, AdamW, 30 queries, 1,024 points. Each side runs in a
process of its own, one after the other; both are scored by this package's evaluation on the first VAL
validation images. Prints a Markdown table. Between `begin theirs` and `end theirs` stands what a user of
transformers writes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from maskshards.shards.augment.crop import crop, draw_crops
from maskshards.shards.format.manifest import open_split
from maskshards.shards.loading.loader import Loader
from maskshards.train.config.load import load_config
from maskshards.train.distributed.ranks import joined
from maskshards.train.distributed.stop_signals import StopSignals
from maskshards.train.evaluation.evaluate import evaluation_settings
from maskshards.train.evaluation.inference import label_maps
from maskshards.train.model.heads.mask2former import semantic_scores
from maskshards.train.model.heads.prediction import Prediction
from maskshards.train.tracking.metrics_log import read_metrics
from maskshards.train.trainer.build import crop_settings
from maskshards.train.trainer.run import run

ROOT = Path(__file__).resolve().parents[1]
BATCH, CROP_PX, SHORT_PX, RATIO, WARMUP = 2, 224, 320, (0.7, 1.4), 10
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
DATA_IMAGES = 40  # that the cost of the data is the mean of


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name in ("camvid", "shards", "weights"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--val", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("runs/against-transformers"))
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # what a child does
    args = parser.parse_args(argv)
    if args.side:
        print(json.dumps(SIDES[args.side](args)))
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    rows = {side: measured(side, argv) for side in SIDES}
    (args.out / "figures.json").write_text(json.dumps(rows, indent=1))
    sys.stdout.write(table(rows) + "\n")
    return 0


def measured(side: str, argv: Sequence[str]) -> dict[str, Any]:
    """The figures of one side, run in a process of its own, with what the kernel says of that."""
    command = [sys.executable, __file__, *argv, "--side", side]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        said = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"the side {side!r} ended with status {child.returncode}")
    figures: dict[str, Any] = json.loads(said.splitlines()[-1])
    return figures | {"peak_mb": usage.ru_maxrss / 1024, "cpu_s": usage.ru_utime + usage.ru_stime}


def settings(args: argparse.Namespace, *more: str) -> list[str]:
    """Our side's command line, of which the other side takes the evaluation."""
    return [
        f"config={ROOT / 'configs' / 'camvid-cpu.yaml'}", f"datasets.root={args.shards}",
        f"model.weights={args.weights}", f"bs={BATCH}", f"scheduler.total_iter={args.steps}",
        f"scheduler.constructor_kwargs.warmup_iters={WARMUP}", "transforms.train.photometric=none",
        f"eval.max_val_samples={args.val}", f"eval.eval_interval={args.steps}", "ema.decay=null", "seed=0",
        "m2f_train.num_points=1024", *more,
    ]  # fmt: skip


def train_ours(args: argparse.Namespace, *more: str) -> dict[str, Any]:
    folder = args.out / ("ours-" + "-".join(more or ["bfloat16"]).replace("=", "-"))
    config = load_config([*settings(args, *more), f"output_dir={folder}"])
    split = open_split(args.shards / "training")
    with Loader(split, batch_per_rank=BATCH, seed=0, threads=1) as loader:
        batches = iter(loader)
        for _ in islice(batches, 8):  # starting up
            pass
        since = time.process_time()
        for batch in islice(batches, DATA_IMAGES // BATCH):
            crop(batch, draw_crops(batch, 0, crop_settings(config)), crop_settings(config))
        data_s = (time.process_time() - since) / DATA_IMAGES
    with joined() as ranks, StopSignals() as stop:
        run(config, ranks, stop)
    records = read_metrics(folder / "metrics.jsonl")
    training = [record for record in records if record["kind"] == "train"]
    seconds = sum(record["seconds"] for record in training)
    return {
        "images_per_s": BATCH * args.steps / seconds,
        "data_ms": 1000 * data_s,
        "loss": [training[0]["loss"], training[-1]["loss"]],
        "miou": [record["mIoU"] for record in records if record["kind"] == "eval"][-1],
    }


# begin theirs
class CamVid(torch.utils.data.Dataset[tuple[np.ndarray, np.ndarray]]):
    """Random crops of images and label maps (0 = unlabelled, 1..11), as numpy arrays."""

    def __init__(self, root: Path) -> None:
        self.images = sorted((root / "images" / "training").glob("*.jpg"))
        self.labels = root / "annotations" / "training"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        image = Image.open(self.images[i]).convert("RGB")
        label = Image.open(self.labels / f"{self.images[i].stem}.png")
        scale = SHORT_PX * random.uniform(*RATIO) / min(image.size)
        size = tuple(max(CROP_PX, round(side * scale)) for side in image.size)
        image, label = (
            image.resize(size, Image.Resampling.BILINEAR),
            label.resize(size, Image.Resampling.NEAREST),
        )
        left, top = random.randint(0, size[0] - CROP_PX), random.randint(0, size[1] - CROP_PX)
        box = (left, top, left + CROP_PX, top + CROP_PX)
        pixels, classes = np.asarray(image.crop(box)), np.asarray(label.crop(box))
        return (pixels[:, ::-1], classes[:, ::-1]) if random.random() < 0.5 else (pixels, classes)


def make_processor() -> Any:
    from transformers import Mask2FormerImageProcessorPil

    return Mask2FormerImageProcessorPil(
        do_resize=False, do_reduce_labels=True, ignore_index=255, image_mean=MEAN, image_std=STD
    )


def make_collate() -> Any:
    processor = make_processor()

    def collate(items: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
        images, maps = zip(*items, strict=True)
        return dict(processor(images=list(images), segmentation_maps=list(maps), return_tensors="pt"))

    return collate


def make_model(weights: Path) -> Any:
    from transformers import Dinov2Backbone, Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    backbone = Dinov2Backbone.from_pretrained(
        weights, dtype=torch.float32, out_features=["stage3", "stage6", "stage9", "stage12"]
    )
    config = Mask2FormerConfig(
        backbone_config=backbone.config, num_labels=11, num_queries=30, train_num_points=1024,
        dim_feedforward=1024, encoder_feedforward_dim=1024,
    )  # fmt: skip
    model = Mask2FormerForUniversalSegmentation(config)
    model.model.pixel_level_module.encoder = backbone.requires_grad_(False)
    return model


def train_model(model: Any, dataset: CamVid, args: argparse.Namespace) -> Any:
    from transformers import Trainer, TrainingArguments

    plan = TrainingArguments(
        output_dir=str(args.out / "theirs"), max_steps=args.steps, per_device_train_batch_size=BATCH,
        learning_rate=5e-4, weight_decay=0.05, max_grad_norm=1.0, warmup_steps=WARMUP,
        lr_scheduler_type="polynomial", use_cpu=True, remove_unused_columns=False, report_to=[],
        save_strategy="no", logging_steps=max(1, args.steps // 10), seed=0, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, plan, train_dataset=dataset, data_collator=make_collate())
    trainer.train()
    return trainer.state.log_history


# end theirs


class Scorer(nn.Module):
    """Their model as our evaluation wants one: semantic scores of images of the window's size."""

    num_classes = 11

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.eval()

    @torch.no_grad()
    def scores(self, images: Tensor) -> Tensor:
        out = self.model(pixel_values=images)
        prediction = Prediction(out.class_queries_logits, out.masks_queries_logits)
        return semantic_scores(prediction, (images.shape[-2], images.shape[-1]))


def train_theirs(args: argparse.Namespace) -> dict[str, Any]:
    random.seed(0)
    torch.manual_seed(0)
    dataset, collate = CamVid(args.camvid), make_collate()
    collate([dataset[i] for i in range(BATCH)])  # starting up
    since = time.process_time()
    for i in range(0, DATA_IMAGES, BATCH):
        collate([dataset[i + k] for k in range(BATCH)])
    data_s = (time.process_time() - since) / DATA_IMAGES
    model = make_model(args.weights)
    history = train_model(model, dataset, args)
    losses = [line["loss"] for line in history if "loss" in line]
    return {
        "images_per_s": history[-1]["train_samples_per_second"],
        "data_ms": 1000 * data_s,
        "loss": [losses[0], losses[-1]],
        "miou": miou_of(Scorer(model), args),
    }


def miou_of(scorer: Scorer, args: argparse.Namespace) -> float:
    """Percent, over the first `val` validation images of the shards, with our own windows."""
    inference = evaluation_settings(load_config([*settings(args), "output_dir=unused"])).inference
    confusion = np.zeros((11, 12), np.int64)
    split = open_split(args.shards / "validation")
    images = sorted((args.camvid / "images" / "validation").glob("*.jpg"))[: args.val]
    assert len(images) == min(args.val, split.manifest.num_samples)
    for path in images:
        truth = np.asarray(Image.open(args.camvid / "annotations" / "validation" / f"{path.stem}.png"))
        pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB")))
        found = label_maps(scorer, [pixels], inference)[0].numpy()  # type: ignore[arg-type]
        known = truth > 0
        np.add.at(confusion, (truth[known].astype(np.int64) - 1, found[known]), 1)
    right, true, said = confusion.diagonal(), confusion.sum(1), confusion.sum(0)[:11]
    union = true + said - right
    return float(100 * np.mean((right / np.maximum(union, 1))[union > 0]))


def lines_of_theirs() -> int:
    """Lines of code between the two marks, without blank ones and comments."""
    text = Path(__file__).read_text(encoding="utf-8")
    theirs = text.split("\n# begin theirs\n")[1].split("\n# end theirs\n")[0].splitlines()
    return sum(1 for line in theirs if line.strip() and not line.strip().startswith("#"))


SIDES: dict[str, Any] = {
    "ours, bfloat16": train_ours,
    "ours, float32": lambda args: train_ours(args, "cpu_autocast=False"),
    "transformers, float32": train_theirs,
}


def table(rows: dict[str, dict[str, Any]]) -> str:
    lines = ["| | images/s of training | CPU ms an image for data | CPU s in all | peak MB | loss | mIoU |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['images_per_s']:.2f} | {row['data_ms']:.1f} | {row['cpu_s']:.0f} "
            f"| {row['peak_mb']:.0f} | {row['loss'][0]:.3g} to {row['loss'][1]:.3g} | {row['miou']:.1f} |"
        )
    return "\n".join([*lines, "", f"Lines of code that transformers asks for: {lines_of_theirs()}"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
