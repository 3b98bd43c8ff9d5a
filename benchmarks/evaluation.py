"""Time the parts of an evaluation beside the obvious ways: python benchmarks/evaluation.py

Everything is timed in turns in one process (median of several), so that ratios survive a busy machine.
"""

import sys
import time

import numpy as np
import torch
from torch.nn import functional as F
from torchmetrics.classification import MulticlassConfusionMatrix

from maskshards.train.config.schema import BackboneLayers, DecoderConfig
from maskshards.train.evaluation.boundary_iou import BoundaryCounts
from maskshards.train.evaluation.inference import InferenceSettings, label_maps
from maskshards.train.evaluation.metrics import ConfusionMatrix
from maskshards.train.model.backbone.load import load_backbone
from maskshards.train.model.segmenter import build_segmenter

HEIGHT, WIDTH, CLASSES, ROUNDS = 512, 683, 150, 7


def medians_ms(**ways):
    """Median milliseconds of each way, taken in turns."""
    times = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, run in ways.items():
            start = time.process_time()
            run()
            times[name].append(1000 * (time.process_time() - start))
    return {name: float(np.median(values)) for name, values in times.items()}


def counting(prediction, label):
    ours, outline = ConfusionMatrix(CLASSES), BoundaryCounts(CLASSES, "cpu", 255)
    theirs = MulticlassConfusionMatrix(CLASSES, ignore_index=255, validate_args=False)

    def loop():
        for k in range(CLASSES):
            a, b = label == k, (prediction == k) & (label != 255)
            ((a & b).sum(), (a | b).sum())

    return medians_ms(
        confusion=lambda: ours.update(prediction, label),
        torchmetrics=lambda: theirs.update(prediction[None], label[None]),
        class_by_class=loop,
        boundary=lambda: outline.update(prediction, label),
    )


def labelling(image):
    backbone = load_backbone("dinov3_tiny16", "random")
    head = DecoderConfig(
        hidden_dim=64, num_classes=CLASSES, backbone_out_layers=BackboneLayers.FOUR_EVEN_INTERVALS
    )
    segmenter = build_segmenter(backbone, head)
    settings = {
        name: InferenceSettings(image_px=256, crop_px=256, stride_px=170, windows_at_once=count)
        for name, count in (("windows_together", 4), ("one_by_one", 1))
    }
    ways = {name: (lambda s=s: label_maps(segmenter, [image], s)) for name, s in settings.items()}
    scores = torch.randn(CLASSES, 256, 342)
    ways["resize_and_argmax"] = lambda: F.interpolate(scores[None], (HEIGHT, WIDTH), mode="bilinear")[
        0
    ].argmax(0)
    return medians_ms(**ways)


def main():
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 12, (HEIGHT // 32, WIDTH // 32 + 1), generator=generator)
    label = label.repeat_interleave(32, 0).repeat_interleave(32, 1)[:, :WIDTH].contiguous()
    prediction = torch.where(torch.rand(label.shape, generator=generator) < 0.8, label, label.roll(9, 1))
    image = torch.randint(0, 256, (HEIGHT, WIDTH, 3), generator=generator, dtype=torch.uint8)
    for name, value in (counting(prediction, label) | labelling(image)).items():
        sys.stdout.write(f"{name:20}{value:10.2f} ms\n")


if __name__ == "__main__":
    main()
