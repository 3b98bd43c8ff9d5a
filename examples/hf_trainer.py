"""Shards under Hugging Face's Trainer: python -m examples.hf_trainer SHARDS/training [STEPS]"""

import sys

import torch
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from maskshards import CropSettings, Loader, World, class_map, crop, draw_crops

SETTINGS = CropSettings(crop_px=(128, 128), image_px=128)


def as_dicts(batches):  # Trainer hands dicts to compute_loss
    return ({"batch": batch} for batch in batches)


class ShardTrainer(Trainer):
    def get_train_dataloader(self):
        world = World(self.args.process_index, self.args.world_size)
        size = self.args.per_device_train_batch_size
        return Loader(self.train_dataset, batch_per_rank=size, world=world, stages=(as_dicts,))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        batch = inputs["batch"].to(self.args.device)
        crops = crop(batch, draw_crops(batch, seed=0, settings=SETTINGS), SETTINGS)
        return F.cross_entropy(model(crops.images), class_map(crops), ignore_index=255)


def train(split, steps=20, num_classes=150, output_dir="runs/hf_trainer"):
    plan = {"max_steps": steps, "per_device_train_batch_size": 4, "report_to": "none", "save_strategy": "no"}
    model = torch.nn.Conv2d(3, num_classes, 7, padding=3)
    return ShardTrainer(model, TrainingArguments(output_dir, **plan), train_dataset=split).train().global_step


if __name__ == "__main__":
    print(train(sys.argv[1], *map(int, sys.argv[2:3])))
