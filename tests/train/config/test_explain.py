import re

from omegaconf import OmegaConf

from maskshards.train.config.explain import WIDTH, help_text, keys
from maskshards.train.config.load import flatten, known_keys
from maskshards.train.config.schema import TrainConfig


def test_every_key_is_explained_once() -> None:
    explained = [key.name for key in keys()]
    sections = {name.rpartition(".")[0] for name in explained}
    assert sorted(explained) == sorted(set(known_keys()) - sections)
    assert all(len(key.rule.meaning) > 5 for key in keys())


def test_defaults_are_those_of_the_schema() -> None:
    tree = OmegaConf.structured(TrainConfig)
    for key in keys():
        if key.default not in ("(must be given)", '""'):
            given = OmegaConf.from_dotlist([f"{key.name}={key.default}"])
            merged = OmegaConf.merge(tree, given)
            assert OmegaConf.select(merged, key.name) == OmegaConf.select(tree, key.name), key


def test_the_help_names_type_default_and_meaning_and_fits() -> None:
    text = help_text()
    assert re.search(r"optimizer\.lr  <number>  = 0\.001\n +learning rate\n", text)
    assert "datasets.root  <text>  = (must be given)" in text
    assert "model_dtype  <FLOAT32 or BFLOAT16>  = FLOAT32" in text
    assert max(map(len, text.splitlines())) <= WIDTH
    assert set(flatten({"bs": 1})) <= {key.name for key in keys()}
