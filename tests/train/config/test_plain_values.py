"""Nothing in a recipe or a stored configuration is looked up anywhere."""

from pathlib import Path

import pytest

from maskshards.train.config.load import own_settings, read_recipe, to_plain
from maskshards.train.config.plain_values import MOST_BYTES, check_plain, flat
from maskshards.train.config.schema import ConfigError, TrainConfig

LOOKUPS = [
    "${oc.env:SECRET}",
    "evil/${oc.env:SECRET}",
    "${seed}",
    "${oc.select:model.weights}",
    "${oc.decode:'1'}",
    "${nosuch:1}",
]


@pytest.mark.parametrize("text", LOOKUPS)
def test_a_recipe_that_asks_to_look_something_up_is_refused(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f'model: {{weights: "{text}"}}\n')
    with pytest.raises(ConfigError, match=r"model\.weights is .*plain values") as told:
        read_recipe(recipe)
    assert "hunter2" not in str(told.value)


@pytest.mark.parametrize("text", LOOKUPS)
def test_a_stored_configuration_that_asks_to_is_refused(text: str) -> None:
    stored = to_plain(TrainConfig()) | {"datasets": {"root": text}}
    with pytest.raises(ConfigError, match=r"state\.json: datasets\.root is .*plain values"):
        own_settings(stored, "state.json")


def test_lists_and_names_of_keys_are_looked_through() -> None:
    with pytest.raises(ConfigError, match=r"x: a\[1\]\.b is "):
        check_plain({"a": [1, {"b": "${c}"}]}, "x")
    with pytest.raises(ConfigError, match="plain values"):
        check_plain({"${c}": 1}, "x")
    check_plain({"a": ["$x", {"b": "{c}"}], "d": None}, "x")


def test_a_small_file_that_becomes_gigabytes_is_refused(tmp_path: Path) -> None:
    letters = "abcdefgh"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    for one, before in zip(letters[1:], letters, strict=False):
        lines.append(f"{one}: &{one} [{', '.join([f'*{before}'] * 10)}]")
    recipe = tmp_path / "bomb.yaml"
    recipe.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"line 2: \*a is an alias"):
        read_recipe(recipe)
    recipe.write_text("# " + "x" * MOST_BYTES)
    with pytest.raises(ConfigError, match="a recipe is a text of a few thousand"):
        read_recipe(recipe)


def test_lists_in_lists_without_end_are_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("seed:\n  " + "[" * 100_000)
    with pytest.raises(ConfigError, match="line 2: more than 20 lists or mappings in one another"):
        read_recipe(recipe)


def test_code_in_yaml_is_never_run(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"seed: !!python/object/apply:os.system ['touch {tmp_path}/ran']\n")
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        read_recipe(recipe)
    assert not (tmp_path / "ran").exists()


def test_sections_become_dotted_keys():
    assert list(flat({"a": {"b": {"c": 1}, "d": [2]}, "e": None, "f": {}})) == [
        ("a.b.c", 1),
        ("a.d", [2]),
        ("e", None),
    ]


@pytest.mark.parametrize(
    ("word", "number"), [("010", 8), ("1:30", 90), ("0x10", 16), ("0b11", 3), ("-010", -8)]
)
def test_a_number_that_only_yaml_takes_for_one_is_refused_in_a_recipe_too(
    word: str, number: int, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"bs: 2\noutput_dir: {word}\n")
    with pytest.raises(
        ConfigError, match=rf"recipe\.yaml, line 2: {word} is {number} to YAML; write a decimal"
    ):
        read_recipe(recipe)
    recipe.write_text(f"output_dir: '{word}'\nload_from: 08\ninit_from: 1:30x\n")
    assert read_recipe(recipe) == {"output_dir": word, "load_from": "08", "init_from": "1:30x"}
