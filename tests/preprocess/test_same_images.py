import shutil

from maskshards.preprocess.__main__ import main
from maskshards.preprocess.same_images import same_image_lines
from maskshards.shards.format.manifest import open_splits


def build(root, out):
    words = ["--dataset", "folder", "--root", str(root), "--classes", str(root / "classes.txt")]
    more = ["--reduce-zero-label", "--out", str(out), "--workers", "1", "--quiet", "--samples-per-shard", "2"]
    assert main(["build", *words, *more]) == 0


def test_copies_under_other_names_are_told(make_root, tmp_path, capsys):
    root = make_root(training=5, validation=3, test=2)
    for number in (0, 3):
        for kind, ending in (("images", "jpg"), ("annotations", "png")):
            source = root / kind / f"training/training_000{number}.{ending}"
            shutil.copy(source, root / kind / f"validation/copy_{number}.{ending}")
    build(root, tmp_path / "out")
    line = "training and validation share 2, byte for byte: they test nothing after training"
    assert f"images: {line}" in capsys.readouterr().out
    splits = open_splits(str(tmp_path / "out"))
    assert same_image_lines(splits) == [line]
    for split in splits:
        split.close()


def test_images_of_one_name_are_not_the_same(make_root, tmp_path, capsys):
    root = make_root(training=2, validation=2)
    for kind, ending in (("images", "jpg"), ("annotations", "png")):
        for number in range(2):
            folder = root / kind / "validation"
            (folder / f"validation_000{number}.{ending}").rename(folder / f"training_000{number}.{ending}")
    build(root, tmp_path / "out")
    assert "images:" not in capsys.readouterr().out
