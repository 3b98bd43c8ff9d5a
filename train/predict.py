"""Label maps and pictures for images: `maskshards predict checkpoint=RUN inputs=FOLDER output_dir=OUT`.

`checkpoint` is a run folder (its best checkpoint), a checkpoint folder or model_final.pth; the model, the
class names and the way to evaluate come from the configuration stored with it, and any of its keys can be
overridden (`eval.use_tta=true`, `model.weights=/another/place`). For a weights file that has no
configuration beside it, give `config=RECIPE.yaml` and, for the names, `classes=FILE` with one name a line.

For each image NAME below `inputs`, at its own size: `OUT/labels/NAME.png` holds class ids (8 bits, or 16
where there are more than 255 classes) and `OUT/overlays/NAME.jpg` shows them on the image with a legend.
`OUT/classes.csv` says which id is which class and colour. A file appears whole or not at all.
"""

from __future__ import annotations

import csv
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from maskshards.shards.storage.atomic_write import replacing
from maskshards.train.checkpoint.checkpoint import load_weights, read_checkpoint
from maskshards.train.config.load import merge, read_recipe, to_config
from maskshards.train.config.schema import TrainConfig
from maskshards.train.evaluation.evaluate import evaluation_settings
from maskshards.train.evaluation.inference import InferenceSettings, label_maps
from maskshards.train.model.segmenter import Segmenter
from maskshards.train.report.palette import class_colours, overlay, with_legend
from maskshards.train.trainer.build import autocast_dtype, build_model
from maskshards.train.trainer.hub_pin import with_rule
from maskshards.train.trainer.resume import trained_rule

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
OWN_KEYS = ("checkpoint", "inputs", "output_dir", "config", "classes", "device")
USAGE = "maskshards predict checkpoint=RUN inputs=IMAGE_OR_FOLDER output_dir=FOLDER [key=value ...]"


class PredictError(ValueError):
    """The command cannot be carried out as given, or an image cannot be read."""


@dataclass(frozen=True, slots=True)
class Predictor:
    """A trained segmenter with all it takes to label an image."""

    segmenter: Segmenter
    settings: InferenceSettings
    class_names: tuple[str, ...]
    device: torch.device
    autocast_dtype: torch.dtype | None

    def label_map(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> (H, W) int64 class ids."""
        pixels = torch.from_numpy(image).to(self.device)
        return label_maps(self.segmenter, [pixels], self.settings, self.autocast_dtype)[0].cpu().numpy()


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status (2 for a fault of the user's, told in one block on stderr)."""
    if argv and argv[0] in ("-h", "--help"):
        sys.stdout.write(f"usage: {USAGE}\n\n{__doc__}")
        return 0
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        count, folder = predict(argv)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what is written is whole\n")
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.stdout.write(f"{count} images labelled: {folder / 'labels'} and {folder / 'overlays'}\n")
    return 0


def predict(argv: Sequence[str]) -> tuple[int, Path]:
    """Carry the command out; returns the number of images and the output folder."""
    given, overrides = parse(argv)
    output = Path(given["output_dir"])
    images = find_images(Path(given["inputs"]), output)
    predictor = load_predictor(given, overrides)
    colours = class_colours(len(predictor.class_names))
    write_classes(output, predictor.class_names, colours)
    for path, name in tqdm(images, unit="image", disable=None):
        image = read_image(path)
        label_map = predictor.label_map(image)
        small = len(predictor.class_names) <= 255
        labels = Image.fromarray(label_map.astype(np.uint8 if small else np.uint16))
        save_picture(labels, output, Path("labels", f"{name}.png"))
        picture = with_legend(overlay(image, label_map, colours), label_map, predictor.class_names, colours)
        save_picture(picture, output, Path("overlays", f"{name}.jpg"))
    return len(images), output


def parse(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The keys of this command, and the rest, which overrides the run's configuration."""
    given: dict[str, str] = {}
    overrides: list[str] = []
    for argument in argv:
        key, equals, value = argument.partition("=")
        if not equals:
            raise PredictError(f"argument {argument!r} is not of the form key=value; usage: {USAGE}")
        if key in OWN_KEYS:
            given[key] = value
        else:
            overrides.append(argument)
    missing = [key for key in ("checkpoint", "inputs", "output_dir") if not given.get(key)]
    if missing:
        raise PredictError(f"{missing[0]}= is missing; usage: {USAGE}")
    return given, overrides


def load_predictor(given: dict[str, str], overrides: list[str]) -> Predictor:
    """The model behind `checkpoint=`, on `device=` (CUDA if there is one)."""
    checkpoint = read_checkpoint(given["checkpoint"])
    state = checkpoint.state
    if "config" in given:
        stored = read_recipe(Path(given["config"]))
    elif state is not None:
        stored = state.config
    else:
        raise PredictError(
            f"{checkpoint.path} comes without a configuration; give the recipe of its training as config="
        )
    stored.setdefault("datasets", {}).setdefault("root", "")  # a recipe leaves it open; no data is read here
    config = to_config(merge(stored, overrides))
    if config.model.dino_hub is not None:
        config = with_rule(config, state.config if state is not None else None)
    device = choose_device(given.get("device"))
    if config.model.dino_hub is None:
        raise PredictError("model.dino_hub is not set: which backbone was the head trained on?")
    segmenter = build_model(config, device)
    if state is not None and segmenter.backbone.digest != state.backbone_digest:
        raise PredictError(
            f"{checkpoint.path} was trained on the backbone {state.backbone} with digest "
            f"{state.backbone_digest}, but model.weights={config.model.weights} has digest "
            f"{segmenter.backbone.digest}; point model.weights at the weights of the training run"
        )
    if state is not None and trained_rule(state) != segmenter.backbone.position_rule:
        raise PredictError(
            f"{checkpoint.path} was trained with model.position_rule={trained_rule(state)}, not "
            f"{segmenter.backbone.position_rule}: leave the key out, and the checkpoint's is taken"
        )
    load_weights(segmenter.decoder, checkpoint)
    segmenter.decoder.eval()
    return Predictor(
        segmenter,
        evaluation_settings(config).inference,
        class_names(given, config, state.class_names if state else None),
        device,
        autocast_dtype(config, device),
    )


def choose_device(name: str | None) -> torch.device:
    """The device called `name`; without a name CUDA if there is one, else the CPU."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise PredictError(f"device={name} is no device; say cpu, cuda or cuda:1") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise PredictError(f"device={name}, but there is no CUDA device here; say device=cpu")
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            raise PredictError(f"device={name}, but there are {torch.cuda.device_count()} CUDA devices here")
        torch.cuda.set_device(device)  # kernels and events of our own go to the current device
    return device


def class_names(given: dict[str, str], config: TrainConfig, stored: Sequence[str] | None) -> tuple[str, ...]:
    """Names from `classes=`, else from the checkpoint, else numbers; as many as the model has classes."""
    names: Sequence[str] = stored or [f"class {k}" for k in range(config.decoder_head.num_classes)]
    if "classes" in given:
        names = [line.strip() for line in Path(given["classes"]).read_text(encoding="utf-8").splitlines()]
        names = [name for name in names if name]
    if len(names) != config.decoder_head.num_classes:
        raise PredictError(
            f"{len(names)} class names ({given.get('classes', 'from the checkpoint')}) do not fit a model of "
            f"{config.decoder_head.num_classes} classes"
        )
    return tuple(names)


def find_images(inputs: Path, output: Path) -> list[tuple[Path, str]]:
    """(path, name of the outputs without suffix) of every image, sorted; a folder is searched in depth."""
    if inputs.is_file():
        return [(inputs, inputs.stem)]
    if not inputs.is_dir():
        raise PredictError(f"inputs={inputs} does not exist; give an image file or a folder of images")
    found = list(_images_below(inputs, output.resolve()))
    if not found:
        raise PredictError(f"inputs={inputs} holds no image; looked for {', '.join(SUFFIXES)}")
    seen: dict[str, Path] = {}
    for path, name in found:
        if name in seen:
            raise PredictError(f"{seen[name]} and {path} would both be written as {name}; rename one of them")
        seen[name] = path
    return found


def _images_below(folder: Path, output: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.suffix.lower() not in SUFFIXES or hidden or not path.is_file():
            continue
        if not path.resolve().is_relative_to(output):  # pictures of an earlier run are no inputs
            yield path, str(relative.with_suffix(""))


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB, upright; PredictError names a file that is no sound image."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise PredictError(f"{path} has mode {image.mode}; convert it to 8 bits a channel first")
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        Image.DecompressionBombError,
    ) as error:
        raise PredictError(
            f"{path} cannot be read as an image: {error}; get a good copy of it, or leave it out"
        ) from error


def save_picture(picture: Image.Image, output: Path, name: Path) -> None:
    """Write `output / name` by rename; PredictError if a link would lead it out of `output`."""
    path = output / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.parent.resolve().is_relative_to(output.resolve()):
        raise PredictError(f"{path.parent} is a link that leads out of {output}; remove it")
    with replacing(path) as hidden:
        picture.save(hidden, format="PNG" if path.suffix == ".png" else "JPEG", quality=92)


def write_classes(output: Path, names: Sequence[str], colours: np.ndarray) -> None:
    """`classes.csv`: id, name and colour of every class."""
    output.mkdir(parents=True, exist_ok=True)
    with replacing(output / "classes.csv") as hidden, hidden.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["id", "class", "red", "green", "blue"])
        rows.writerows([k, name, *colours[k].tolist()] for k, name in enumerate(names))


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
