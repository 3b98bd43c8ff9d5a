"""A trained model in Python: `model = maskshards.load_model("runs/x")`, then `model.predict(image)`.

An image is a path, a Pillow image, an array or a tensor (`prediction.image_arrays` has the rules); a list of
images gives a list of answers and goes through the model together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from huggingface_hub import ModelHubMixin
from PIL import Image
from torch import Tensor

from maskshards.shards.augment.resize import normalise
from maskshards.train.checkpoint.checkpoint import Checkpoint, load_weights, read_checkpoint
from maskshards.train.checkpoint.hub_folder import write_folder
from maskshards.train.checkpoint.train_state import TrainState
from maskshards.train.config.load import merge, own_settings, read_recipe, to_config
from maskshards.train.config.schema import TrainConfig
from maskshards.train.evaluation.evaluate import evaluation_settings
from maskshards.train.evaluation.inference import InferenceSettings, label_maps, probability_maps
from maskshards.train.evaluation.provenance import check_trained_on
from maskshards.train.model.segmenter import Segmenter
from maskshards.train.prediction.devices import choose_device
from maskshards.train.prediction.hub_model import fetch_model, is_hub_id
from maskshards.train.prediction.image_arrays import as_rgb, each_as_rgb, is_many
from maskshards.train.prediction.image_files import PredictError
from maskshards.train.prediction.mosaic import label_mosaic
from maskshards.train.trainer.build import autocast_dtype, build_model
from maskshards.train.trainer.hub_pin import with_rule

BATCH_PX = 1 << 23  # pixels of the images that go through the model together
MOST_TOGETHER = 16


class Predictor(ModelHubMixin, library_name="maskshards", pipeline_tag="image-segmentation"):
    """A frozen backbone with its trained head, and all it takes to label an image. Made by `load_model`."""

    def __init__(
        self,
        segmenter: Segmenter,
        config: TrainConfig,
        class_names: tuple[str, ...],
        device: torch.device,
        state: TrainState | None = None,
    ) -> None:
        self.segmenter, self.config, self.class_names, self.state = segmenter, config, class_names, state
        self.settings: InferenceSettings = evaluation_settings(config).inference
        self.device = device
        self.autocast_dtype = autocast_dtype(config, device)

    def __repr__(self) -> str:
        model = f"{self.config.decoder_head.type} head on {self.config.model.dino_hub}"
        return f"Predictor({model}, {self.num_classes} classes, {self.device})"

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def id2label(self) -> dict[int, str]:
        """The name of every class id."""
        return dict(enumerate(self.class_names))

    @property
    def label2id(self) -> dict[str, int]:
        """The class id of every name."""
        return {name: k for k, name in enumerate(self.class_names)}

    def to(self, device: str | torch.device) -> Predictor:
        """Move the model: "cuda", "cuda:1", "cpu", "mps", "xpu". PredictError for one that is not here."""
        self.device = choose_device(str(device))
        self.segmenter.to(self.device)
        self.autocast_dtype = autocast_dtype(self.config, self.device)
        return self

    @overload
    def predict(self, images: list[Any], *, mosaic: bool = False) -> list[np.ndarray]: ...

    @overload
    def predict(self, images: Any, *, mosaic: bool = False) -> np.ndarray: ...

    def predict(self, images: Any, *, mosaic: bool = False) -> Any:
        """(H, W) class ids of an image at its own size, uint8 (uint16 beyond 256 classes).

        The model sees an image with the short side of the evaluation; with `mosaic=True` window by window at
        its own scale, in bounded memory and without test-time augmentation. PredictError for what is no
        image, NonFiniteScores for a model that answers NaN.
        """
        if not is_many(images):
            return self.label([as_rgb(images)], mosaic)[0]
        maps: list[np.ndarray] = []
        for batch in _batches(images):
            maps += self.label(batch, mosaic)
        return maps

    @overload
    def scores(self, images: list[Any]) -> list[np.ndarray]: ...

    @overload
    def scores(self, images: Any) -> np.ndarray: ...

    def scores(self, images: Any) -> Any:
        """(C, H, W) float32 probabilities of an image at its own size; they sum to 1 at every pixel."""
        if is_many(images):
            return [self.scores(image) for image in each_as_rgb(images)]
        pixels = [self._on_device(as_rgb(images))]
        (found,) = probability_maps(self.segmenter, pixels, self.settings, self.autocast_dtype)
        return found.cpu().numpy()

    def segments(self, images: Any) -> Any:
        """One dictionary for each class in the image, by class id.

        They are as transformers' pipeline "image-segmentation" gives them: `label` its name, `mask` a Pillow
        image of 0 and 255, and `score`, here the mean probability of the class in its mask.
        """
        if is_many(images):
            return [self.segments(image) for image in each_as_rgb(images)]
        scores = self.scores(images)
        class_map, best = scores.argmax(0), scores.max(0)
        found = []
        for k in np.unique(class_map):
            mask = class_map == k
            picture = Image.fromarray(mask.astype(np.uint8) * 255)
            found.append({"label": self.class_names[k], "score": float(best[mask].mean()), "mask": picture})
        return found

    def label(self, arrays: Sequence[np.ndarray], mosaic: bool = False) -> list[np.ndarray]:
        """(H, W) class ids of (H, W, 3) uint8 RGB images, which go through the model together."""
        if mosaic:
            return [self._label_mosaic(array) for array in arrays]
        pixels = [self._on_device(array) for array in arrays]
        dtype = torch.uint8 if self.num_classes <= 256 else torch.int32
        narrow = np.uint8 if self.num_classes <= 256 else np.uint16
        found = label_maps(self.segmenter, pixels, self.settings, self.autocast_dtype, dtype)
        return [one.cpu().numpy().astype(narrow, copy=False) for one in found]

    def _label_mosaic(self, array: np.ndarray) -> np.ndarray:
        return label_mosaic(array, self._window_scores, self.num_classes, self.settings, device=self.device)

    def _window_scores(self, pixels: Tensor) -> Tensor:
        """(B, C, h, w) scores of windows (B, 3, h, w) uint8."""
        images = normalise(pixels.float(), self.settings.mean, self.settings.std)
        dtype = self.autocast_dtype or torch.bfloat16
        with torch.autocast(self.device.type, dtype, enabled=self.autocast_dtype is not None):
            return self.segmenter.scores(images)

    def _on_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _save_pretrained(self, save_directory: Path) -> None:
        if self.state is None:
            raise PredictError(
                "these weights came without the facts of their run, which config.json is made of; load them "
                "from a run folder, or from a model_final.pth with its model_final.json"
            )
        write_folder(save_directory, self.facts(), self.segmenter.decoder.state_dict())

    def facts(self) -> TrainState:
        """What is known of the training run, under the class names in use. PredictError if nothing is."""
        if self.state is None:
            raise PredictError("these weights came without the facts of their run")
        return replace(self.state, class_names=list(self.class_names))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        **loading: Any,
    ) -> Predictor:
        """`load_model` under the name that other libraries have for it.

        How a repository of the hub is fetched is said by their words, the rest by those of `load_model`.

        The mixin's own would read config.json by itself first, and hand it on as an argument.
        """
        source = pretrained_model_name_or_path
        if not Path(source).expanduser().exists() and is_hub_id(str(source)):
            source = fetch_model(
                str(source), revision=revision, token=token, cache_dir=cache_dir,
                force_download=force_download, local_files_only=local_files_only,
            )  # fmt: skip
        return load_model(source, **loading)


def load_model(
    source: str | Path,
    *,
    device: str | None = None,
    weights: str | None = None,
    recipe: str | Path | None = None,
    class_names: Sequence[str] | None = None,
    revision: str | None = None,
    overrides: Sequence[str] = (),
) -> Predictor:
    """The trained model behind a place on disk or a repository of the hub ("owner/name").

    The place is a run folder (its best checkpoint), a checkpoint, `model_final.pth` or an exported folder.

    `device`: CUDA where there is one, unless named. `weights`: where the backbone's weights lie now.
    `recipe`: needed for weights without a configuration beside them. `class_names` replaces the stored ones.
    `overrides`: more keys of the configuration, "eval.use_tta=true". Raises PredictError, CheckpointError,
    ConfigError or WeightsError: all ValueErrors that say what to do.
    """
    text = str(source)
    if not isinstance(source, str | Path) or not text or "://" in text:
        raise PredictError(
            f"{source!r} is no model: expected a run folder, a checkpoint, an exported folder or owner/name"
        )
    if isinstance(overrides, str):
        raise PredictError(f"overrides is one text, {overrides[:40]!r}, expected a list of texts")
    check_given_names(class_names or ())
    path = Path(text).expanduser()
    if not path.exists() and is_hub_id(text):
        path = fetch_model(text, revision=revision)
    checkpoint = read_checkpoint(path)
    words = [*overrides, *([f"model.weights={weights}"] if weights else [])]
    state = checkpoint.state
    config = with_rule(stored_config(checkpoint, recipe, words), state.config if state else None)
    place = choose_device(device)
    segmenter = build_model(config, place)
    check_trained_on(state, config, segmenter.backbone, str(checkpoint.path))
    load_weights(segmenter.decoder, checkpoint)
    segmenter.decoder.eval()
    names = checked_names(class_names, config, state, str(checkpoint.path))
    return Predictor(segmenter, config, names, place, state)


def stored_config(checkpoint: Checkpoint, recipe: str | Path | None, overrides: Sequence[str]) -> TrainConfig:
    """The configuration that came with the weights, or that of `recipe`, with `overrides` on top."""
    if recipe is not None:
        stored = read_recipe(Path(recipe).expanduser())
    elif checkpoint.state is not None:
        stored = own_settings(checkpoint.state.config, str(checkpoint.path))
    else:
        raise PredictError(
            f"{checkpoint.path} comes without a configuration; give the recipe of its training: "
            "--recipe FILE on the command line, recipe=FILE in Python"
        )
    datasets = stored.get("datasets") if isinstance(stored.get("datasets"), dict) else {}
    # A recipe leaves the root open, and no data is read here.
    config = to_config(merge(stored | {"datasets": {"root": ""} | (datasets or {})}, list(overrides)))
    if config.model.dino_hub is None:
        raise PredictError("model.dino_hub is not set: which backbone was the head trained on?")
    return config


def checked_names(
    given: Sequence[str] | None, config: TrainConfig, state: TrainState | None, where: str
) -> tuple[str, ...]:
    """Names as given, else from the checkpoint, else numbers; PredictError unless there is one a class."""
    count = config.decoder_head.classes
    names = given or (state.class_names if state else [f"class {k}" for k in range(count)])
    if len(names) != count:
        origin = "given" if given else f"in {where}"
        raise PredictError(f"{len(names)} class names ({origin}) do not fit a model of {count} classes")
    return tuple(names)


def check_given_names(names: Sequence[str]) -> None:
    """PredictError unless `names` is a list of texts, no two alike: `label2id` would lose one of them."""
    kind = type(names).__name__
    if isinstance(names, str | Mapping) or not all(isinstance(name, str) for name in names):
        raise PredictError(
            f"class_names is a {kind}, expected a list of texts, in the order of the class ids"
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise PredictError(f"class_names holds {twice[0]!r} twice; give each class a name of its own")


def _batches(images: Sequence[Any]) -> Iterator[list[np.ndarray]]:
    """Images as arrays, so many at once as BATCH_PX and MOST_TOGETHER allow; in order."""
    batch: list[np.ndarray] = []
    for array in each_as_rgb(images):
        held = sum(one.shape[0] * one.shape[1] for one in batch)
        if batch and (held + array.shape[0] * array.shape[1] > BATCH_PX or len(batch) == MOST_TOGETHER):
            yield batch
            batch = []
        batch.append(array)
    if batch:
        yield batch
