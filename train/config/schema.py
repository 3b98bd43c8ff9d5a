"""Every key that a recipe or the command line may set, with its type and default.

Names and defaults follow the public DINOv3 segmentation configuration (facebookresearch/dinov3) where it has
them; the keys it lacks (`m2f_train`, `checkpoint`, `log`, `init_from`, ...) are additions. Lists are
`list[...]`: OmegaConf 2.4 refuses tuples declared with one length. Lengths are in pixels, intervals in steps.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Any

import torch
from omegaconf import MISSING


class ConfigError(ValueError):
    """The recipe or the command line asks for something that cannot be."""


def nearest(word: str, choices: list[str]) -> str:
    """A phrase that offers the choice closest to `word`: by the whole dotted name, else by its last part."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.7)
    if not close:
        last = {choice.rsplit(".", 1)[-1]: choice for choice in reversed(choices)}
        close = [last[name] for name in difflib.get_close_matches(word.rsplit(".", 1)[-1], list(last), n=1)]
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(choices[:12])}"


class ModelDtype(Enum):
    """Arithmetic of the model on CUDA, and on a CPU with `cpu_autocast`. Given by name."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"

    @property
    def autocast_dtype(self) -> torch.dtype:
        return torch.float32 if self is ModelDtype.FLOAT32 else torch.bfloat16


class BackboneLayers(StrEnum):
    """Which blocks of the backbone feed the head. Given by name."""

    LAST = "LAST"
    FOUR_LAST = "FOUR_LAST"
    FOUR_EVEN_INTERVALS = "FOUR_EVEN_INTERVALS"


@dataclass
class ModelConfig:
    dino_hub: str | None = None  # architecture by name, e.g. dinov3_vitl16, dinov2_vits14, dinov3_tiny16
    weights: str | None = None  # file, folder, hub id or "random"; None: the published hub id of dino_hub
    revision: str | None = None  # whole commit id of the hub repository, needed for what comes from there
    # How a dinov2_* without registers resizes positions: offset (as published) | size (as transformers, and
    # as checkpoints older than this key). None: as the checkpoint was trained, else offset.
    position_rule: str | None = None
    pretrained_weights: str | None = None  # the reference's word for `weights`
    config_file: str | None = (
        None  # the reference's pretraining YAML; refused, dino_hub names the architecture
    )


@dataclass
class DatasetConfig:
    root: str = MISSING  # folder or URL that holds the splits; no default on purpose
    train: str = ""  # a split's name, a URL, or the reference's descriptor NAME:split=TRAIN
    val: str = ""
    # Images with classes in fewer than this share of the images are repeated (LVIS); None: each once an
    # epoch.
    repeat_threshold: float | None = None


@dataclass
class DecoderConfig:
    type: str = "m2f"  # m2f | linear
    backbone_out_layers: BackboneLayers = BackboneLayers.LAST
    # The next three exist in the reference but nothing reads them there; here any other value is an error.
    use_batchnorm: bool = True
    use_cls_token: bool = False
    use_backbone_norm: bool = True
    num_classes: int = 150
    hidden_dim: int = 2048  # m2f only, as the next two
    ffn_dim: int = 4096  # inner width of the feed-forward layers; published heads have 4096
    num_queries: int = 100  # masks that the head can name at once; published heads have 100
    dropout: float = 0.1  # linear only


@dataclass
class SchedulerConfig:
    type: str = "WarmupOneCycleLR"
    total_iter: int = 40000  # optimiser steps
    constructor_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class OptimizerConfig:
    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 1e-2  # on matrices and kernels only
    gradient_clip: float = 35.0  # largest global norm; inf: never clip
    # Beginning of a parameter's name -> factor on lr, the longest that fits counts: {segmentation_model.0:
    # 0.5}
    lr_multipliers: dict[str, float] = field(default_factory=dict)


@dataclass
class LinearLossConfig:
    diceloss_weight: float = 0.0
    celoss_weight: float = 1.0


@dataclass
class M2FTrainConfig:
    """The matched loss: points per mask and weights of its terms."""

    num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_sample_ratio: float = 0.75
    mask_coefficient: float = 5.0
    dice_coefficient: float = 5.0
    class_coefficient: float = 2.0
    no_object_coefficient: float = 0.1
    ignore_void: bool = False  # unlabelled and padded pixels weigh nothing in the mask loss


@dataclass
class TrainTransformConfig:
    img_size: int | None = None  # short side that a ratio of 1 gives
    random_img_size_ratio_range: list[float] | None = None
    crop_size: list[int] | None = None  # height, width
    flip_prob: float = 0.0
    photometric: str = "reference"  # reference | mmseg | eomt | none
    # What a ratio of 1 means: short_side (img_size) | fit (inside the crop) | lsj (fit, with ratios 0.1 to 2)
    jitter: str = "short_side"


@dataclass
class EvalTransformConfig:
    img_size: int | None = None  # short side before sliding
    tta_ratios: list[float] = field(default_factory=lambda: [1.0])


@dataclass
class TransformConfig:
    train: TrainTransformConfig = field(default_factory=TrainTransformConfig)
    eval: EvalTransformConfig = field(default_factory=EvalTransformConfig)
    mean: list[float] = field(default_factory=lambda: [123.675, 116.28, 103.53])  # on the 0..255 scale
    std: list[float] = field(default_factory=lambda: [58.395, 57.12, 57.375])


@dataclass
class EvalConfig:
    compute_metric_per_image: bool = False  # also a line of scores for every image
    boundary_iou: bool = False  # also overlap near outlines
    reduce_zero_label: bool | None = None  # True or False is checked against the rule in the manifest
    mode: str = "slide"  # slide | whole
    crop_size: int | None = 512
    stride: int | None = 341
    eval_interval: int = 40000
    use_tta: bool = False
    max_val_samples: int | None = None  # None: the whole split
    before_training: bool = False  # also evaluate the untrained head, as step 0


@dataclass
class CheckpointConfig:
    interval: int | None = None  # None: at every evaluation
    keep_last: int = 2  # with optimiser state; the best is kept beside them, without
    archive_interval: int | None = None  # also keep every multiple of this, for good


@dataclass
class LogConfig:
    interval: int = 50  # steps between two lines; only there does training wait for figures from the device
    tensorboard: bool = True  # event files in output_dir/tensorboard
    wandb_project: str | None = None  # also to Weights & Biases (needs the wandb package)
    report: bool = True  # output_dir/report.html, renewed at every evaluation


@dataclass
class LoaderConfig:
    decode: str = "cpu"  # cpu | gpu: where JPEG is decoded (gpu needs torchvision with nvJPEG)
    policy: str = "raise"  # raise | replace: what a damaged sample does (replacements are counted and logged)
    prefetch_batches: int = 4  # batches of a process that wait in memory
    cache_dir: str | None = None  # copies of remote shards, for all processes and jobs of a node; None: none
    cache_gb: float = 100.0


@dataclass
class GuardConfig:
    non_finite: str = "stop"  # stop | skip: what to do about a step whose gradient is not finite
    max_skipped: int = 10  # steps that skip may leave out in one process's life


@dataclass
class EmaConfig:
    decay: float | None = (
        None  # of the average of the trainables that is scored and exported; None: no average
    )


@dataclass
class TrainConfig:
    """One run, whole. `maskshards train` writes it, merged, beside the results."""

    model: ModelConfig = field(default_factory=ModelConfig)
    bs: int = 2  # images a process takes in one micro-step
    n_gpus: int = 8  # bs * n_gpus is the global batch of the recipe, whatever the world it runs on
    global_batch: int | None = None  # set it to say the global batch outright
    num_workers: int = 6  # reading threads of one process
    model_dtype: ModelDtype = ModelDtype.FLOAT32
    cpu_autocast: bool = False  # model_dtype on a CPU too: quicker only where it has bfloat16 units
    precision: str = "mixed"  # mixed | reference (pixel decoder in float32, as the reference computes it)
    activation_checkpointing: bool = False  # compute activations twice, hold them once
    compile: str = "none"  # none | backbone | model: what torch.compile takes in training
    compile_mode: str = "default"  # default | reduce-overhead | max-autotune, as torch.compile knows them
    fused_kernels: bool = True  # Triton kernels on CUDA; False: plain PyTorch, slower, in more memory
    channels_last: bool = False  # the adapter's convolutions on channels-last maps, to be tried on a GPU
    step_timeout_s: float = 600.0  # that ranks wait for one of them in a step before all end
    seed: int = 100
    metric_to_save: str = "mIoU"
    datasets: DatasetConfig = field(default_factory=DatasetConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    decoder_head: DecoderConfig = field(default_factory=DecoderConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    transforms: TransformConfig = field(default_factory=TransformConfig)
    train: LinearLossConfig = field(default_factory=LinearLossConfig)
    m2f_train: M2FTrainConfig = field(default_factory=M2FTrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    log: LogConfig = field(default_factory=LogConfig)
    guards: GuardConfig = field(default_factory=GuardConfig)
    output_dir: str | None = None
    load_from: str | None = None  # evaluate these weights
    init_from: str | None = None  # train, starting from these weights
    resume_from: str | None = None  # continue the run: a checkpoint, or "auto" for the newest in output_dir

    @property
    def images_per_step(self) -> int:
        """The global batch: images that one optimiser step sees over all ranks and micro-steps."""
        return self.bs * self.n_gpus if self.global_batch is None else self.global_batch
