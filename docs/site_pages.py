"""What `make docs` adds to the pages of this folder: README, changelog and CONTRIBUTING, which stay where
people look for them, and the reference of all public names, from their docstrings.

Links that leave this folder, to code, become its path: a site has no files of the repository. One to a file
that is not there ends the build.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

import maskshards

ROOT = Path(__file__).resolve().parents[1]
MOVED = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(((?![a-z]+:|#)[^)#\s]+)(#[^)]*)?\)")


def on_config(config: Any) -> Any:
    """List the pages that mkdocs.yml does not name: those of benchmarks/ there, others where one looks up."""
    sections = {
        name: pages for entry in config["nav"] if isinstance(entry, dict) for name, pages in entry.items()
    }
    named = {page for pages in sections.values() for page in pages}
    docs = ROOT / "docs"
    for path in sorted(docs.rglob("*.md")):
        name = path.relative_to(docs).as_posix()
        if name not in named:
            sections["Measured" if name.startswith("benchmarks/") else "Look it up"].append(name)
    return config


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages that are not written in this folder."""
    for source, name in MOVED.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text))
    files.append(File.generated(config, "reference.md", content=reference()))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Turn links as they are in the repository into links of the site."""
    name = page.file.src_uri
    source = next((old for old, new in MOVED.items() if new == name), f"docs/{name}")
    here, depth = (ROOT / source).parent, name.count("/")

    def turned(link: re.Match[str]) -> str:
        mark, text, to, anchor = link[1], link[2], link[3], link[4] or ""
        target = (here / to).resolve()
        if not target.exists():
            raise PluginError(f"{source}: a link leads to {to}, which is not there")
        path = target.relative_to(ROOT).as_posix()
        inside = MOVED.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if inside is None or target.is_dir():
            return f"{text} (`{path}`)" if path != text else f"`{path}`"
        return f"{mark}[{text}]({'../' * depth}{inside}{anchor})"

    return markdown if name == "reference.md" else LINK.sub(turned, markdown)


def reference() -> str:
    """The page of the public names, each with signature and docstring."""
    homes = {name: f"maskshards.{home}.{name}" for name, home in maskshards._HOMES.items()}
    homes["train"] = "maskshards.train.api.train"
    lines = [
        "# Reference",
        "",
        "All names are those of `maskshards` (`from maskshards import Loader`), loaded when first used.",
        "",
    ]
    for name in sorted(homes, key=str.lower):
        lines += [f"::: {homes[name]}", ""]
        if name == "train":
            lines += ["::: maskshards.train.api.TrainResult", ""]
    return "\n".join(lines)
