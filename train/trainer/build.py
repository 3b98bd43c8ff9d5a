"""From a checked config to the parts of a run: data, model, objective, optimiser. Nothing is trained here."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from maskshards.shards.augment.crop import CropSettings
from maskshards.shards.augment.presets import LSJ_RATIO
from maskshards.shards.decode.nvjpeg import GpuDecoder
from maskshards.shards.format.class_pixels import class_notes, count_class_pixels
from maskshards.shards.format.manifest import Split, open_split
from maskshards.shards.loading.cache import CacheSettings, cached
from maskshards.shards.loading.loader import Loader
from maskshards.shards.order.order import num_micro_steps
from maskshards.shards.order.repeat_factor import balanced
from maskshards.shards.order.selection import Selection, whole
from maskshards.train.capture.captured_step import captured_step
from maskshards.train.checkpoint.run_files import NONFINITE
from maskshards.train.config.data import LSJ, split_url
from maskshards.train.config.data_facts import check_classes
from maskshards.train.config.schema import ConfigError, TrainConfig
from maskshards.train.distributed.ranks import Ranks, spread
from maskshards.train.losses.settings import MASKS
from maskshards.train.model.backbone.architectures import FULL
from maskshards.train.model.backbone.frozen import FrozenBackbone
from maskshards.train.model.backbone.load import load_backbone
from maskshards.train.model.compile import GRAPH, compile_in_place
from maskshards.train.model.heads.registry import head_called
from maskshards.train.model.ops.fused import set_fused, set_switch
from maskshards.train.model.ops.sync_batch_norm import sync_batch_norms
from maskshards.train.model.segmenter import Segmenter, build_segmenter
from maskshards.train.optim.ema import Ema
from maskshards.train.optim.lr_schedule import Schedule, build_schedule
from maskshards.train.optim.optimizer import build_optimizer
from maskshards.train.trainer.cpu_type import computes_in_bfloat16
from maskshards.train.trainer.step import Objective

logger = logging.getLogger(__name__)

MOST_COUNTED = 1_000_000  # samples whose index is walked when a run starts


@dataclass
class Parts:
    """All that the loop works with.

    `decoder` is the segmenter's, wrapped where gradients are averaged over ranks.
    """

    segmenter: Segmenter
    decoder: nn.Module
    objective: Objective
    optimizer: torch.optim.AdamW
    schedule: Schedule
    train_split: Split
    selection: Selection  # of the training split
    val_split: Split
    micro_steps: int  # batches of this rank for one optimiser step
    average: Ema | None  # of the weights, where `ema.decay` asks for one

    def scored_weights(self) -> AbstractContextManager[None]:
        """Inside, the decoder holds the weights that are scored and exported: the average, if any."""
        return nullcontext() if self.average is None else self.average.swapped()

    def gradients_averaged(self, last: bool) -> AbstractContextManager[None]:
        """The context of one micro-step: gradients cross the ranks in the last one of a step only."""
        if isinstance(self.decoder, DistributedDataParallel) and not last:
            return self.decoder.no_sync()
        return nullcontext()


def open_training_split(config: TrainConfig) -> Split:
    """The training split; ConfigError if its classes are not as many as the head has."""
    return open_checked(config, config.datasets.train)


def open_validation_split(config: TrainConfig) -> Split:
    """The validation split, under the same check."""
    return open_checked(config, config.datasets.val)


def open_checked(config: TrainConfig, descriptor: str) -> Split:
    """A split, read through the node's cache where `loader.cache_dir` names one."""
    split = open_split(split_url(config.datasets.root, descriptor))
    check_classes(config, split.manifest)
    if config.loader.cache_dir is None:
        return split
    return cached(split, CacheSettings(config.loader.cache_dir, int(config.loader.cache_gb * 1e9)))


def autocast_dtype(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """The type of autocast on this device; None for float32."""
    return torch.bfloat16 if computes_in_bfloat16(config, device) else None


def build_model(config: TrainConfig, device: torch.device) -> Segmenter:
    """The frozen backbone with a fresh head, drawn from `seed`, on `device`."""
    model = config.model
    backbone = load_backbone(
        model.dino_hub or "",
        model.weights or model.pretrained_weights,
        model.revision,
        dtype=autocast_dtype(config, device),
        device=device,
        rule=model.position_rule,
        precision=model.backbone_precision or FULL,
    )
    segmenter = on_backbone(backbone, config).to(device)
    set_fused(segmenter.decoder, config.fused_kernels)
    set_switch(segmenter.decoder, "multiplies_out", config.m2f_train.costs_from == MASKS)
    return segmenter


def on_backbone(backbone: FrozenBackbone, config: TrainConfig) -> Segmenter:
    """The backbone with the head that `config` describes, drawn from its seed."""
    return build_segmenter(
        backbone,
        config.decoder_head,
        precision=config.precision,
        seed=config.seed,
        checkpointing=config.activation_checkpointing,
    )


def tell_odd_classes(*splits: Split) -> None:
    """Warn of classes that no pixel has, or one split only. The index of a very large split is not walked."""
    if sum(split.manifest.num_samples for split in splits) > MOST_COUNTED:
        return
    notes = class_notes([count_class_pixels(split) for split in splits])
    for note in notes:
        logger.log(logging.WARNING if len(notes) > 1 else logging.INFO, "classes: %s", note)


def build_parts(config: TrainConfig, ranks: Ranks) -> Parts:
    """Everything for training, with a fresh head; the cheap checks first, the model last."""
    micro_steps = count_micro_steps(config, ranks)
    schedule = build_schedule(config.scheduler)
    ranks.doing("reading the data set")
    train_split, val_split = open_training_split(config), open_validation_split(config)
    if train_split.manifest.classes != val_split.manifest.classes:
        raise ConfigError(
            "datasets.train and datasets.val list different classes; build both from one source"
        )
    if ranks.is_first:
        tell_odd_classes(train_split, val_split)
    ranks.doing("loading the model", slow=True)
    segmenter = build_model(config, ranks.device)
    sync_batch_norms(segmenter.decoder, ranks.world.num_ranks)
    segmenter.decoder.train()
    check_recordable(config, ranks)
    compile_in_place(segmenter, config.compile, mode=config.compile_mode)
    ranks.wait("the model")  # else the first collective would give up after the time of a step
    decoder = spread(segmenter.decoder, ranks)
    return Parts(
        segmenter=segmenter,
        decoder=decoder,
        objective=build_objective(config, ranks, segmenter, decoder),
        optimizer=build_optimizer(segmenter.decoder, config.optimizer),
        schedule=schedule,
        train_split=train_split,
        selection=select(config, train_split),
        val_split=val_split,
        micro_steps=micro_steps,
        average=None if config.ema.decay is None else Ema(segmenter.decoder, config.ema.decay),
    )


def count_micro_steps(config: TrainConfig, ranks: Ranks) -> int:
    """Micro-steps of one optimiser step; ConfigError in the words of the config, listing what fits."""
    try:
        return num_micro_steps(config.images_per_step, config.bs, ranks.world.num_ranks)
    except ValueError as error:
        raise ConfigError(
            f"bs={config.bs}, n_gpus={config.n_gpus}, global_batch={config.global_batch}: {error}"
        ) from error


def build_objective(config: TrainConfig, ranks: Ranks, segmenter: Segmenter, decoder: nn.Module) -> Objective:
    """What turns a batch into a loss, for the head of `config`; `decoder` is the segmenter's, wrapped."""
    objective = Objective(
        segmenter,
        decoder,
        head_called(config.decoder_head.type).loss(config),
        crop_settings(config),
        config.seed,
        ranks.device,
        autocast_dtype(config, ranks.device),
        crops_by_position=config.datasets.repeat_threshold is not None,
        reduce=ranks.sum if ranks.world.num_ranks > 1 else None,
        dump_dir=nonfinite_folder(config),
    )
    if config.compile_mode != GRAPH:
        return objective
    weight = 1 / count_micro_steps(config, ranks)
    made = captured_step(segmenter, objective.loss.matched, objective.autocast, ranks.device, weight)
    return replace(objective, captured=made)


def check_recordable(config: TrainConfig, ranks: Ranks) -> None:
    """ConfigError for a recorded step on several ranks."""
    if config.compile_mode == GRAPH and ranks.world.num_ranks > 1:
        raise ConfigError(
            f"compile_mode=graph records the step of one process, not of {ranks.world.num_ranks}: batch "
            "norms and gradients cross the ranks within it, and who is waited for in a recording cannot be "
            "told. Say compile_mode=default"
        )


def nonfinite_folder(config: TrainConfig) -> Path:
    """Where batches go whose loss or gradient is not finite."""
    return Path(config.output_dir or ".") / NONFINITE


def crop_settings(config: TrainConfig) -> CropSettings:
    """How training crops are made. ConfigError if sizes are missing, ValueError for values without sense."""
    train = config.transforms.train
    if train.crop_size is None or train.img_size is None:
        raise ConfigError("training needs transforms.train.img_size and transforms.train.crop_size")
    is_lsj = train.jitter == LSJ
    ratio = LSJ_RATIO if is_lsj else train.random_img_size_ratio_range
    return CropSettings(
        crop_px=(train.crop_size[0], train.crop_size[1]),
        image_px=train.img_size,
        ratio=None if ratio is None else (ratio[0], ratio[1]),
        flip_prob=train.flip_prob,
        photometric=train.photometric,
        jitter="fit" if is_lsj else train.jitter,
        mean=triple(config.transforms.mean),
        std=triple(config.transforms.std),
    )


def triple(values: list[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue


def select(config: TrainConfig, split: Split) -> Selection:
    """What an epoch is made of: the whole split, rare classes repeated where `repeat_threshold` says so."""
    threshold = config.datasets.repeat_threshold
    return whole(split) if threshold is None else balanced(split, threshold)


def open_loader(config: TrainConfig, ranks: Ranks, selection: Selection, step: int) -> Loader:
    """The endless stream of this rank's micro-batches, from the first sample after `step` optimiser steps."""
    return Loader(
        selection,
        batch_per_rank=config.bs,
        global_batch=config.images_per_step,
        world=ranks.world,
        seed=config.seed,
        position=step * config.images_per_step,
        threads=config.num_workers,
        prefetch_batches=config.loader.prefetch_batches,
        pin=ranks.device.type == "cuda",
        policy=config.loader.policy,
        decode=GpuDecoder(ranks.device) if config.loader.decode == "gpu" else None,
    )
