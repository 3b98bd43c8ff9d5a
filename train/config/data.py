"""The keys of the data: splits, reading, crops."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from maskshards.shards.augment.presets import IMAGENET_MEAN, IMAGENET_STD, JITTERS, LSJ_RATIO, PRESETS
from maskshards.shards.errors import POLICIES, RAISE
from maskshards.shards.loading.ordered_map import MOST_AHEAD
from maskshards.train.keys import ConfigError, key, section

LSJ = "lsj"
SPLIT_OF_WORD = {"TRAIN": "training", "VAL": "validation"}
ALIASES = {"training": "train", "train": "training", "validation": "val", "val": "validation"}


@dataclass
class DatasetConfig:
    """`datasets`: where the shards lie."""

    root: str = key(MISSING, "folder or URL that holds the splits; no default on purpose")
    train: str = key(
        "",
        "training split: a name under root, a URL or absolute path, or NAME:split=TRAIN; "
        "empty: training or train",
    )
    val: str = key("", "validation split, in the same forms; empty: validation or val")
    repeat_threshold: float | None = key(
        None,
        "images with classes in fewer than this share of the images are repeated (LVIS); null: each once",
        above=0,
    )

    def check(self) -> None:
        """ConfigError for a root of no letters, as an unset shell variable leaves it: it would mean `/`."""
        if self.root == "":
            raise ConfigError("datasets.root is empty; give the folder that `maskshards build --out` wrote")


@dataclass
class LoaderConfig:
    """`loader`: how samples are read."""

    decode: str = key("cpu", "where JPEG is decoded; gpu needs torchvision", one_of=("cpu", "gpu"))
    policy: str = key(
        RAISE,
        "what a damaged sample does: end the run, or be replaced, counted and logged",
        one_of=POLICIES,
    )
    prefetch_batches: int = key(4, "batches of a process that wait in memory", at_least=1, at_most=MOST_AHEAD)
    cache_dir: str | None = key(
        None, "folder for copies of remote shards, for all processes and jobs of a node; null: none"
    )
    cache_gb: float = key(100.0, "size of that folder, GB", above=0, at_most=1e9)


@dataclass
class TrainTransformConfig:
    """`transforms.train`: crops of training."""

    img_size: int | None = key(None, "short side that a ratio of 1 gives, px", at_least=1)
    random_img_size_ratio_range: list[float] | None = key(None, "[low, high] of the random ratio; null: 1")
    crop_size: list[int] | None = key(None, "[height, width], px")
    flip_prob: float = key(0.0, "probability of mirroring", at_least=0, at_most=1)
    photometric: str = key("reference", "colour distortion", one_of=tuple(PRESETS))
    jitter: str = key(
        "short_side",
        "what a ratio of 1 means: short_side (img_size), fit (inside the crop), lsj (fit, ratios 0.1 to 2)",
        one_of=(*JITTERS, LSJ),
    )

    def check(self) -> None:
        """ConfigError for ratios that cannot be drawn."""
        ratio, where = self.random_img_size_ratio_range, "transforms.train.random_img_size_ratio_range"
        if ratio is not None and (len(ratio) != 2 or not 0 < ratio[0] <= ratio[1]):
            raise ConfigError(f"{where} is {list(ratio)}, expected [low, high] with 0 < low <= high")
        if self.jitter == LSJ and ratio is not None and tuple(ratio) != LSJ_RATIO:
            raise ConfigError(
                f"transforms.train.jitter=lsj has the published range {list(LSJ_RATIO)}, and "
                f"{where} is {list(ratio)}; set that to null, or say transforms.train.jitter=fit to keep it"
            )


@dataclass
class EvalTransformConfig:
    """`transforms.eval`: images of an evaluation."""

    img_size: int | None = key(None, "short side before sliding, px", at_least=1)
    tta_ratios: list[float] = key([1.0], "sizes to average over with eval.use_tta, as ratios")

    def check(self) -> None:
        """ConfigError without a size."""
        if self.img_size is None:
            raise ConfigError("transforms.eval.img_size is None, expected the short side in pixels")
        if not self.tta_ratios or min(self.tta_ratios) <= 0:
            raise ConfigError(
                f"transforms.eval.tta_ratios is {list(self.tta_ratios)}, expected ratios above 0"
            )


@dataclass
class TransformConfig:
    """`transforms`: from whole images to what the model sees."""

    train: TrainTransformConfig = section(TrainTransformConfig, "crops of training")
    eval: EvalTransformConfig = section(EvalTransformConfig, "images of an evaluation")
    mean: list[float] = key(list(IMAGENET_MEAN), "of each channel, on the 0..255 scale")
    std: list[float] = key(list(IMAGENET_STD), "of each channel, on the 0..255 scale")

    def check(self) -> None:
        """ConfigError unless mean and std have three values, std above 0, on the scale of bytes."""
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or (name == "std" and min(values) <= 0):
                raise ConfigError(
                    f"transforms.{name} is {list(values)}, expected three values on the 0..255 scale, "
                    "std above 0"
                )
        # torchvision's figures: every pixel would come out hundreds too large. A std of 1 leaves bytes alone.
        small = {"mean": 0 < max(self.mean) <= 1, "std": max(self.std) < 1}
        for name in (name for name, is_small in small.items() if is_small):
            raise ConfigError(
                f"transforms.{name} is {list(getattr(self, name))}, which is on the 0..1 scale; expected the "
                "0..255 scale: multiply mean and std by 255"
            )


def split_url(root: str, descriptor: str) -> str:
    """Where the split lies.

    `descriptor` is a URL or absolute path, a split's name under `root`, or `NAME:split=TRAIN|VAL`, the form
    of facebookresearch/dinov3.
    """
    if "://" in descriptor or descriptor.startswith("/"):
        return descriptor
    name, _, rest = descriptor.partition(":")
    if rest:
        word, _, split = rest.partition("=")
        if word != "split" or not split:
            raise ConfigError(
                f"data set {descriptor!r} is no split name, URL or NAME:split=TRAIN|VAL descriptor: "
                f"after {name!r} stands {word!r}, expected split=..."
            )
        descriptor = SPLIT_OF_WORD.get(split.upper(), split)
    return f"{root.rstrip('/')}/{descriptor}"


def other_name(descriptor: str) -> str | None:
    """The other usual name of the split that `descriptor` means; None where it has only one."""
    name, colon, word = descriptor.partition(":split=")
    return ALIASES.get(SPLIT_OF_WORD.get(word.upper(), word) if colon else name)
