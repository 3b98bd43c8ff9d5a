import itertools
import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from maskshards.train.config.load import (
    ConfigError,
    known_keys,
    load_config,
    merge,
    own_settings,
    read_recipe,
    to_config,
    to_plain,
    write_config,
)
from maskshards.train.config.schema import BackboneLayers, ModelDtype, TrainConfig

CONFIGS = Path(__file__).parents[3] / "configs"
GIVEN = ["output_dir=out", "datasets.root=shards", "model.dino_hub=dinov3_vitl16"]


def load(*arguments: str, recipe: str = "config-ade20k-m2f-training") -> TrainConfig:
    return load_config([f"config={CONFIGS / recipe}.yaml", *GIVEN, *arguments])


def from_stored(content: dict[str, Any]) -> TrainConfig:
    """As `load_model` reads what a checkpoint holds."""
    return to_config(merge(own_settings(content, "state.json"), []))


def test_main_recipe_holds_the_published_values() -> None:
    config = load()
    assert (config.bs, config.n_gpus, config.images_per_step) == (2, 8, 16)
    assert (config.metric_to_save, config.model_dtype) == ("mIoU", ModelDtype.BFLOAT16)
    assert (config.scheduler.type, config.scheduler.total_iter) == ("WarmupOneCycleLR", 160000)
    assert config.scheduler.constructor_kwargs == {
        "warmup_iters": 1500, "warmup_ratio": 1e-6, "final_div_factor": "inf", "pct_start": 0,
        "anneal_strategy": "cos", "use_beta1": False, "update_momentum": False,
    }  # fmt: skip
    optimizer = config.optimizer
    assert (optimizer.lr, optimizer.beta1, optimizer.beta2) == (1e-4, 0.9, 0.999)
    assert (optimizer.weight_decay, optimizer.gradient_clip) == (0.05, 0.01)
    assert (config.datasets.train, config.datasets.val) == ("ADE20K:split=TRAIN", "ADE20K:split=VAL")
    head = config.decoder_head
    assert (head.type, head.backbone_out_layers) == ("m2f", BackboneLayers.FOUR_EVEN_INTERVALS)
    assert (head.num_classes, head.hidden_dim) == (150, 2048)
    loss = config.m2f_train
    assert (loss.num_points, loss.oversample_ratio, loss.importance_sample_ratio) == (12544, 3.0, 0.75)
    assert (loss.mask_coefficient, loss.dice_coefficient, loss.class_coefficient) == (5, 5, 2)
    assert loss.no_object_coefficient == 0.1
    train = config.transforms.train
    assert (train.img_size, train.crop_size, train.flip_prob) == (512, [512, 512], 0.5)
    assert train.random_img_size_ratio_range == [0.5, 2.0]
    assert (config.transforms.eval.img_size, config.transforms.eval.tta_ratios) == (896, [1.0])
    evaluation = config.eval
    assert (evaluation.mode, evaluation.crop_size, evaluation.stride) == ("slide", 896, 596)
    assert (evaluation.eval_interval, evaluation.reduce_zero_label, evaluation.use_tta) == (5000, True, False)


def test_narrow_recipe_differs_from_the_main_one_in_width_only() -> None:
    wide, narrow = to_plain(load()), to_plain(load(recipe="config-ade20k-m2f-256-training"))
    assert narrow["decoder_head"].pop("hidden_dim") == 256
    assert wide["decoder_head"].pop("hidden_dim") == 2048
    assert narrow == wide


def test_linear_recipe() -> None:
    config = load(recipe="config-ade20k-linear-training")
    assert (config.decoder_head.type, config.decoder_head.backbone_out_layers) == ("linear", "LAST")
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (1e-3, 1e-3)
    assert math.isinf(config.optimizer.gradient_clip)
    assert (config.eval.crop_size, config.eval.stride, config.eval.eval_interval) == (512, 341, 5000)


def test_inference_recipe_averages_five_scales_and_mirror_images() -> None:
    config = load("load_from=model.pth", recipe="config-ade20k-m2f-inference")
    assert config.transforms.eval.tta_ratios == [0.9, 0.95, 1.0, 1.05, 1.1]
    assert config.eval.use_tta


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_opens_with_its_command_hardware_time_and_score(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    text = "\n".join(line.removeprefix("#").strip() for line in lines)
    commands = [
        shlex.split(one) for one in text.replace("\\\n", " ").splitlines() if "maskshards train " in one
    ]
    (words,) = commands
    launcher, arguments = words[: words.index("train")], words[words.index("train") + 1 :]
    monkeypatch.chdir(CONFIGS.parent)
    config = load_config(arguments)
    assert arguments[0] in (f"config=configs/{path.name}", f"config={path.stem}")
    if launcher[0] == "torchrun":
        assert launcher[launcher.index("--nproc-per-node") + 1] == str(config.n_gpus)
    assert config == load_config([f"config={path}", *arguments[1:]])
    words_of = " ".join(text.split())
    assert re.search(r"Hardware: .*(GPU|CPU)", words_of)
    time = r"\d+:\d\d wall|wall time[^.]*: not yet measured"
    assert re.search(time, words_of, re.IGNORECASE)
    assert re.search(r"Score: \d+\.\d mIoU|score[^.]*: not yet measured", words_of, re.IGNORECASE)


def test_the_short_recipe_names_its_bar() -> None:
    header = (CONFIGS / "config-ade20k-m2f-256-20k.yaml").read_text().split("bs:")[0]
    assert "58.5 mIoU" in header
    assert "PMT" in header


def test_command_line_wins_over_the_recipe() -> None:
    assert load("bs=1", "optimizer.lr=3e-5").optimizer.lr == 3e-5


def test_the_reference_spelling_of_the_output_folder() -> None:
    arguments = [f"config={CONFIGS}/config-ade20k-m2f-training.yaml", *GIVEN[1:], "--output-dir=elsewhere"]
    assert load_config(arguments).output_dir == "elsewhere"


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("optimiser.lr=1", "did you mean 'optimizer.lr'"),
        ("hidden_dim=256", "did you mean 'decoder_head.hidden_dim'"),
        ("eval.max_val_sample=1", "did you mean 'eval.max_val_samples'"),
        ("model_dtype=FLOAT16", "model_dtype: Invalid value 'FLOAT16'"),
        ("bs=two", "bs is 'two', expected a whole number"),
        ("transforms.train.crop_size=64", "transforms.train.crop_size"),
        ("resume", "not of the form key=value"),
        ("demo", "a recipe is config=demo"),
        ("--bs", "keys take no dashes: bs="),
        ("output_dir=runs/${USER}", "the command line: output_dir is 'runs/${USER}'"),
        ("datasets.root=", "datasets.root is empty"),
        ("checkpoint=a.pth", "load_from=..."),
        ("model=dinov3_tiny16", "expected a section of keys (model.dino_hub"),
        ("transforms.train=", "transforms.train is None, expected a section"),
        ("scheduler.total_iter=20k", "scheduler.total_iter is '20k'"),
        ("scheduler.total_iter=1e-3", "scheduler.total_iter is '0.001'"),
        ("seed=None", "seed is 'None'"),
        ("device=cuda", "unknown key 'device'; training takes the CUDA devices"),
        ("max_epochs=5", "unknown key 'max_epochs'; a run is counted in optimiser steps"),
        ("scheduler.type=WarmupPoly", "did you mean 'WarmupPolyLR'"),
    ],
)
def test_bad_arguments_name_key_and_remedy(argument: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(argument)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("scheduler.total_iter=1e3", 1000), ("scheduler.total_iter=2e4", 20000), ("scheduler.total_iter=5", 5)],
)
def test_whole_numbers_as_people_write_them(argument: str, value: int) -> None:
    found = load(argument).scheduler.total_iter
    assert (found, type(found)) == (value, int)


@pytest.mark.parametrize("word", ["null", "None", "none"])
def test_no_limit_in_the_words_of_python_and_of_yaml(word: str) -> None:
    assert load(f"eval.max_val_samples={word}").eval.max_val_samples is None


def test_multipliers_of_rates_by_name(tmp_path: Path) -> None:
    adapter, stem = "segmentation_model.0", "segmentation_model.0.spm.stem"
    config = load(f"optimizer.lr_multipliers.{stem}=1e-1", f"optimizer.lr_multipliers.{adapter}=0.5")
    assert config.optimizer.lr_multipliers == {stem: 0.1, adapter: 0.5}
    write_config(config, tmp_path / "config.yaml")
    again = load_config(
        [f"config={tmp_path / 'config.yaml'}", f"optimizer.lr_multipliers.{adapter}=2", "optimizer.lr=1"]
    )
    assert again.optimizer.lr_multipliers == {stem: 0.1, adapter: 2.0}
    assert again.optimizer.lr == 1
    assert from_stored(to_plain(again)) == again
    whole = load(f"optimizer.lr_multipliers={{{adapter}: 0.25}}")
    assert whole.optimizer.lr_multipliers == {adapter: 0.25}


@pytest.mark.parametrize(
    "argument",
    [
        *(f"optimizer.lr_multipliers.segmentation_model.0={value}" for value in (
            "abc", "0", "-1", "nan", "inf", "[1]", "{a: 1}", "", "null", "{",
        )),
        "optimizer.lr_multipliers={segmentation_model: {0: 0.5}}",
        "optimizer.lr_multipliers.=0.5",
        "optimizer.lr_multipliers=3",
    ],
)  # fmt: skip
def test_bad_multipliers_are_named(argument: str) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.lr_multipliers|the command line cannot be read"):
        load(argument)


def test_bad_key_in_a_recipe_names_the_file(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("optimizer:\n  learning_rate: 1\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: unknown key 'optimizer\.learning_rate'"):
        load_config([f"config={recipe}", *GIVEN])


def test_missing_recipe_lists_its_neighbours() -> None:
    with pytest.raises(ConfigError, match="config-ade20k-m2f-training"):
        load_config([f"config={CONFIGS}/nothing.yaml"])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("ema.decay: 0.9\n", r"ema.decay is no key of a file; write it as ema: {decay: ...}"),
        ("defaults: [demo]\n", "a recipe names no other"),
        ("config: demo\n", "a recipe names no other"),
        ("ema:\n\tdecay: 0.9\n", "indent by spaces, not by tabs"),
        ("bs: 2\nbs: 3\n", "duplicate key bs"),
        ("transforms: {eval: {img_size: 64}, std: [.nan, 1, 1]}\n", "expected finite numbers"),
        ("optimizer: {lr: .inf}\n", "optimizer.lr is inf, expected a finite number above 0"),
    ],
)
def test_a_recipe_that_cannot_be_meant_so(tmp_path: Path, content: str, told: str) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("decoder_head: {type: linear}\n" + content)
    with pytest.raises(ConfigError, match=re.escape(told)):
        load_config([f"config={recipe}", *GIVEN])


def test_a_run_has_one_recipe_and_words_that_can_be_kept() -> None:
    assert load_config(["config=demo", "config=demo", *GIVEN]).bs == 8
    with pytest.raises(ConfigError, match="config= is given twice"):
        load_config(["config=demo", "config=ade20k-vitl", *GIVEN])
    with pytest.raises(ConfigError, match="no UTF-8"):
        load_config(["config=demo", *GIVEN, "output_dir=\udce4"])


@pytest.mark.parametrize("content", ["a: [", "- 1\n- 2\n"])
def test_recipe_that_is_no_mapping(tmp_path: Path, content: str) -> None:
    recipe = tmp_path / "broken.yaml"
    recipe.write_text(content)
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        load_config([f"config={recipe}", *GIVEN])


def test_missing_root_says_what_to_give() -> None:
    with pytest.raises(ConfigError, match=r"datasets\.root has no default"):
        load_config([f"config={CONFIGS}/config-ade20k-m2f-training.yaml", "output_dir=out"])


def test_keys_of_older_versions_are_left_out_with_a_word_where_they_were_set(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load()
    assert from_stored({**to_plain(config), "channels_last": False}) == config
    assert caplog.messages == []
    (tmp_path / "old.yaml").write_text("channels_last: true\nbs: 3\n")
    assert read_recipe(tmp_path / "old.yaml") == {"bs": 3}
    assert "channels_last=True is not used any more" in caplog.text
    with pytest.raises(ConfigError, match="unknown key 'channels_last'"):
        load("channels_last=True")


def test_plain_form_and_yaml_round_trip(tmp_path: Path) -> None:
    config = load("optimizer.gradient_clip=inf", f"output_dir={tmp_path}")
    write_config(config, tmp_path / "config.yaml")
    again = load_config([f"config={tmp_path / 'config.yaml'}"])
    assert again == config
    assert from_stored(to_plain(config)) == config
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["model_dtype"] == "BFLOAT16"


def test_known_keys_hold_sections_and_leaves() -> None:
    keys = set(known_keys())
    assert {"eval", "eval.max_val_samples", "m2f_train.num_points", "transforms.train.crop_size"} <= keys


@pytest.mark.parametrize("word", ["2024_11_29", "007", "1e3", "on", "~tilde", "a: b", 'quo"te', "[x]", "ü ö"])
def test_text_stays_text(word: str) -> None:
    config = load_config(
        ["config=demo", "datasets.root=x", f"output_dir={word}", f"log.wandb_project={word}"]
    )
    assert config.log.wandb_project == word
    assert config.output_dir == word


def test_null_and_quotes_stay_what_they_are() -> None:
    config = load_config(["config=demo", "data='a b'", "out=y", "log.wandb_project=null"])
    assert (config.datasets.root, config.log.wandb_project) == ("a b", None)


def test_home_is_known_in_every_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_config(
        ["config=demo", "data=~/shards", "out=~/run", "model.weights=~/w.pth", "loader.cache_dir=~/c"]
    )
    assert config.datasets.root == f"{tmp_path}/shards"
    assert config.output_dir == f"{tmp_path}/run"
    assert config.model.weights == f"{tmp_path}/w.pth"
    assert config.loader.cache_dir == f"{tmp_path}/c"


def test_shards_and_weights_are_found_again_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").mkdir()
    (tmp_path / "random").mkdir()
    config = load_config(["config=demo", "data=shards", "out=run", "model.weights=random"])
    assert config.datasets.root == str(tmp_path / "shards")
    assert (config.model.weights, config.output_dir) == ("random", "run")
    assert load_config(["config=demo", "data=https://host/a", "out=run"]).datasets.root == "https://host/a"


def test_a_saved_configuration_means_the_same_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "first.pth").touch()
    config = load("init_from=first.pth", "loader.cache_dir=cache", "output_dir=runs/a", "resume_from=auto")
    write_config(config, tmp_path / "config.yaml")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = load_config([f"config={tmp_path / 'config.yaml'}"])
    assert again.init_from == str(tmp_path / "first.pth")
    assert again.loader.cache_dir == str(tmp_path / "cache")
    assert again.output_dir == str(tmp_path / "runs/a")
    assert again.resume_from is None


def test_a_working_folder_that_was_deleted_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(OSError, match="the working folder was deleted; cd into one"):
        load_config(["config=demo", "datasets.root=/shards", "output_dir=run"])


def test_the_words_as_given_stand_above_the_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").mkdir()
    words = ["config=demo", "data=shards", "out=runs/a", "log.wandb_project=two\nbs: 3 \x85bs: 4"]
    write_config(load_config(words), tmp_path / "config.yaml", words)
    first, second, *rest = (tmp_path / "config.yaml").read_text(encoding="utf-8").splitlines()
    assert first.startswith("# given: maskshards train config=demo data=shards out=runs/a 'log")
    assert second == f"# in: {tmp_path}"
    assert not any(line.startswith("#") for line in rest)
    again = load_config([f"config={tmp_path / 'config.yaml'}"])
    assert (again.datasets.root, again.bs) == (str(tmp_path / "shards"), 8)


@pytest.mark.parametrize("word", ["null", "None", "none", ""])
def test_no_split_is_the_split_of_the_usual_name(word: str) -> None:
    datasets = load(f"datasets.val={word}", f"datasets.train={word}").datasets
    assert (datasets.train, datasets.val) == ("", "")


# PyYAML takes each of these tags, and fails at the text in an error of another kind.
WRONG_TEXT = ("!!int ''", "!!bool x", "!!timestamp x", "!!float x", "!!int 0x_", "2001-99-99", "9" * 5000)


@pytest.mark.parametrize("text", WRONG_TEXT, ids=lambda text: text[:12])
def test_a_value_whose_text_is_not_of_its_tag_is_our_error(text: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"seed: {text}\n")
    with pytest.raises(ConfigError, match=r"cannot be read as YAML|seed"):
        load_config([f"config={recipe}", "output_dir=o"])
    with pytest.raises(ConfigError, match=r"the command line cannot be read|seed"):
        load_config([f"seed={text}", "output_dir=o"])
