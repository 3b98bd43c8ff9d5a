"""The decoder as the documents print it: with stock webdataset, those lines give every mask."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ["docs/format.md", "README.md"]


def printed_decoder(document):
    found = re.search(r"<!-- decoder -->\n+```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    assert found, f"{document} has no python block after its decoder mark"
    return found[1]


# webdataset lets go of its shards without closing them.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore:Exception ignored in.*FileIO:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_printed_decoder_gives_every_mask_from_stock_webdataset(document, make_split, tmp_path):
    (tmp_path / "decoder.py").write_text(printed_decoder(document))
    masks_of = runpy.run_path(str(tmp_path / "decoder.py"))["masks_of"]
    made = make_split("stock", [5, 3])
    shards = [str(path) for path in sorted(made.folder.glob("*.tar"))]
    seen = []
    for sample in wds.WebDataset(shards, shardshuffle=False):
        _, class_map = made.truth[sample["__key__"]]
        masks = masks_of(sample["rle.zst"])
        assert set(masks) == set(np.unique(class_map).tolist()) - {65535}
        for class_id, mask in masks.items():
            assert np.array_equal(mask, class_map == class_id)
        seen.append(sample["__key__"])
    assert seen == made.keys[0] + made.keys[1]


def test_the_decoder_is_the_same_in_all_documents_and_stays_ten_lines():
    texts = {printed_decoder(document) for document in DOCUMENTS}
    assert len(texts) == 1
    assert len([line for line in texts.pop().splitlines() if line.strip()]) <= 10


def test_the_printed_decoder_reads_two_byte_owners(tmp_path):
    from shards.rle import encode_label_map, pack_runs

    (tmp_path / "decoder.py").write_text(printed_decoder(DOCUMENTS[0]))
    masks_of = runpy.run_path(str(tmp_path / "decoder.py"))["masks_of"]
    class_map = np.arange(600, dtype=np.uint16).reshape(20, 30)
    masks = masks_of(pack_runs(encode_label_map(class_map), 20, 30))
    assert all(np.array_equal(masks[k], class_map == k) for k in range(600))
