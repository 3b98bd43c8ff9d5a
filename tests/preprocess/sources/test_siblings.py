import pytest

from maskshards.preprocess.sources.siblings import siblings


@pytest.mark.parametrize(
    ("labels", "images", "expected"),
    [
        (["a", "b", "a_color", "b_color"], ["a", "b"], {"a_color": "_color", "b_color": "_color"}),
        (["a", "a_trainIds", "a.x.ids"], ["a"], {"a_trainIds": "_trainIds", "a.x.ids": ".x.ids"}),
        (["x/a", "x/a-vis", "y/a-vis"], ["x/a"], {"x/a-vis": "-vis"}),
        (["a_b", "a_b_c_d"], ["a_b"], {"a_b_c_d": "_c_d"}),
        (["a", "b", "c", "a_color"], ["a", "b", "c"], {}),  # one of three is a label map without its image
        (["a_1", "a_2"], ["a_1"], {}),
        (["a", "a_2"], ["a"], {}),
        (["a_color"], ["a"], {}),  # the only label maps there are
        (["a", "a_color"], ["a", "a_color"], {}),
    ],
)
def test_words_behind_the_names_of_label_maps(labels, images, expected):
    assert siblings(labels, images) == expected
