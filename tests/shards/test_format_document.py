"""The decoder as the documents print it: with stock webdataset, those lines give every mask."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

from maskshards.shards.format.record import DIGEST_OF_LONG_KEYS, KEPT_OF_LONG_KEYS
from maskshards.shards.format.rle import MAX_PIXELS, MOST_BYTE_LABELS, ZSTD_LEVEL, encode_label_map, pack_runs

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ["docs/format.md", "README.md"]


def printed(document, mark):
    found = re.search(rf"<!-- {mark} -->\n+```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    assert found, f"{document} has no python block after its {mark} mark"
    return found[1]


def printed_decoder(document):
    return printed(document, "decoder")


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
    (tmp_path / "decoder.py").write_text(printed_decoder(DOCUMENTS[0]))
    masks_of = runpy.run_path(str(tmp_path / "decoder.py"))["masks_of"]
    class_map = np.arange(600, dtype=np.uint16).reshape(20, 30)
    masks = masks_of(pack_runs(encode_label_map(class_map), 20, 30))
    assert all(np.array_equal(masks[k], class_map == k) for k in range(600))


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the printed lines are short, not tidy
def test_the_printed_digests_are_those_of_the_files(make_split, tmp_path):
    (tmp_path / "digests.py").write_text(printed("docs/format.md", "digests"))
    check = runpy.run_path(str(tmp_path / "digests.py"))["check"]
    made = make_split("digested", [4, 0, 3])
    check(made.folder)
    facts = (made.folder / "manifest.json").read_text()
    digest = made.manifest.shards[0].index_sha256
    (made.folder / "manifest.json").write_text(facts.replace(digest, "0" * 64))
    with pytest.raises(AssertionError):
        check(made.folder)


def test_the_printed_limits_are_those_of_the_code():
    text = (ROOT / "docs/format.md").read_text()
    assert f"At\nmost 2^{MAX_PIXELS.bit_length() - 1} pixels" in text
    assert MAX_PIXELS == 1 << (MAX_PIXELS.bit_length() - 1)
    assert f"(level {ZSTD_LEVEL})" in text
    assert f"its first {KEPT_OF_LONG_KEYS} characters" in text
    assert f"first {DIGEST_OF_LONG_KEYS} hex digits" in text
    assert f"set if and only if K > {MOST_BYTE_LABELS}" in text
