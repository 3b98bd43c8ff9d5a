import unicodedata

import pytest

from maskshards.preprocess.errors import SourceError
from maskshards.preprocess.sources.file_listing import (
    files_below,
    is_junk,
    passed_over_note,
    same_form,
    without_ending,
)


def test_files_below_a_folder(tmp_path):
    for path in ("a/b/c.png", "a/.hidden", "a/Thumbs.db", "a/skip/me.png", "a/.git/x"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    rejects = []
    assert list(files_below(tmp_path, "a", rejects, frozenset({"skip"}))) == ["b/c.png"]
    (tmp_path / "a/link").symlink_to(tmp_path / "a/b")
    list(files_below(tmp_path, "", rejects))
    assert [reject.name for reject in rejects] == ["a/link"]
    with pytest.raises(SourceError, match="cannot be listed: No such file"):
        list(files_below(tmp_path, "nothing", rejects))


def test_names_of_operating_systems():
    assert all(is_junk(name) for name in (".x", "THUMBS.DB", "__MACOSX", "desktop.ini"))
    assert not is_junk("thumbs.png")


def test_endings_and_forms():
    assert without_ending("a/IMG.PNG", ".png") == "a/IMG"
    assert without_ending("a/IMG.png.txt", ".png") is None
    assert same_form(unicodedata.normalize("NFD", "é")) == "é"


def test_the_note_counts_endings():
    paths = ["a.json", "b.JSON", "c.png", "README"]
    assert passed_over_note("gtFine", paths, "of others") == (
        "gtFine: 4 files of others passed over (2 .json, 1 .png, 1 without ending)"
    )
