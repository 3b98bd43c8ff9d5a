import pytest

from maskshards.preprocess.destinations.local import LocalDestination
from maskshards.preprocess.errors import Reject, RejectsError
from maskshards.preprocess.rejects import REJECTS_FILE, check_rejects, reject_table


def test_reasons_are_grouped_and_few_of_each_are_shown():
    many = [Reject(f"images/{n}.jpg", f"image without a label map labels/{n}.png") for n in range(500)]
    one = Reject("images/x.jpg", "CMYK JPEG")
    lines = reject_table([one, *many]).splitlines()
    assert lines[:5] == [f"  {reject}" for reject in many[:5]]
    assert lines[5:] == ["    ... and 495 more for the same reason", "  images/x.jpg: CMYK JPEG"]


def test_reasons_without_end_are_counted():
    letters = "abcdefghijklmnopqrstuvwxyz"
    lines = reject_table([Reject("images/1.jpg", f"broken {char * 3}") for char in letters]).splitlines()
    assert len(lines) == 13
    assert lines[-1] == "  ... and 14 more for 14 other reasons"


def test_all_of_them_stand_in_a_file(tmp_path):
    places = [LocalDestination(tmp_path / name) for name in ("training", "validation")]
    rejects = tuple(Reject(f"images/{n}\n.jpg", "CMYK JPEG") for n in range(9))
    check_rejects([(places[0], rejects), (places[1], ())], 9, "nothing is published")
    assert not places[0].names()
    with pytest.raises(RejectsError, match=r"(?s)9 inputs were refused .*so nothing is published") as caught:
        check_rejects([(places[0], rejects), (places[1], ())], 8, "nothing is published")
    assert caught.value.rejects == rejects
    assert f"{tmp_path}/training/{REJECTS_FILE}" in str(caught.value)
    lines = places[0].read(REJECTS_FILE).decode().splitlines()
    assert lines == [f"images/{n}\\n.jpg\tCMYK JPEG" for n in range(9)]
    assert not places[1].names()
