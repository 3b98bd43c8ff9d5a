"""Train any network on shards: python -m examples.plain_pytorch SHARDS/training [STEPS]"""

import sys

import torch
from torch.nn import functional as F

from maskshards.shards.augment.crop import CropSettings, crop, draw_crops
from maskshards.shards.loading.loader import Loader

IGNORED = -1


def class_ids(crops):
    """(B, H, W) int64 class ids of a CropBatch, IGNORED where no class is."""
    table = F.pad(crops.labels, (0, 256 - crops.labels.shape[1]), value=IGNORED)
    return table.gather(1, crops.label_map.long().flatten(1)).view(crops.label_map.shape)


def train(split, steps=100):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = CropSettings(crop_px=(128, 128), image_px=128)
    with Loader(split, batch_per_rank=4, seed=0, pin=device == "cuda", end=4 * steps) as loader:
        classes = loader.selection.splits[0].manifest.classes
        model = torch.nn.Conv2d(3, len(classes), 7, padding=3).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for batch in loader:
            crops = crop(batch.to(device), draw_crops(batch, seed=0, settings=settings), settings)
            loss = F.cross_entropy(model(crops.images), class_ids(crops), ignore_index=IGNORED)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            print(
                f"position {loader.position}  loss {loss.item():.3f}  waited {loader.wait_ms:.0f} ms in all"
            )


if __name__ == "__main__":
    train(sys.argv[1], *map(int, sys.argv[2:3]))
