"""The pages that `make docs` adds: links as the site has them, and a reference that forgets no name."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import maskshards

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pages():
    pytest.importorskip("mkdocs", reason="the extra 'docs' is not installed")
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "docs/site_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def turned(pages, markdown, name):
    return pages.on_page_markdown(markdown, page=SimpleNamespace(file=SimpleNamespace(src_uri=name)))


@pytest.mark.parametrize(
    ("name", "link", "expected"),
    [
        ("index.md", "[models](docs/models.md#heads)", "[models](models.md#heads)"),
        ("index.md", "![seen](docs/images/preview.png)", "![seen](images/preview.png)"),
        ("index.md", "[CHANGELOG.md](CHANGELOG.md)", "[CHANGELOG.md](changelog.md)"),
        ("index.md", "[examples/](examples)", "examples/ (`examples`)"),
        ("models.md", "[training](training.md)", "[training](training.md)"),
        ("models.md", "[a head](../train/model/heads/head.py)", "a head (`train/model/heads/head.py`)"),
        ("benchmarks/train.md", "[back](../benchmarks.md)", "[back](../benchmarks.md)"),
        (
            "models.md",
            "[paper](https://arxiv.org/abs/2112.01527)",
            "[paper](https://arxiv.org/abs/2112.01527)",
        ),
        ("models.md", "[below](#heads)", "[below](#heads)"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(pages, name, link, expected):
    assert turned(pages, link, name) == expected


def test_every_page_is_listed_once(pages):
    config = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader=yaml.SafeLoader)
    sections = [entry for entry in pages.on_config(config)["nav"] if isinstance(entry, dict)]
    listed = [page for entry in sections for found in entry.values() for page in found]
    written = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted([*written, "reference.md", "changelog.md", "contributing.md"])


def test_a_link_to_nothing_ends_the_build(pages):
    with pytest.raises(Exception, match=r"docs/models\.md: a link leads to nowhere\.md"):
        turned(pages, "[x](nowhere.md)", "models.md")


def test_every_public_name_is_in_the_reference(pages):
    text = pages.reference()
    for name in maskshards.__all__:
        home = "maskshards.train.api" if name == "train" else f"maskshards.{maskshards._HOMES[name]}"
        assert f"::: {home}.{name}\n" in text
