import importlib.util
import re
from pathlib import Path

import pytest

from maskshards.preprocess.build import execute, plan_jobs
from maskshards.preprocess.destinations.local import LocalDestination
from maskshards.preprocess.destinations.publish import publish_splits
from maskshards.preprocess.inputs.labels import LabelRule
from maskshards.preprocess.plan import BuildSettings
from maskshards.preprocess.sources.source import RawSample, Source
from maskshards.shards.format.manifest import open_split

DOCS = Path(__file__).resolve().parents[3] / "docs/add-a-data-set.md"


def test_a_source_has_to_answer_everything():
    class Half(Source):
        def splits(self):
            return ("training",)

    with pytest.raises(TypeError, match="abstract"):
        Half()


def test_samples_need_no_facts():
    assert dict(RawSample(b"i", b"l").facts) == {}


def test_the_source_in_the_documentation_builds(make_root, tmp_path):
    (program,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len([line for line in program.splitlines() if line]) <= 30
    (tmp_path / "documented.py").write_text(program)
    spec = importlib.util.spec_from_file_location("documented", tmp_path / "documented.py")
    documented = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(documented)
    root = make_root(training=3)
    (root / "images/training").rename(root / "flat")
    (root / "images").rmdir()
    (root / "flat").rename(root / "images")
    (root / "annotations/training").rename(root / "masks")
    source = documented.FlatSource(root, ("a", "b", "c", "d", "e"), LabelRule(5, reduce_zero_label=True))
    settings = BuildSettings(samples_per_shard=2)
    jobs = plan_jobs(
        source, source.splits(), settings, lambda split: LocalDestination(tmp_path / "out" / split)
    )
    execute(jobs, source, settings, map, lambda outcome: None)
    publish_splits([job.destination for job in jobs])
    assert open_split(tmp_path / "out/training").manifest.num_samples == 3
