from maskshards.preprocess.errors import Reject, reject_table


def test_every_refused_input_is_a_line():
    rejects = tuple(Reject(f"images/{number}.jpg", "CMYK JPEG") for number in range(500))
    assert reject_table(rejects).splitlines() == [
        f"  images/{number}.jpg: CMYK JPEG" for number in range(500)
    ]
