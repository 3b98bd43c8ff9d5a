"""Class maps of both widths there and back, and values that no class has."""

import numpy as np
import pytest

from maskshards.shards.errors import RunsError
from maskshards.shards.format.rle import encode_label_map
from maskshards.shards.loading.class_maps import class_map_of, ignore_index_of, runs_of


@pytest.mark.parametrize(("num_classes", "ignored", "dtype"), [(255, 255, np.uint8), (256, 65535, np.int32)])
def test_the_widths_go_there_and_back(num_classes, ignored, dtype):
    ids = np.random.default_rng(1).integers(0, num_classes, (9, 11)).astype(np.uint16)
    ids[2:4] = 65535
    found = class_map_of(encode_label_map(ids), 9, 11, num_classes)
    assert found.dtype == dtype
    assert ignore_index_of(num_classes) == ignored
    np.testing.assert_array_equal(found, np.where(ids == 65535, ignored, ids))
    assert runs_of(found, num_classes) == encode_label_map(ids)
    assert runs_of(found.astype(np.int64), num_classes) == encode_label_map(ids)


@pytest.mark.parametrize("value", [-1, 4, 254, 256])
def test_other_values_are_refused(value):
    with pytest.raises(ValueError, match=f"holds {value}; expected 0 to 3, or 255"):
        runs_of(np.array([[0, 3], [255, value]]), 4)


def test_a_class_that_the_data_set_lacks_is_refused():
    with pytest.raises(RunsError, match="class id 7 of a data set with 7 classes"):
        class_map_of(encode_label_map(np.full((2, 2), 7, np.uint16)), 2, 2, 7)
