"""From finished shards to a data set: survey the journals, judge refused inputs, write the manifest last.

Nothing here needs the source, so `finish` can run anywhere once all parts of an array job are done.
Journals are read one at a time, twice, so memory holds a few numbers a shard.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from maskshards.preprocess.destinations.journal import Journal, read_journal
from maskshards.preprocess.destinations.local import PLAN_FILE, Destination
from maskshards.preprocess.errors import BuildError, Reject
from maskshards.preprocess.plan import UNREADABLE, SplitFacts
from maskshards.preprocess.rejects import check_rejects, reject_table
from maskshards.shards.errors import ManifestError
from maskshards.shards.format.index import SampleEntry, ShardInfo
from maskshards.shards.format.manifest import MANIFEST_NAME, Manifest, parse_manifest


@dataclass(frozen=True, slots=True)
class Published:
    """One split that is complete."""

    place: str
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class _Survey:
    """One split before it is published."""

    destination: Destination
    facts: SplitFacts
    shards: tuple[ShardInfo, ...]  # those that hold samples
    rejects: tuple[Reject, ...]  # of the listing and of the shards, by name


def stored_plan(destination: Destination) -> SplitFacts | None:
    """The plan of an unfinished build; None where there is none that can be read."""
    data = destination.read(PLAN_FILE)
    try:
        return None if data is None else SplitFacts.from_bytes(data)
    except UNREADABLE:
        return None


def published(destination: Destination) -> Manifest | None:
    """The manifest of a split that is complete; None where there is none.

    BuildError for one that cannot be read.
    """
    data = destination.read(MANIFEST_NAME)
    try:
        return None if data is None else parse_manifest(data)
    except ManifestError as error:
        raise BuildError(f"{destination}: {error}. Delete the folder, or build to another place") from error


def publish_splits(destinations: Sequence[Destination], allow_rejects: int = 0) -> list[Published]:
    """Publish splits whose shards are all there; all or, where inputs were refused beyond the limit, none."""
    complete = [done for destination in destinations if (done := _finish_published(destination)) is not None]
    finished = {done.place for done in complete}
    surveys = [_survey(destination) for destination in destinations if str(destination) not in finished]
    refused = [(survey.destination, survey.rejects) for survey in surveys]
    check_rejects(refused, allow_rejects, "nothing is published")
    return [*complete, *(_publish(survey) for survey in surveys)]


def _finish_published(destination: Destination) -> Published | None:
    """Clear up behind a builder that was killed between the manifest and its last step."""
    manifest, facts = published(destination), stored_plan(destination)
    if manifest is None or facts is None or manifest.settings.get("plan") != facts.digest:
        return None
    destination.finish()
    return Published(str(destination), manifest)


def _survey(destination: Destination) -> _Survey:
    facts = stored_plan(destination)
    if facts is None:
        raise BuildError(
            f"{destination} holds no build to finish (no {PLAN_FILE}); run: maskshards build ..."
        )
    shards, missing = [], []
    rejects = list(facts.rejects)
    present = set(destination.names())
    for name, journal in _journals(destination, facts):
        if journal is None or journal.plan != facts.digest or name not in present:
            missing.append(name)
        else:
            shards += [journal.shard] if journal.shard.samples else []
            rejects += journal.rejects
    if missing:
        raise BuildError(
            f"{destination}: {len(missing)} of {facts.num_shards} shards are not there yet, the first is "
            f"{missing[0]};"
            " build the remaining parts, then finish"
        )
    if not shards:
        raise BuildError(
            f"{destination}: every input was refused, nothing is left to publish:\n{reject_table(rejects)}"
        )
    return _Survey(destination, facts, tuple(shards), tuple(sorted(rejects, key=lambda reject: reject.name)))


def _journals(destination: Destination, facts: SplitFacts) -> Iterator[tuple[str, Journal | None]]:
    for number in range(facts.num_shards):
        name = facts.shard_name(number)
        yield name, read_journal(destination, name)


def _entries(survey: _Survey) -> Iterator[tuple[SampleEntry, ...]]:
    for shard in survey.shards:
        journal = read_journal(survey.destination, shard.name)
        if journal is None or journal.shard != shard:
            raise BuildError(
                f"{survey.destination}: the journal of {shard.name} changed while the split was being "
                "published"
            )
        yield journal.entries


def _publish(survey: _Survey) -> Published:
    facts, destination = survey.facts, survey.destination
    kept = {shard.name for shard in survey.shards}
    for number in range(facts.num_shards):
        if facts.shard_name(number) not in kept:
            destination.remove(facts.shard_name(number))
    manifest = Manifest(
        dataset=facts.dataset,
        split=facts.split,
        classes=facts.classes,
        palette=facts.palette,
        label_rule=facts.label_rule,
        shards=survey.shards,
        rejects=tuple(asdict(reject) for reject in survey.rejects),
        settings={**facts.settings, "source": facts.source, "plan": facts.digest},
    )
    manifest = destination.write_split(manifest, _entries(survey))
    destination.finish()
    return Published(str(destination), manifest)
