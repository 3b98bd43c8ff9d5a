import numpy as np
import pytest

from maskshards.shards.format.index import ShardInfo
from maskshards.shards.format.manifest import Manifest, Split, open_split, write_split
from maskshards.shards.format.record import Record
from maskshards.shards.format.rle import encode_label_map
from maskshards.shards.format.tar import TarWriter
from maskshards.shards.loading.loader import Loader
from maskshards.shards.order.repeat_factor import balanced, class_factors, images_per_class, repeats_of

CLASSES = ("common", "rare")


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """40 images in five shards; two of them show the rare class."""
    import simplejpeg

    folder = tmp_path_factory.mktemp("balance")
    image = simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8))
    infos, entries = [], []
    for shard in range(5):
        rows = []
        with TarWriter(folder / f"training-{shard}.tar") as writer:
            for number in range(8 * shard, 8 * shard + 8):
                class_map = np.zeros((8, 8), np.uint16)
                class_map[:, 4:] = number in (5, 30)
                rows.append(
                    writer.add(Record(f"k{number}", image, "jpg", 8, 8, encode_label_map(class_map), {}))
                )
        infos.append(ShardInfo(f"training-{shard}.tar", 8, writer.num_bytes, writer.sha256))
        entries.append(rows)
    write_split(folder, Manifest("x", "training", CLASSES, tuple(infos)), entries)
    return open_split(folder)


def test_images_are_counted_once_for_each_class(split: Split) -> None:
    assert images_per_class(split).tolist() == [40, 2]


def test_factors_are_those_of_the_paper() -> None:
    factors = class_factors(np.array([40, 2, 0]), 40, 0.2)
    assert factors.tolist() == pytest.approx([1.0, 2.0, (0.2 * 40) ** 0.5])


def test_an_epoch_repeats_the_rare_and_holds_the_rest_once(split: Split) -> None:
    selection = balanced(split, 0.45)  # a factor of exactly 3
    assert int(selection.shard_samples.sum()) == 40 + 2 * 2
    with Loader(selection, batch_per_rank=4, threads=1) as loader:
        batches = iter(loader)
        keys = [key for _ in range(11) for key in next(batches).keys]
    counts = {key: keys.count(key) for key in set(keys)}
    assert counts == {f"k{number}": 3 if number in (5, 30) else 1 for number in range(40)}


def test_fractions_hold_on_average(split: Split) -> None:
    factors = np.array([1.5, 1.0])
    repeats = np.concatenate([repeats_of(split.index(shard), factors) for shard in range(5)])
    assert set(repeats.tolist()) == {1, 2}
    assert 0.3 < (repeats == 2).mean() < 0.7


def test_the_choice_is_part_of_the_identity(split: Split) -> None:
    prints = {balanced(split, threshold).fingerprint for threshold in (0.1, 0.2, 0.2)}
    assert len(prints) == 2
    assert split.manifest.fingerprint not in prints


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.5])
def test_thresholds_that_make_no_sense(split: Split, threshold: float) -> None:
    with pytest.raises(ValueError, match="repeat threshold"):
        balanced(split, threshold)
