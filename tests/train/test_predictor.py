"""The model in Python: every form of an image gives the same labels, and answers agree with each other."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import maskshards
from maskshards.train.checkpoint.checkpoint import save_final
from maskshards.train.evaluation.evaluate import evaluation_settings
from maskshards.train.prediction.image_files import PredictError
from maskshards.train.predictor import Predictor, load_model
from tests.train.loopback_hub import loopback_hub
from tests.train.trained_run import NAMES, photo, save_run, small_config, trained


@pytest.fixture(scope="module", params=["linear", "m2f"])
def run(request, tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("trained") / "run", request.param).parent


@pytest.fixture(scope="module")
def model(run):
    return load_model(run, device="cpu")


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    return load_model(save_run(tmp_path_factory.mktemp("linear") / "run"), device="cpu")


def test_the_front_door_offers_it(run):
    assert maskshards.load_model is load_model
    assert maskshards.Predictor is Predictor


def test_classes_are_named(model):
    assert model.num_classes == 4
    assert model.id2label == dict(enumerate(NAMES))
    assert model.label2id["<sand>"] == 2


def test_labels_are_those_of_the_segmenter_asked_by_hand(model):
    image = photo(48, 48)
    config = model.config
    mean, std = torch.tensor(config.transforms.mean), torch.tensor(config.transforms.std)
    pixels = ((torch.from_numpy(image) - mean) / std).permute(2, 0, 1)[None].float()
    expected = model.segmenter.scores(pixels)[0].argmax(0).numpy()
    found = model.predict(image)
    assert found.dtype == np.uint8
    assert len(np.unique(found)) > (model.segmenter.decoder.rules.name == "linear")
    assert np.array_equal(found, expected)
    assert evaluation_settings(config).inference == model.settings
    assert repr(model) == f"Predictor({config.decoder_head.type} head on dinov3_tiny16, 4 classes, cpu)"


def test_every_form_of_an_image_gives_the_same_labels(linear, tmp_path):
    image = photo()
    Image.fromarray(image).save(tmp_path / "photo.png")
    want = linear.predict(image)
    forms = [
        str(tmp_path / "photo.png"),
        tmp_path / "photo.png",
        Image.fromarray(image),
        torch.from_numpy(image),
        torch.from_numpy(image).permute(2, 0, 1),
        image[..., ::-1].copy()[..., ::-1],  # what OpenCV gave, turned
    ]
    for form in forms:
        assert np.array_equal(linear.predict(form), want), type(form)
    together = linear.predict([*forms, photo(33, 90)])
    assert [one.shape for one in together] == [(50, 70)] * len(forms) + [(33, 90)]
    assert all(np.array_equal(one, want) for one in together[:-1])
    assert linear.predict([]) == []


def test_scores_are_probabilities_whose_largest_is_the_label(model):
    image = photo()
    scores = model.scores(image)
    assert scores.shape == (4, 50, 70)
    assert scores.dtype == np.float32
    assert np.allclose(scores.sum(0), 1, atol=1e-5)
    assert scores.min() >= 0
    assert np.array_equal(scores.argmax(0), model.predict(image))
    assert [one.shape for one in model.scores([image, photo(20, 30)])] == [(4, 50, 70), (4, 20, 30)]


def test_scores_agree_with_the_labels_under_augmentation(run):
    model = load_model(
        run, device="cpu", overrides=["eval.use_tta=true", "transforms.eval.tta_ratios=[0.5,1.0]"]
    )
    scores = model.scores(photo())
    assert np.allclose(scores.sum(0), 1, atol=1e-5)
    assert np.array_equal(scores.argmax(0), model.predict(photo()))


def test_segments_are_masks_with_name_and_score(model):
    class_map, scores = model.predict(photo()), model.scores(photo())
    segments = model.segments(photo())
    assert [one["label"] for one in segments] == [NAMES[k] for k in np.unique(class_map)]
    for one in segments:
        k = model.label2id[one["label"]]
        assert one["mask"].mode == "L"
        mask = np.array(one["mask"])
        assert np.array_equal(mask, np.where(class_map == k, 255, 0))
        assert one["score"] == pytest.approx(scores[k][mask > 0].mean(), rel=1e-4)
    assert [len(one) for one in model.segments([photo()])] == [len(segments)]


def test_a_mosaic_is_labelled_at_its_own_scale(linear):
    image = photo(100, 150)
    shrunk, own = linear.predict(image), linear.predict(image, mosaic=True)
    same = load_model_like(linear, None).predict(image)  # no short side: windows of the whole at its own size
    assert (shrunk != own).any()
    assert np.array_equal(own, same)


def load_model_like(model, image_px):
    """The same model, which sees images at short side `image_px`; None: as they come."""
    twin = Predictor(model.segmenter, model.config, model.class_names, model.device, model.state)
    object.__setattr__(twin, "settings", type(model.settings)(crop_px=48, stride_px=32, image_px=image_px))
    return twin


def test_devices_are_checked(linear):
    assert linear.to("cpu") is linear
    with pytest.raises(PredictError, match="device=nosuch is no device"):
        linear.to("nosuch")


@pytest.mark.parametrize(
    ("source", "words", "told"),
    [
        (None, {}, "None is no model: expected a run folder"),
        ("", {}, "'' is no model"),
        ("https://host/run", {}, "'https://host/run' is no model"),
        ("run", {"overrides": "eval.use_tta=true"}, "overrides is one text, 'eval.use_tta=true'"),
        ("run", {"class_names": "abcd"}, "class_names is a str, expected a list of texts"),
        ("run", {"class_names": {0: "a", 1: "b", 2: "c", 3: "d"}}, "class_names is a dict, expected a list"),
        ("run", {"class_names": range(4)}, "class_names is a range, expected a list of texts"),
        ("run", {"class_names": list("abca")}, "class_names holds 'a' twice"),
        ("no/such/run", {}, "no/such/run does not exist"),
    ],
)
def test_what_is_no_model_is_told_in_one_sentence(source, words, told):
    with pytest.raises(ValueError, match=told) as caught:
        load_model(source, **words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["linear", "m2f"])
def test_a_saved_model_comes_back_the_same(kind, tmp_path):
    model = load_model(save_run(tmp_path / "run", kind), device="cpu")
    model.save_pretrained(tmp_path / "shared")
    model.save_pretrained(tmp_path / "shared")  # in the place of the first
    names = sorted(path.name for path in (tmp_path / "shared").iterdir())
    assert names == ["README.md", "config.json", "model.safetensors"]
    for again in (
        Predictor.from_pretrained(tmp_path / "shared", device="cpu"),
        load_model(tmp_path / "shared"),
    ):
        assert again.id2label == model.id2label
        assert np.array_equal(again.predict(photo()), model.predict(photo()))
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "trained on beach for 1 step: mIoU 61.25" in card
    assert 'maskshards.load_model("' in card


def test_what_is_pushed_to_the_hub_comes_back(linear, tmp_path, monkeypatch):
    with loopback_hub(monkeypatch) as hub:
        linear.push_to_hub("owner/name", token="hf_mine")
        assert sorted(hub.files) == ["README.md", "config.json", "model.safetensors"]
        hub.files |= {"pytorch_model.bin": b"pickled"}  # somebody's, and nothing that is asked for
        fetching = {"revision": "v1", "token": "hf_mine", "cache_dir": tmp_path / "cache"}
        found = Predictor.from_pretrained("owner/name", device="cpu", **fetching)
        assert np.array_equal(found.predict(photo()), linear.predict(photo()))
        assert hub.tokens == {"Bearer hf_mine"}
        assert not list(tmp_path.rglob("pytorch_model.bin"))
        with pytest.raises(PredictError, match="it has no such revision"):
            Predictor.from_pretrained("owner/name", revision="gone")
        del hub.files["config.json"]
        with pytest.raises(PredictError, match="holds no model of maskshards"):
            Predictor.from_pretrained("owner/name", cache_dir=tmp_path / "other")
    again = Predictor.from_pretrained("owner/name", local_files_only=True, **fetching)  # the hub is gone
    assert again.id2label == linear.id2label


def test_a_repository_is_read_by_its_name(linear, tmp_path, monkeypatch):
    with loopback_hub(monkeypatch):
        linear.push_to_hub("owner/name")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        found = load_model("owner/name", device="cpu", revision="v1")
        assert np.array_equal(found.predict(photo()), linear.predict(photo()))


def test_from_pretrained_reads_all_that_load_model_reads(tmp_path):
    weights = save_run(tmp_path / "run")
    for place in (tmp_path / "run", str(weights)):
        assert Predictor.from_pretrained(place, device="cpu", class_names=list("abcd")).class_names == tuple(
            "abcd"
        )
    with pytest.raises(ValueError, match="no/such/run does not exist"):
        Predictor.from_pretrained("no/such/run")
    with pytest.raises(TypeError, match="torch_dtype"):
        Predictor.from_pretrained(weights, torch_dtype="auto")


def test_weights_without_facts_need_a_recipe_and_cannot_be_shared(tmp_path):
    bare = tmp_path / "head.pth"
    bare.write_bytes(save_run(tmp_path / "run").read_bytes())
    with pytest.raises(PredictError, match="comes without a configuration"):
        load_model(bare)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model: {dino_hub: dinov3_tiny16, weights: random}\n"
        "decoder_head: {type: linear, num_classes: 4}\n"
        "transforms: {eval: {img_size: 48}}\n"
        "eval: {crop_size: 48, stride: 32}\n"
    )
    model = load_model(bare, recipe=recipe, class_names=list("wxyz"))
    assert model.class_names == ("w", "x", "y", "z")
    with pytest.raises(PredictError, match="without the facts of their run"):
        model.save_pretrained(tmp_path / "shared")
    with pytest.raises(PredictError, match=r"2 class names \(given\) do not fit a model of 4 classes"):
        load_model(bare, recipe=recipe, class_names=["w", "x"])


def test_another_backbone_or_another_scale_of_pixels_is_told(tmp_path, caplog):
    with pytest.raises(ValueError, match=r"with digest 0123, but model\.dino_hub=\w+ from random has digest"):
        load_model(save_run(tmp_path / "other", backbone_digest="0123"))
    run = save_run(tmp_path / "run")
    with caplog.at_level(logging.WARNING):
        load_model(run, overrides=["transforms.mean=[0,0,0]"])
    assert (
        "transforms.mean was [123.675, 116.28, 103.53] in the training and is [0.0, 0.0, 0.0]" in caplog.text
    )


def test_a_strangers_configuration_looks_nothing_up(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    run = save_run(tmp_path / "run")
    facts = json.loads(run.with_suffix(".json").read_text())
    facts["config"]["model"]["weights"] = "evil/${oc.env:SECRET}"
    del facts["checksum"]
    run.with_suffix(".json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="plain values") as told:
        load_model(run)
    assert "hunter2" not in str(told.value)


def test_a_configuration_of_an_older_version_is_read(tmp_path):
    """The key went with its feature; what trained before has it still."""
    segmenter, state = trained(small_config())
    older = replace(state, config=state.config | {"channels_last": False})
    run = save_final(tmp_path, older, segmenter.decoder.state_dict())
    assert load_model(run).num_classes == len(NAMES)


@pytest.mark.parametrize(("recorded", "rule"), [("offset", "offset"), ("size", "size"), (None, "size")])
def test_the_rule_for_positions_is_the_checkpoints(recorded, rule, tmp_path):
    config = small_config()
    config.model.dino_hub, config.model.position_rule = "dinov2_tiny14", recorded
    run = save_run(tmp_path / "run", config=config)
    assert load_model(run).segmenter.backbone.position_rule == rule
    other = {"size": "offset", "offset": "size"}[rule]
    with pytest.raises(ValueError, match=f"position_rule={rule}, not {other}"):
        load_model(run, overrides=[f"model.position_rule={other}"])
