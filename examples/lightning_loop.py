"""Shards under Lightning, with resume: python -m examples.lightning_loop SHARDS/training [STEPS]"""

import sys
from pathlib import Path

import lightning
import torch
from torch.nn.functional import cross_entropy

from maskshards import CropSettings, Loader, World, class_map, crop, draw_crops

SETTINGS = CropSettings(crop_px=(128, 128), image_px=128)


class Segmenter(lightning.LightningModule):
    def __init__(self, split, num_classes=150):
        super().__init__()
        self.split, self.head = split, torch.nn.Conv2d(3, num_classes, 7, padding=3)

    def train_dataloader(self):  # with a length, so that checkpoints hold the exact place in the stream
        world = World(self.trainer.global_rank, self.trainer.world_size)
        return Loader(self.split, batch_per_rank=2, world=world, epochs=1)

    def training_step(self, batch, _):
        crops = crop(batch.to(self.device), draw_crops(batch, seed=0, settings=SETTINGS), SETTINGS)
        return cross_entropy(self.head(crops.images), class_map(crops), ignore_index=255)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


if __name__ == "__main__":
    last = Path("last.ckpt")
    trainer = lightning.Trainer(max_steps=int([*sys.argv, "20"][2]), logger=False, enable_checkpointing=False)
    trainer.fit(Segmenter(sys.argv[1]), ckpt_path=last if last.exists() else None)
    trainer.save_checkpoint(last)
    print(trainer.global_step)
