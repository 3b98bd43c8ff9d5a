import pytest

from maskshards.preprocess.errors import BuildError
from maskshards.preprocess.inputs.image_policy import ImagePolicy


def test_what_is_not_used_does_not_stand_in_the_manifest():
    assert ImagePolicy().to_json() == {"convert": False, "max_short_side": 0, "prove": True}
    for policy in (
        ImagePolicy(),
        ImagePolicy(convert=True, scale=(0.0, 4095.0), bands=(3, 2, 1)),
        ImagePolicy(tile=512, overlap=64),
    ):
        assert ImagePolicy.from_json(policy.to_json()) == policy


def test_a_policy_of_a_later_version_is_no_crash():
    with pytest.raises(BuildError, match="the image policy has gamma, which this version does not know"):
        ImagePolicy.from_json({"convert": False, "gamma": 2})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"max_short_side": -1}, "--max-short-side is -1"),
        ({"scale": (1.0, 1.0)}, "--scale 1:1"),
        ({"scale": (0.0, float("inf"))}, "--scale 0:inf"),
        ({"bands": (1, 2)}, "--bands 1,2"),
        ({"bands": (0, 1, 2)}, "--bands 0,1,2"),
        ({"tile": 8}, "--tile is 8"),
        ({"tile": 64, "overlap": 64}, "--tile-overlap is 64"),
        ({"tile": 64, "max_short_side": 9}, "do not go together"),
    ],
)
def test_senseless_settings_are_refused_in_the_words_of_the_command(words, message):
    with pytest.raises(BuildError, match=message):
        ImagePolicy(**words).check()
