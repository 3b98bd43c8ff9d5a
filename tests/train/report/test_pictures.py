"""The pictures of a gallery, read back as a browser reads them."""

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from maskshards.train.report.gallery import RIGHT, UNLABELLED, WRONG, GalleryItem
from maskshards.train.report.pages import environment, shown
from maskshards.train.report.palette import class_colours
from maskshards.train.report.pictures import error_colours, pictured

NAMES = ["sky", "<script>alert(1)</script>", "sand", "never"]
KEY = "\"'><script>x</script>&"
VIEWS = [np.random.default_rng(k).integers(0, 255, (6, 8, 3), dtype=np.uint8) for k in range(4)]
REST = {  # what the page shows besides, left empty
    "facts": {"title": "", "state": {"step": 0}, "data": "", "written": "", "command": "", "config_yaml": ""},
    **dict.fromkeys(("style", "miou", "accuracy", "num_images", "best"), ""),
    **dict.fromkeys(
        ("sections", "findings", "charts", "times", "classes", "absent", "confusions", "worst", "spread"), ()
    ),
    "phases": None,
    "next_steps": {},
    "versions": {},
}
ITEM = GalleryItem(KEY, 12.5, (48, 64), (1, 0), *VIEWS)


class Reader(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.captions = "", []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.tags and self.tags[-1][0] == "figcaption" and data.strip():
            self.captions.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def drawn(items: list[GalleryItem]) -> Reader:
    """The page's own macro, fed with the pictures."""
    page = (
        environment().get_template("report.html.j2").make_module({"error_colours": error_colours(), **REST})
    )
    return Reader(str(page.pictures(pictured(items, NAMES))))


def test_four_pictures_have_captions_and_texts_that_name_view_and_key() -> None:
    page = drawn([ITEM])
    views = ["photograph", "labels", "prediction", "errors"]
    assert [image["alt"] for image in page.all("img")] == [f"{view} of {KEY}" for view in views]
    assert [caption for caption in page.captions if caption in views] == views
    assert f"{KEY}: mIoU 12.50, 64 \N{MULTIPLICATION SIGN} 48 px" in page.text


def test_maps_are_stored_without_loss() -> None:
    sources = [image["src"] or "" for image in drawn([ITEM]).all("img")]
    for place in (1, 3):
        data = base64.b64decode(sources[place].removeprefix("data:image/png;base64,"))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), VIEWS[place])


def test_the_legend_has_the_colours_of_the_present_classes_and_of_the_error_map_only() -> None:
    page = drawn([ITEM])
    styles = [attrs["style"] for attrs in page.all("span") if attrs.get("class") == "swatch"]
    table = class_colours(len(NAMES))
    expected = [RIGHT, WRONG, UNLABELLED, table[1], table[0]]
    assert styles == ["background:#{:02x}{:02x}{:02x}".format(*colour) for colour in expected]
    for name in ("right", "wrong", "unlabelled", "sky", NAMES[1]):
        assert name in page.text
    assert "sand" not in page.text
    assert "never" not in page.text


def test_names_are_text_in_every_place() -> None:
    page = drawn([ITEM, ITEM])
    assert {name for name, _ in page.tags} == {"p", "span", "div", "b", "figure", "img", "figcaption"}
    allowed = {"class", "style", "src", "alt"}
    assert all(set(attrs) <= allowed for _, attrs in page.tags)


@pytest.mark.parametrize(("score", "text"), [(float("nan"), "-"), (0.0, "0.00"), (99.999, "100.00")])
def test_scores_have_two_decimals(score: float, text: str) -> None:
    assert shown(score) == text
