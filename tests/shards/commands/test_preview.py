"""The preview: every picture decodes in a real browser, nothing is fetched, and colours tell the truth."""

import base64
import io
import re
import shutil
import subprocess
from argparse import ArgumentParser

import numpy as np
import pytest
from PIL import Image

from maskshards.shards.commands.preview import add_arguments, class_colours, run
from maskshards.shards.format.manifest import Manifest, open_split

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def preview(*words):
    parser = ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(word) for word in words]))


@pytest.fixture(scope="module")
def page(make_split, tmp_path_factory):
    made = make_split("pictured", [5, 0, 3])
    out = tmp_path_factory.mktemp("preview") / "page.html"
    facts = preview(made.folder, "--out", out, "--samples", 6)
    return made, out, facts


def test_the_page_holds_everything_and_refers_to_nothing(page):
    made, out, facts = page
    text = out.read_text()
    assert facts["pictures"] == 6 + 4  # samples, and the classes 0, 3, 7 and 149
    assert text.count("data:image/jpeg;base64,") == text.count("data:image/png;base64,") == 10
    assert not re.search(r"""(src|href)=["'](?!data:)|url\(|@import|https?://""", text)
    assert "default-src 'none'" in text
    assert made.manifest.fingerprint in text
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]


def test_links_in_the_place_of_the_page_are_replaced_not_followed(make_split, tmp_path):
    made = make_split("linked", [2])
    precious, out = tmp_path / "precious", tmp_path / "pages" / "page.html"
    precious.write_text("keep")
    out.parent.mkdir()
    for name in ("page.html", ".page.html.part"):
        (out.parent / name).symlink_to(precious)
    preview(made.folder, "--out", out, "--samples", 1)
    assert precious.read_text() == "keep"
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]
    assert not out.is_symlink()


def test_a_place_that_cannot_hold_the_page_is_told_first(make_split, tmp_path):
    made = make_split("unplaced", [2])
    with pytest.raises(OSError, match=r"--out .* is a folder; name an HTML file"):
        preview(made.folder, "--out", tmp_path)
    with pytest.raises(OSError, match="lies in a folder that does not exist"):
        preview(made.folder, "--out", tmp_path / "nowhere/page.html")


def test_masks_are_drawn_in_the_colours_of_their_classes(page):
    made, out, _ = page
    colours = class_colours(open_split(made.folder))
    figure = re.search(r"base64,([^\"]+)\"></div><figcaption><b>(\w+)</b>", out.read_text())
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(figure[1]))))
    _, class_map = made.truth[figure[2]]
    inside = class_map != 65535
    assert drawn.shape == (*class_map.shape, 4)  # smaller than a thumbnail, so not scaled
    assert np.array_equal(drawn[..., 3] == 255, inside)
    assert np.array_equal(drawn[inside][:, :3], colours[class_map[inside]])


@pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")
def test_every_picture_is_shown_by_a_browser_without_network(page, tmp_path):
    _, out, facts = page
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    words += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path}", out.as_uri()]
    done = subprocess.run([CHROMIUM, *words], capture_output=True, text=True, timeout=900)
    count = 2 * facts["pictures"]
    assert f"{count} of {count} pictures shown" in done.stdout


def test_names_from_strangers_cannot_become_markup(make_split, tmp_path):
    from dataclasses import replace

    from maskshards.shards.format.manifest import write_split

    made = make_split("hostile", [2])
    rows = open_split(made.folder).index(0)
    evil = "</script><script>alert(1)</script>"
    classes = tuple(f"{evil}{n}" for n in range(150))
    write_split(
        made.folder, replace(made.manifest, classes=classes, dataset=evil), [list(map(rows.entry, (0, 1)))]
    )
    preview(made.folder, "--out", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "<script>alert" not in text
    assert text.count("<script") == 2
    assert "&lt;script&gt;alert" in text


def test_the_palette_of_the_data_set_is_used(make_split):
    split = open_split(make_split("coloured", [1]).folder)
    assert len({tuple(colour) for colour in class_colours(split).tolist()}) == 150
    split.manifest = Manifest("d", "s", ("a", "b"), (), palette=((1, 2, 3), (9, 8, 7)))
    assert class_colours(split).tolist() == [[1, 2, 3], [9, 8, 7]]


def test_large_images_are_made_smaller(tmp_path):
    from maskshards.shards.commands.preview import _decoded
    from maskshards.shards.format.record import Record
    from maskshards.shards.format.rle import encode_label_map

    buffer = io.BytesIO()
    Image.new("RGB", (900, 300), (200, 0, 0)).save(buffer, "PNG")
    class_map = np.repeat(np.array([[4], [65535], [9]], np.uint16), 100, axis=0).repeat(900, axis=1)
    record = Record("wide", buffer.getvalue(), "png", 300, 900, encode_label_map(class_map), {})
    photo, classes = _decoded(record, 90)
    assert photo.size == (90, 30)
    assert classes[:, 0].tolist() == [4] * 10 + [65535] * 10 + [9] * 10


@pytest.mark.parametrize("words", [["--samples", 0], ["--examples", -1]])
def test_senseless_numbers_are_refused_and_nothing_is_written(page, tmp_path, words):
    with pytest.raises(ValueError, match="at least"):
        preview(page[0].folder, "--out", tmp_path / "x.html", *words)
    assert list(tmp_path.iterdir()) == []
