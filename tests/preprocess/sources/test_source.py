import pytest

from preprocess.sources.source import RawSample, Source


def test_a_source_has_to_answer_everything():
    class Half(Source):
        def splits(self):
            return ("training",)

    with pytest.raises(TypeError, match="abstract"):
        Half()


def test_samples_need_no_facts():
    assert dict(RawSample(b"i", b"l").facts) == {}
