import dataclasses

import pytest

from maskshards.preprocess.destinations.journal import journal_name
from maskshards.preprocess.destinations.local import PLAN_FILE, LocalDestination
from maskshards.preprocess.destinations.publish import publish_splits, published, stored_plan
from maskshards.preprocess.errors import BuildError, Reject, RejectsError
from maskshards.preprocess.inputs.image_policy import ImagePolicy
from maskshards.preprocess.inputs.labels import LabelRule
from maskshards.preprocess.plan import BuildSettings, plan_split
from maskshards.preprocess.shard_task import ShardTask, build_shard
from maskshards.preprocess.sources.folder import FolderSource
from maskshards.shards.format.manifest import open_split


@pytest.fixture
def ready(make_root, tmp_path):
    """A destination with both shards of a split and nothing published."""
    source = FolderSource(
        make_root(training=4), ("a", "b", "c", "d", "e"), LabelRule(5, reduce_zero_label=True)
    )
    plan = plan_split(source, "training", BuildSettings(samples_per_shard=2))
    place = LocalDestination(tmp_path / "out")
    place.write(PLAN_FILE, plan.facts.to_bytes())
    for number in range(2):
        names = plan.names_of(number)
        digest, name = plan.facts.digest, plan.facts.shard_name(number)
        build_shard(ShardTask(source, place, "training", ImagePolicy(), digest, name, names))
    return place


def test_publishing_needs_no_source_and_leaves_no_journal(ready, make_root):
    facts = stored_plan(ready)
    assert published(ready) is None
    (done,) = publish_splits([ready])
    assert done.manifest == published(ready) == open_split(ready.folder).manifest
    assert done.manifest.num_samples == 4
    assert done.manifest.label_rule == {"num_classes": 5, "ignore_index": 255, "reduce_zero_label": True}
    assert done.manifest.settings["plan"] == facts.digest
    assert done.manifest.settings["source"]["kind"] == "folder"
    assert ready.names() == ("manifest.json", "samples.parquet", "training-00000.tar", "training-00001.tar")


@pytest.mark.parametrize("gone", [journal_name("training-00001.tar"), "training-00001.tar"])
def test_missing_shards_are_named(ready, gone):
    ready.remove(gone)
    with pytest.raises(
        BuildError, match=r"1 of 2 shards are not there yet, the first is training-00001\.tar"
    ):
        publish_splits([ready])
    assert published(ready) is None


def test_journals_of_another_plan_do_not_count(ready):
    ready.write(PLAN_FILE, dataclasses.replace(stored_plan(ready), digest="other").to_bytes())
    with pytest.raises(BuildError, match="2 of 2 shards are not there yet"):
        publish_splits([ready])


def test_a_finish_that_was_killed_at_its_last_step_can_be_repeated(ready):
    plan = ready.read(PLAN_FILE)
    (done,) = publish_splits([ready])
    ready.write(PLAN_FILE, plan)
    ready.write(journal_name("training-00001.tar"), b"{}")
    assert publish_splits([ready]) == [done]
    assert ready.names() == ("manifest.json", "samples.parquet", "training-00000.tar", "training-00001.tar")


def test_nothing_to_finish(tmp_path):
    with pytest.raises(BuildError, match="holds no build to finish"):
        publish_splits([LocalDestination(tmp_path)])


def test_rejects_of_the_listing_count_and_are_recorded(ready):
    reject = Reject("images/training/x.jpg", "image without a label map")
    ready.write(PLAN_FILE, dataclasses.replace(stored_plan(ready), rejects=(reject,)).to_bytes())
    with pytest.raises(
        RejectsError, match=r"1 input was refused [^:]*:\s+images.training.x\.jpg: image without"
    ) as refused:
        publish_splits([ready])
    assert refused.value.rejects == (reject,)
    (done,) = publish_splits([ready], allow_rejects=1)
    assert done.manifest.rejects == ({"name": reject.name, "reason": reject.reason},)


def test_a_damaged_manifest_is_no_licence_to_overwrite(ready):
    ready.write("manifest.json", b"{}")
    with pytest.raises(BuildError, match="Delete the folder"):
        published(ready)
