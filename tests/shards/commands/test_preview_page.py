"""The page's parts that do not need a split: empty ones, and text that is not ASCII."""

import re
from html.parser import HTMLParser

from maskshards.shards.commands.preview_page import Card, Section, html_page

FACTS = {
    "dataset": "straßen & häuser",
    "split": "training",
    "place": "/data/x",
    "fingerprint": "00",
    "samples": 0,
    "shards": 0,
    "bytes": 0,
    "masks": 0,
    "void_share": 0.0,
    "short_sides": {},
    "classes_per_image": {},
    "classes": [],
}


def test_an_empty_split_has_a_page():
    page = html_page([Section(FACTS, [], [], [])])
    assert page.startswith("<!doctype html>")
    assert "straßen &amp; häuser" in page
    assert "0 images in 0 shards" in page
    assert page.count("<section") == 1
    assert "<section" not in html_page([])
    assert 'name="viewport"' in page


def test_text_that_looks_like_a_template_or_markup_is_text():
    hostile = "{{ 7 * 7 }}<script>alert(1)</script>' onmouseover='x"
    classes = [{"id": 0, "name": hostile, "pixels": 1, "images": 1}]
    card = Card(hostile, 2, 3, (hostile,), b"jpeg", b"png")
    page = html_page(
        [Section({**FACTS, "dataset": hostile, "classes": classes}, [(1, 2, 3)], [card], [card])]
    )
    assert "49" not in page.replace("349", "")
    assert page.count("<script") == 2
    tags = Tags()
    tags.feed(page)
    assert not [name for name in tags.attributes if name.startswith("on")]


class Tags(HTMLParser):
    """Names of all attributes."""

    def __init__(self):
        super().__init__()
        self.attributes = set()

    def handle_starttag(self, tag, attributes):
        self.attributes |= {name for name, _ in attributes}


def test_classes_are_listed_commonest_first_and_absent_ones_apart():
    classes = [{"id": n, "name": f"name{n}", "pixels": n * 10, "images": n} for n in range(3)]
    card = Card("k/1", 20, 30, ("name1", "name2, alias"), b"jpeg", b"png")
    page = html_page([Section({**FACTS, "classes": classes}, [(1, 2, 3)] * 3, [card], [])])
    assert page.index("2 name2</span>") < page.index("1 name1</span>")
    assert re.findall(r"width:([\d.]+)%", page) == ["100.00", "50.00"]
    assert "Without a pixel: 0 name0." in page
    assert "<b>k/1</b>, 30x20<br>name1 · name2</figcaption>" in page
    assert "#010203" in page
