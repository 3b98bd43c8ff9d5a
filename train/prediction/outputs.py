"""What a prediction leaves behind: label maps, pictures of them, scores, and the table of classes.

Each file appears whole or not at all. Its hidden name is short whatever its own, so that a name of 250
letters has room for it.
"""

from __future__ import annotations

import csv
import os
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from maskshards.train.evaluation.spreadsheet import cell_text
from maskshards.train.prediction.find_images import OWN_FOLDERS, was_written_here
from maskshards.train.prediction.image_files import PredictError
from maskshards.train.report.palette import class_colours, overlay, with_legend

LARGEST_PICTURE_PX = 4096  # long side of an overlay, which people look at


@dataclass(frozen=True)
class Outputs:
    """A folder of predictions and what goes into it."""

    folder: Path
    class_names: tuple[str, ...]
    overlay: bool = True
    palette: bool = False  # label maps as PNGs whose values show in the classes' colours
    values: np.ndarray | None = None  # (num_classes,) what label maps hold in place of class ids
    source_values: np.ndarray | None = None  # (num_classes,) for the table of classes

    def prepare(self) -> None:
        """Make the folder and its table of classes.

        PredictError where files would be overwritten that no prediction wrote, or for a palette that has no
        room for the values.
        """
        if self.palette and int(self._table().max()) > 255:
            raise PredictError("--palette: a palette has 256 colours, and the label values go beyond 255")
        for name in OWN_FOLDERS:
            folder = self.folder / name
            full = folder.is_dir() and not folder.is_symlink() and any(folder.iterdir())
            if full and not was_written_here(self.folder):
                raise PredictError(
                    f"{folder} holds files that no prediction wrote, and labels of yours could be "
                    "overwritten; give another --output"
                )
        if self.folder.exists() and not self.folder.is_dir():
            raise PredictError(f"--output {self.folder} is a file; give a folder, which is made if missing")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._put(Path("classes.csv"), self._write_classes)

    def write(self, name: str, image: np.ndarray, class_map: np.ndarray) -> None:
        """The label map and, if asked for, the picture of one image."""
        self._put(Path("labels", f"{name}.png"), lambda path: self._write_labels(path, class_map))
        if self.overlay:
            self._put(Path("overlays", f"{name}.jpg"), lambda path: self._draw(path, image, class_map))

    def write_scores(self, name: str, scores: np.ndarray) -> None:
        """(C, H, W) probabilities as float16, for numpy.load."""
        self._put(Path("scores", f"{name}.npy"), lambda path: _save_array(path, scores.astype(np.float16)))

    def _table(self) -> np.ndarray:
        count = len(self.class_names)
        values = np.arange(count) if self.values is None else self.values
        return values.astype(np.uint8 if int(values.max()) <= 255 else np.uint16)

    def _write_labels(self, path: Path, class_map: np.ndarray) -> None:
        table = self._table()
        same = self.values is None and class_map.dtype == table.dtype
        picture = Image.fromarray(class_map if same else table[class_map])
        if self.palette:
            colours = np.zeros((256, 3), np.uint8)
            colours[table] = class_colours(len(self.class_names))
            picture.putpalette(colours.tobytes())  # turns mode L into P: the values stay what they are
        picture.save(path, format="PNG")

    def _draw(self, path: Path, image: np.ndarray, class_map: np.ndarray) -> None:
        step = -(-max(class_map.shape) // LARGEST_PICTURE_PX)
        image, class_map = image[::step, ::step], class_map[::step, ::step]
        colours = class_colours(len(self.class_names))
        picture = with_legend(overlay(image, class_map, colours), class_map, self.class_names, colours)
        picture.save(path, format="JPEG", quality=92)

    def _write_classes(self, path: Path) -> None:
        colours = class_colours(len(self.class_names)).tolist()
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            known = self.source_values is not None
            rows.writerow(["id", "class", "red", "green", "blue", *(["source_value"] if known else [])])
            for k, name in enumerate(self.class_names):
                value = [int(self.source_values[k])] if self.source_values is not None else []
                rows.writerow([k, cell_text(name), *colours[k], *value])

    def _put(self, name: Path, write: Callable[[Path], None]) -> None:
        """Let `write` fill a hidden file, then name it.

        PredictError for a link that leads elsewhere, OSError with the file's own name where it cannot be
        written.
        """
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.parent.resolve().is_relative_to(self.folder.resolve()):
            raise PredictError(f"{path.parent} is a link that leads out of {self.folder}; remove it")
        mark = zlib.crc32(os.fsencode(path.name))
        hidden = path.with_name(f".{mark:08x}-{os.getpid()}-{threading.get_ident():x}.part")
        try:
            write(hidden)
            hidden.replace(path)
        except OSError as error:
            raise OSError(error.errno, f"cannot be written ({error.strerror or error})", str(path)) from error
        finally:
            hidden.unlink(missing_ok=True)


def _save_array(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, array)
