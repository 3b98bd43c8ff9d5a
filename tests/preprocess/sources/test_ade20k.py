import pytest

from maskshards.preprocess.errors import SourceError
from maskshards.preprocess.sources.ade20k import open_ade20k


def test_counts_are_those_of_the_release_unless_told(make_root):
    root = make_root()
    with pytest.raises(SourceError, match=r"3 pairs.*ADE20K has 20210.*--allow-count-mismatch"):
        open_ade20k(root, None, False).listing("training")
    assert len(open_ade20k(root, None, True).listing("training").names) == 3


def test_missing_splits(make_root):
    root = make_root(training=1)
    with pytest.raises(SourceError, match="no images/validation; found training"):
        open_ade20k(root, None, False).splits()
    assert open_ade20k(root, None, True).splits() == ("training",)


def test_labels_are_fixed_and_classes_come_from_the_release(make_root):
    root = make_root()
    source = open_ade20k(root, None, True)
    assert len(source.classes) == 150
    assert source.label_rule.describe() == "1..150, or 0 for void"
    assert len(source.palette) == 150
    (root / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n1\t0.1\t5\t2\tmoon\n")
    assert open_ade20k(root, None, True).classes == ("moon",)
    assert open_ade20k(root, None, True).palette is None
    assert open_ade20k(root, ("a", "b"), True).classes == ("a", "b")


def test_scene_categories_reach_the_record(make_root):
    root = make_root(training=2)
    (root / "sceneCategories.txt").write_text("training_0000 airport_terminal\n")
    source = open_ade20k(root, None, True)
    found = [source.read(source.item("training", name)).facts for name in source.listing("training").names]
    assert found == [{"scene": "airport_terminal"}, {}]


def test_a_broken_scene_table_is_named(make_root):
    root = make_root(training=1)
    (root / "sceneCategories.txt").write_text("training_0000 a b\n")
    source = open_ade20k(root, None, True)
    with pytest.raises(SourceError, match=r"sceneCategories\.txt, line 1"):
        source.read(source.item("training", "training_0000.jpg"))


def test_real_files_pair_up(real_data):
    source = open_ade20k(real_data / "ade20k", None, True)
    assert source.splits() == ("training", "validation")
    assert [len(source.listing(split).names) for split in source.splits()] == [9, 5]
    assert all(source.listing(split).rejects == () for split in source.splits())
