"""A user's function in the stream: right samples, own sizes, equal in any world, dicts where asked for."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from maskshards.shards.augment.crop import CropSettings, crop, draw_crops
from maskshards.shards.augment.rasterize import image_of, label_map_of
from maskshards.shards.augment.targets import class_map
from maskshards.shards.loading.loader import Loader
from maskshards.shards.loading.samples import open_split
from maskshards.shards.order.order import World

SIDE = 16


@pytest.fixture(scope="module")
def split(make_split):
    return open_split(make_split("transformed", [4, 3]).folder)


def corner(image, classes, random):
    """A random window of SIDE px, padded with black and no class where the image is smaller."""
    top, left = (int(random.integers(max(side - SIDE, 0) + 1)) for side in classes.shape)
    window = np.zeros((SIDE, SIDE, 3), np.uint8), np.full((SIDE, SIDE), 255, np.uint8)
    for target, source in zip(window, (image, classes), strict=True):
        part = source[top : top + SIDE, left : left + SIDE]
        target[: part.shape[0], : part.shape[1]] = part
    return window


def halved(image, classes, random):
    return image[::2, ::2], classes[::2, ::2]


def test_samples_of_any_size_travel_as_whole_images(split):
    truth = {sample.key: sample for sample in split}
    with Loader(split, batch_per_rank=7, end=7, transform=halved) as loader:
        batch = next(iter(loader))
    for i, key in enumerate(batch.keys):
        image, classes = halved(truth[key].image, truth[key].class_map, None)
        np.testing.assert_array_equal(image_of(batch, i).numpy(), image)
        np.testing.assert_array_equal(label_map_of(batch, i).numpy() % 256, classes)  # 65535 as a byte is 255
        assert (batch.heights[i], batch.widths[i]) == classes.shape
        assert batch.labels[i] == tuple(label for label in np.unique(classes).tolist() if label != 255)
    settings = CropSettings(crop_px=(8, 8), image_px=8)
    crops = crop(batch, draw_crops(batch, 0, settings), settings)
    assert class_map(crops).shape == (7, 8, 8)


def rows(batches):
    return [
        (int(position), key, image.numpy().tobytes(), classes.numpy().tobytes())
        for batch in batches
        for position, key, image, classes in zip(
            batch["positions"], batch["keys"], batch["images"], batch["class_maps"], strict=True
        )
    ]


@pytest.mark.parametrize("workers", [None, 2])
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_dicts_are_the_same_in_any_world(split, workers, num_ranks):
    def stream(rank, ranks, threads=1, position=0):
        return Loader(
            split, batch_per_rank=4 // ranks, global_batch=4, world=World(rank, ranks), seed=5, end=16,
            threads=threads, transform=corner, as_dict=True, position=position,
        )  # fmt: skip

    reference = rows(stream(0, 1))
    assert len({content[2] for content in reference}) > 12  # another window in another epoch
    found = []
    for rank in range(num_ranks):
        loader = stream(rank, num_ranks, threads=3)
        found += rows(loader if workers is None else DataLoader(loader, batch_size=None, num_workers=workers))
    assert sorted(found) == reference
    batches = list(stream(0, 1))
    state = json.dumps(stream(0, 1).state_dict(after=batches[1]))
    again = stream(0, 1)
    again.load_state_dict(json.loads(state))
    assert rows(again) == reference[8:]


def test_the_dict_is_what_a_loss_takes(split):
    with Loader(split, batch_per_rank=4, transform=corner, as_dict=True) as loader:
        batch = next(iter(loader))
        assert loader.ignore_index == 255
    assert batch["images"].shape == (4, 3, SIDE, SIDE)
    logits = torch.zeros(4, len(split.manifest.classes), SIDE, SIDE)
    loss = torch.nn.functional.cross_entropy(logits, batch["class_maps"], ignore_index=loader.ignore_index)
    assert loss.item() == pytest.approx(np.log(len(split.manifest.classes)), rel=1e-5)


@pytest.mark.parametrize(
    ("transform", "error", "words"),
    [
        (None, ValueError, "bring all to one size"),
        (lambda image, classes, random: (image, classes + 200), ValueError, "sample '.*after the transform"),
        (lambda image, classes, random: image, TypeError, r"expected \(image, class map\)"),
    ],
)
def test_what_cannot_be_batched_says_so(split, transform, error, words):
    with Loader(split, batch_per_rank=7, transform=transform, as_dict=True) as loader:
        with pytest.raises(error, match=words):
            next(iter(loader))


def test_decoding_later_and_transforming_exclude_each_other(split):
    with pytest.raises(ValueError, match="decode leaves images"):
        Loader(split, batch_per_rank=2, transform=corner, decode=lambda batch: batch.rest)


def test_albumentations_draws_from_the_samples_generator(split):
    albumentations = pytest.importorskip("albumentations")

    def transform(image, classes, random):
        pipeline = albumentations.Compose(
            [
                albumentations.PadIfNeeded(SIDE, SIDE, fill_mask=255),
                albumentations.RandomCrop(SIDE, SIDE),
                albumentations.HorizontalFlip(),
            ],
            seed=int(random.integers(2**32)),
        )
        out = pipeline(image=image, mask=classes)
        return out["image"], out["mask"]

    def stream(threads):
        return rows(
            Loader(split, batch_per_rank=4, end=16, threads=threads, transform=transform, as_dict=True)
        )

    assert stream(1) == stream(3)


def test_the_documented_transform_runs(split):
    pytest.importorskip("albumentations")
    text = (Path(__file__).parents[3] / "docs/augmentation.md").read_text()
    (program,) = re.findall(r"```python\n(import albumentations.*?)```", text, re.DOTALL)
    left = {"SPLIT": split}
    exec(program, left)
    left["loader"].close()
    assert left["batch"]["images"].shape == (4, 3, 256, 256)
    assert left["batch"]["images"].dtype == torch.float32
    assert len(program[program.index("def transform") : program.index("loader =")].strip().splitlines()) < 10


def test_an_error_of_the_function_names_its_sample(split):
    def divide(image, classes, random):
        return image, classes[len(classes) // 0]

    with (
        pytest.raises(ZeroDivisionError) as caught,
        Loader(split, batch_per_rank=7, transform=divide) as loader,
    ):
        next(iter(loader))
    (note,) = caught.value.__notes__
    assert re.fullmatch(r"raised by the transform of sample 'transformed_\d_\d', epoch 0", note)

    def stop(image, classes, random):
        return next(iter(()))

    with (
        pytest.raises(RuntimeError, match=r"sample 'transformed_\d_\d': the transform raised StopIteration"),
        Loader(split, batch_per_rank=7, transform=stop) as loader,
    ):
        next(iter(loader))


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda image, classes, _: (image[:0], classes[:0]), r"image is \(0, "),
        (lambda image, classes, _: (image.astype(object), classes), "object"),
        (lambda image, classes, _: (image > 7, classes), "bool"),
    ],
)
def test_images_that_no_batch_can_hold_are_named(split, change, match, as_dict):
    with (
        pytest.raises(ValueError, match=f"sample 'transformed.*{match}"),
        Loader(split, batch_per_rank=1, transform=change, as_dict=as_dict) as loader,
    ):
        next(iter(loader))


def test_a_tensor_that_wants_gradients_is_taken_as_its_values(split):
    def learned(image, classes, random):
        values = torch.from_numpy(image[:8, :8]).permute(2, 0, 1).float()
        return values.requires_grad_() * 2, classes[:8, :8]

    with Loader(split, batch_per_rank=2, transform=learned, as_dict=True) as loader:
        assert not next(iter(loader))["images"].requires_grad
    with (
        pytest.raises(TypeError, match=r"image is torch.float32; a batch of whole images"),
        Loader(split, batch_per_rank=2, transform=learned) as loader,
    ):
        next(iter(loader))


def test_what_is_no_function_is_named_at_once(split):
    with pytest.raises(ValueError, match="transform is 'flip'; expected a function of one sample"):
        Loader(split, batch_per_rank=1, transform="flip")
