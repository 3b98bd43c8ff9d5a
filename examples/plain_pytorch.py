"""Train any network on shards: python -m examples.plain_pytorch SHARDS/training [STEPS]"""

import sys

import torch
from torch.nn import functional as F

from maskshards import CropSettings, Loader, class_map, crop, draw_crops


def train(split, steps=100):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = CropSettings(crop_px=(128, 128), image_px=128)
    with Loader(split, batch_per_rank=4, seed=0, pin=device == "cuda", end=4 * steps) as loader:
        classes = loader.selection.classes
        model = torch.nn.Conv2d(3, len(classes), 7, padding=3).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for batch in loader:
            crops = crop(batch.to(device), draw_crops(batch, seed=0, settings=settings), settings)
            loss = F.cross_entropy(model(crops.images), class_map(crops, ignore_index=255), ignore_index=255)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            waited = f"waited {loader.wait_ms:.0f} ms in all"
            print(f"position {loader.position}  loss {loss.item():.3f}  {waited}")


if __name__ == "__main__":
    train(sys.argv[1], *map(int, sys.argv[2:3]))
