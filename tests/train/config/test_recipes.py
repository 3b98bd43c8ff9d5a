"""`config=demo` from any directory, files by path, and what an unknown name is told."""

from pathlib import Path

import pytest

from maskshards.train.config.load import load_config
from maskshards.train.config.recipes import PACKAGED, find_recipe, packaged_recipes
from maskshards.train.config.schema import ConfigError


def test_a_packaged_recipe_is_found_by_its_name_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert {"demo", "config-ade20k-m2f-training"} <= set(packaged_recipes())
    assert find_recipe("demo") == PACKAGED / "demo.yaml"
    assert find_recipe("configs/demo.yaml") == PACKAGED / "demo.yaml"
    assert load_config(["config=demo", "datasets.root=x", "output_dir=y"]).bs == 8


def test_a_file_goes_before_a_packaged_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "demo").write_text("bs: 3\n")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/demo.yaml").write_text("bs: 4\n")
    assert find_recipe("demo") == Path("demo")
    assert find_recipe("configs/demo.yaml") == Path("configs/demo.yaml")
    assert find_recipe("~/demo") == tmp_path / "demo"


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"config=dem0: .*did you mean 'demo'\? \(recipes: .*camvid"):
        find_recipe("dem0")
    for word in ("", "https://host/recipe.yaml"):
        with pytest.raises(ConfigError, match="on this machine"):
            find_recipe(word)
