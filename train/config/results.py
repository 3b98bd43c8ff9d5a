"""The keys of what a run says and leaves: evaluations, checkpoints, log."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from maskshards.train.keys import ConfigError, key

# The names that configurations and log lines use -> the field of evaluation.metrics.EvalResult.
METRICS = MappingProxyType(
    {
        "mIoU": "miou",
        "acc": "mean_accuracy",
        "aAcc": "pixel_accuracy",
        "dice": "mean_dice",
        "fscore": "mean_fscore",
        "precision": "mean_precision",
        "recall": "mean_recall",
    }
)


@dataclass
class EvalConfig:
    """`eval`: how the validation split is scored."""

    compute_metric_per_image: bool = key(False, "also a line of scores for every image")
    boundary_iou: bool = key(False, "also overlap near outlines")
    reduce_zero_label: bool | None = key(
        None, "True or False is checked against the rule in the manifest; null: not checked"
    )
    mode: str = key("slide", "windows that slide, or the whole image", one_of=("slide", "whole"))
    crop_size: int | None = key(512, "side of a window, px", at_least=1)
    stride: int | None = key(341, "step of a window, px", at_least=1)
    eval_interval: int = key(40000, "steps between two evaluations", at_least=1)
    use_tta: bool = key(False, "average over transforms.eval.tta_ratios and mirror images")
    max_val_samples: int | None = key(None, "images to score; null: the whole split", at_least=1)
    before_training: bool = key(False, "also score the untrained head, as step 0")

    def check(self) -> None:
        """ConfigError for windows that would leave gaps."""
        crop, stride = self.crop_size, self.stride
        if self.mode == "slide" and (crop is None or stride is None or stride > crop):
            raise ConfigError(
                f"eval.mode=slide needs 0 < eval.stride <= eval.crop_size, found stride {stride}, crop {crop}"
            )


@dataclass
class CheckpointConfig:
    """`checkpoint`: what is kept of a run."""

    interval: int | None = key(None, "steps between two checkpoints; null: at every evaluation", at_least=1)
    keep_last: int = key(2, "with optimiser state; the best is kept beside them, without", at_least=1)
    archive_interval: int | None = key(None, "also keep every multiple of this, for good", at_least=1)


@dataclass
class LogConfig:
    """`log`: what a run says meanwhile."""

    interval: int = key(50, "steps between two lines; figures are fetched only there", at_least=1)
    tensorboard: bool = key(True, "event files in output_dir/tensorboard")
    wandb_project: str | None = key(None, "also to this project of Weights & Biases (needs wandb)")
    report: bool = key(True, "output_dir/report.html, renewed at every evaluation")
