import json

import pytest

from maskshards.preprocess.errors import BuildError, Reject, SourceError
from maskshards.preprocess.inputs.image_policy import ImagePolicy
from maskshards.preprocess.inputs.labels import LabelRule
from maskshards.preprocess.plan import BuildSettings, SplitFacts, permute, plan_split
from maskshards.preprocess.sources.folder import FolderSource
from maskshards.preprocess.sources.source import Listing

CLASSES = ("a", "b")


class Listed(FolderSource):
    """A source whose listing is given."""

    def listing(self, split):
        return Listing(self.root[split], (Reject("images/x", "no partner"),))


def listed(names):
    return Listed({"training": tuple(names), "empty": ()}, CLASSES, LabelRule(2))


NAMES = tuple(f"img_{number:03d}.jpg" for number in range(103))


def test_every_sample_once_in_shards_of_nearly_one_size():
    plan = plan_split(listed(NAMES), "training", BuildSettings(samples_per_shard=10))
    shards = [plan.names_of(number) for number in range(plan.facts.num_shards)]
    assert sorted(name for shard in shards for name in shard) == list(NAMES)
    assert {len(shard) for shard in shards} == {9, 10}
    assert plan.facts.shard_name(7) == "training-00007.tar"


def test_the_permutation_is_seeded_and_known():
    assert permute(NAMES, 0) == permute(NAMES, 0) != permute(NAMES, 1)
    assert permute(("a", "b", "c", "d", "e"), 0) == ("a", "e", "b", "d", "c")
    without = tuple(name for name in permute(NAMES, 0) if name != NAMES[5])
    assert without == permute(NAMES[:5] + NAMES[6:], 0)


def test_shards_are_fair_samples():
    plan = plan_split(listed(NAMES), "training", BuildSettings(samples_per_shard=52))
    numbers = [int(name[4:7]) for name in plan.names_of(0)]
    assert 30 < sum(numbers) / len(numbers) < 72


def test_the_digest_names_the_plan():
    base = plan_split(listed(NAMES), "training", BuildSettings()).facts.digest
    assert base == plan_split(listed(NAMES), "training", BuildSettings()).facts.digest
    others = [
        (NAMES[1:], BuildSettings()),
        (NAMES, BuildSettings(samples_per_shard=255)),
        (NAMES, BuildSettings(seed=1)),
        (NAMES, BuildSettings(policy=ImagePolicy(convert=True))),
    ]
    digests = {plan_split(listed(names), "training", settings).facts.digest for names, settings in others}
    assert len(digests | {base}) == 5


def test_facts_and_settings_survive_json():
    settings = BuildSettings(7, 3, ImagePolicy(True, 512))
    assert BuildSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    assert "quality 95 4:4:4" in settings.to_json()["re_encoding"]
    assert "re_encoding" not in BuildSettings().to_json()
    facts = plan_split(listed(NAMES), "training", settings).facts
    assert SplitFacts.from_bytes(facts.to_bytes()) == facts


def test_what_cannot_be_planned():
    with pytest.raises(SourceError, match=r"split 'empty' is empty.*images/x: no partner"):
        plan_split(listed(NAMES), "empty", BuildSettings())
    with pytest.raises(SourceError, match="letters, digits"):
        plan_split(listed(NAMES), "../up", BuildSettings())
    with pytest.raises(BuildError, match="samples-per-shard is 0"):
        BuildSettings(samples_per_shard=0)
    with pytest.raises(BuildError, match="max-short-side is -1"):
        BuildSettings(policy=ImagePolicy(max_short_side=-1))


def test_a_name_that_a_tile_of_another_image_may_get():
    names = ("a.jpg", "a/y000000-x000000.jpg", "b/y000000-x000000.jpg")
    settings = BuildSettings(policy=ImagePolicy(tile=64, overlap=8))
    with pytest.raises(SourceError, match=r"a/y000000-x000000.* has a name that a tile of .*a.* may get"):
        plan_split(listed(names), "training", settings)
    plan_split(listed(names[1:]), "training", settings)
    plan_split(listed(names), "training", BuildSettings())
