from preprocess.errors import Reject, reject_table


def test_every_refused_input_is_a_line_until_the_limit():
    rejects = tuple(Reject(f"images/{number}.jpg", "CMYK JPEG") for number in range(5))
    assert reject_table(rejects).splitlines() == [f"  images/{number}.jpg: CMYK JPEG" for number in range(5)]
    assert reject_table(rejects, limit=2).splitlines()[-1] == "  ... and 3 more"
