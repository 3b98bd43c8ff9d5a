"""Random access: each sample equals what was written, by itself and through a DataLoader."""

import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from torch.utils.data import DataLoader

from maskshards.shards.errors import SampleError
from maskshards.shards.loading.loader import Loader
from maskshards.shards.loading.samples import open_split


@pytest.fixture(scope="module")
def made(make_split):
    return make_split("random", [4, 1, 0, 3])


def test_each_sample_is_what_was_written(made):
    split = open_split(made.folder)
    keys = [key for shard in made.keys for key in shard]
    assert len(split) == len(keys) == 8
    for number, sample in enumerate(split):
        image, classes = made.truth[keys[number]]
        assert sample.key == keys[number]
        np.testing.assert_array_equal(sample.image, image)
        np.testing.assert_array_equal(
            sample.class_map, np.where(classes == 65535, sample.ignore_index, classes)
        )
        labels = [label for label in np.unique(classes).tolist() if label != 65535]
        assert sample.labels == tuple(labels) == tuple(sample.facts["class_ids"])
        expected = np.array([classes == label for label in labels]).reshape(-1, *classes.shape)
        np.testing.assert_array_equal(sample.masks, expected)
        assert sample.facts["height"] == image.shape[0]


def test_numbers_count_from_both_ends_and_end(made):
    split = open_split(made.folder)
    assert split[-1].key == split[np.int64(7)].key == made.keys[3][-1]
    for number in (8, -9):
        with pytest.raises(IndexError, match=f"sample {number} of .*, which has 8"):
            split[number]
    with pytest.raises(TypeError):
        split["random_0_0"]


def test_it_goes_where_a_data_set_and_where_a_split_goes(made):
    split = open_split(made.folder)
    first = split[0]
    source = DataLoader(
        split, batch_size=4, num_workers=2, collate_fn=lambda samples: [s.key for s in samples]
    )
    assert [key for batch in source for key in batch] == [sample.key for sample in split]
    assert pickle.loads(pickle.dumps(split))[0].key == first.key
    with Loader(split, batch_per_rank=2) as loader:
        assert len(next(iter(loader)).keys) == 2


@pytest.mark.parametrize("member", ["image", "json", "runs"])
def test_every_member_is_checked(made, tmp_path, member):
    folder = shutil.copytree(made.folder, tmp_path / "copy")
    place = getattr(open_split(folder).index(0).entry(1), f"{member}_offset") + 3
    path = folder / "training-00000.tar"
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)
    with pytest.raises(SampleError, match=r"training-00000\.tar, sample 'random_0_1'"):
        open_split(folder)[1]


def test_it_needs_no_torch(made):
    code = (
        "import sys\nfrom maskshards.shards.loading.samples import open_split\n"
        f"assert len(open_split({str(made.folder)!r})[2].masks)\nassert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
