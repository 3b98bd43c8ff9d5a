"""What a user's function gets, and what it may return."""

import numpy as np
import pytest
import torch

from maskshards.shards.augment.philox import key_digest, philox
from maskshards.shards.loading.transform import TRANSFORM, as_pixels, checked, generator_of, stacked

IMAGE, CLASSES = np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8)


def test_the_generator_is_philox_of_seed_epoch_and_key():
    words = generator_of(3, 2, "a/b").bit_generator.random_raw(4)
    # numpy counts before it draws
    counter = np.array([[1, TRANSFORM, key_digest("a/b"), 0]], np.uint64)
    assert words.tolist() == philox(counter, np.array([[3, 2]], np.uint64))[0].tolist()
    draws = [generator_of(*each).random() for each in ((3, 2, "a"), (3, 1, "a"), (2, 2, "a"), (3, 2, "b"))]
    assert len(set(draws)) == 4


@pytest.mark.parametrize(
    ("result", "error", "words"),
    [
        (IMAGE, TypeError, "returned ndarray; expected"),
        ((IMAGE,), TypeError, "returned tuple"),
        ((IMAGE, CLASSES.astype(float)), ValueError, "float64"),
        ((IMAGE, CLASSES[None]), ValueError, "class map is"),
        ((IMAGE[:3], CLASSES), ValueError, "of one size"),
        ((IMAGE[..., :1], CLASSES), ValueError, "of one size"),
        ((torch.zeros(4, 6, 3), CLASSES), ValueError, "tensor"),
    ],
)
def test_other_results_are_refused_by_name(result, error, words):
    with pytest.raises(error, match=rf"sample 'k': .*{words}"):
        checked(result, "k")


def test_views_and_tensors_are_taken():
    image = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    flipped = checked((image[:, ::-1], torch.zeros(4, 6, dtype=torch.int64)), "k")
    np.testing.assert_array_equal(as_pixels(flipped.image, "k"), image[:, ::-1])
    planes = checked((torch.from_numpy(image).permute(2, 0, 1), CLASSES), "k")
    np.testing.assert_array_equal(as_pixels(planes.image, "k"), image)
    with pytest.raises(TypeError, match=r"sample 'k'.*float32.*as_dict"):
        as_pixels(image.astype(np.float32), "k")


def test_stacking_needs_one_size_and_type():
    one = checked((IMAGE, CLASSES), "a")
    two = checked((torch.ones(3, 4, 6, dtype=torch.uint8), CLASSES + 255), "b")
    batch = stacked([one, two], ["a", "b"], (8, 9))
    assert batch["images"].shape == (2, 3, 4, 6)
    assert batch["images"].is_contiguous()
    assert batch["class_maps"].dtype == torch.int64
    assert batch["class_maps"].unique().tolist() == [0, 255]
    assert (batch["keys"], batch["positions"].tolist()) == (["a", "b"], [8, 9])
    for other in (checked((IMAGE[:, :5], CLASSES[:, :5]), "c"), checked((IMAGE / 2, CLASSES), "c")):
        with pytest.raises(ValueError, match="one size and type"):
            stacked([one, other], ["a", "c"], (8, 9))
