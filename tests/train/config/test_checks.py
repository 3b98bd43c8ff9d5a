import pytest

from maskshards.train.config.checks import side_multiple
from maskshards.train.config.load import load_config
from maskshards.train.config.schema import ConfigError, TrainConfig

GOOD = [
    "output_dir=out", "datasets.root=shards", "datasets.train=training", "datasets.val=validation",
    "model.dino_hub=dinov3_tiny16", "decoder_head.hidden_dim=64",
    "decoder_head.backbone_out_layers=FOUR_EVEN_INTERVALS",
    "transforms.train.img_size=64", "transforms.train.crop_size=[64,96]", "transforms.eval.img_size=64",
    "eval.crop_size=64", "eval.stride=32",
]  # fmt: skip


def load(*arguments: str) -> TrainConfig:
    return load_config([*GOOD, *arguments])


def test_good_settings_pass() -> None:
    assert load().transforms.train.crop_size == [64, 96]
    assert load("compile=backbone", "compile_mode=reduce-overhead").compile == "backbone"
    assert load("compile_mode=graph").compile == "none"


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        (
            "transforms.train.crop_size=[64,80]",
            r"side of 80 px, expected multiples of 32 .* nearest is 64",
        ),
        ("transforms.train.crop_size=[64]", r"expected \[height, width\]"),
        ("transforms.train.crop_size=null", r"needs transforms\.train\.img_size"),
        ("transforms.train.random_img_size_ratio_range=[2.0,0.5]", "low <= high"),
        ("transforms.train.flip_prob=2", "flip_prob"),
        ("step_timeout_s=0", "step_timeout_s is 0"),
        ("step_timeout_s=inf", "step_timeout_s is inf, expected a finite number"),
        ("m2f_train.mask_coefficient=nan", "mask_coefficient is nan, expected a finite number"),
        ("m2f_train.dice_coefficient=-1", "dice_coefficient is -1.0, expected a number at least 0"),
        ("m2f_train.class_coefficient=inf", "class_coefficient is inf, expected a finite number"),
        ("m2f_train.costs_from=feature", "expected one of masks, features .did you mean 'features'"),
        ("transforms.mean=[.nan,0,0]", r"transforms\.mean is .*, expected finite numbers"),
        ("transforms.train.random_img_size_ratio_range=[1,.inf]", "expected finite numbers"),
        ("loader.cache_gb=inf", "cache_gb is inf, expected a finite number"),
        ("transforms.train.jitter=large", "expected one of short_side, fit, lsj"),
        ("transforms.train.photometric=refrence", "expected one of reference, mmseg"),
        ("transforms.std=[1,0,1]", r"transforms\.std"),
        ("transforms.eval.img_size=null", r"transforms\.eval\.img_size"),
        ("transforms.eval.tta_ratios=[]", "tta_ratios"),
        (
            "eval.crop_size=72",
            r"eval\.crop_size has a side of 72 px, .* of 32 .* nearest is 64",
        ),
        ("eval.stride=65", "stride 65, crop 64"),
        ("eval.mode=tiles", "expected one of slide, whole"),
        ("decoder_head.type=upernet", "expected one of m2f, linear"),
        ("decoder_head.backbone_out_layers=LAST", "reads 4 blocks"),
        ("decoder_head.hidden_dim=100", "multiple of 32"),
        ("decoder_head.num_classes=0", "num_classes"),
        ("decoder_head.num_queries=0", "num_queries"),
        ("decoder_head.dropout=1.0", "dropout"),
        ("decoder_head.use_cls_token=True", "does not exist"),
        ("metric_to_save=miou", "expected one of mIoU"),
        ("optimizer.lr=0", r"optimizer\.lr"),
        ("optimizer.beta2=1", r"optimizer\.beta2"),
        ("optimizer.weight_decay=-1", "weight_decay"),
        ("scheduler.total_iter=0", "total_iter"),
        ("eval.eval_interval=0", "eval_interval"),
        ("checkpoint.keep_last=0", "keep_last"),
        ("global_batch=0", "global_batch"),
        ("seed=-1", "seed"),
        ("ema.decay=1", r"ema\.decay"),
        ("loader.decode=tpu", "one of cpu, gpu"),
        ("loader.cache_gb=0", "cache_gb"),
        ("precision=half", "one of mixed, reference"),
        ("compile=all", "compile is 'all', expected one of none, backbone, model"),
        ("compile_mode=fast", "expected one of default, reduce-overhead, max-autotune, graph"),
        ("compile_mode=reduce-overhead", "changes nothing with compile=none"),
        ("model.backbone_precision=int8", "expected one of full, fp8"),
        ("model.backbone_precision=fp8", "fp8 gives bfloat16 features: say model_dtype=BFLOAT16"),
        ("compile_backbone=True", "unknown key 'compile_backbone'"),
        ("datasets.repeat_threshold=0", "repeat_threshold"),
        ("guards.non_finite=ignore", "one of stop, skip"),
        ("model.dino_hub=null", r"model\.dino_hub"),
        ("model.dino_hub=dinov3_vitl14", r"did you mean 'dinov3_vitl16'"),
        ("model.config_file=x.yaml", "config_file"),
        ("output_dir=null", "output_dir"),
    ],
)
def test_each_bad_setting_is_named(argument: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load(argument)


def test_the_published_way_multiplies_masks_out() -> None:
    assert load("precision=reference").m2f_train.costs_from == "masks"
    assert load("m2f_train.costs_from=features", "compile_mode=graph").m2f_train.costs_from == "features"
    with pytest.raises(ConfigError, match=r"precision=reference is .* say m2f_train\.costs_from=masks"):
        load("precision=reference", "m2f_train.costs_from=features")


def test_two_words_for_weights_must_agree() -> None:
    assert load("model.weights=random", "model.pretrained_weights=random").model.weights == "random"
    with pytest.raises(ConfigError, match="different weights"):
        load("model.weights=random", "model.pretrained_weights=other")


def test_checkpoint_words_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        load("load_from=a", "resume_from=b")
    with pytest.raises(ConfigError, match="only resume_from=auto"):
        load("init_from=a", "resume_from=b")
    assert load("init_from=a", "resume_from=auto").init_from == "a"


def test_linear_head_has_cross_entropy_only() -> None:
    with pytest.raises(ConfigError, match="cross entropy only"):
        load("decoder_head.type=linear", "train.diceloss_weight=1")


def test_evaluation_alone_needs_no_training_settings() -> None:
    config = load("load_from=a", "transforms.train.crop_size=null", "datasets.train=''")
    assert config.load_from == "a"


@pytest.mark.parametrize(
    ("hub", "head", "multiple"),
    [
        ("dinov3_vitl16", "m2f", 32),
        ("dinov2_vits14", "m2f", 224),
        ("dinov3_vitl16", "linear", 16),
        ("dinov2_vits14_reg", "linear", 14),
    ],
)
def test_side_multiple_follows_patch_and_head(hub: str, head: str, multiple: int) -> None:
    config = TrainConfig()
    config.model.dino_hub, config.decoder_head.type = hub, head
    assert side_multiple(config) == multiple
