"""A frozen backbone: its features are computed once, its classifier learns on them, and what is saved is all of it."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from creature.data import loader
from creature.errors import UserError
from creature.inference.members import load_member
from creature.metrics.predictions import load_predictions
from creature.recipe import Backbone
from creature.recipe_file import load_recipe
from creature.training.backbone import build_backbone
from creature.training.features import FeatureExtractor
from helpers import faults
from helpers.runs import start, weights_hash

FROZEN = ("backbone.frozen=true", "augment.crop_scale=[0.08,1.0]", "optimizer.lr=0.1")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Some weights, as if pretrained on ten classes."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=10).state_dict(), path)
    return path


def settings(weights: Path, *more: str) -> tuple[str, ...]:
    return (*FROZEN, f"backbone.weights={weights}", *more)


def test_each_picture_passes_the_backbone_once_for_all_folds(tiny, weights, tmp_path, monkeypatch):
    extracted = faults.note_calls(monkeypatch, FeatureExtractor, "forward")
    decoded = faults.note_calls(monkeypatch, loader, "Encoded")
    assert start(tiny, tmp_path / "run", *settings(weights, "images.workers=0")) == 0
    seen = [len(call.args[1]) for call in extracted]
    assert sum(seen[1:]) == 72 == len(decoded)  # the first is the check of the classifier's place


def test_the_saved_model_answers_as_its_held_out_predictions_say_and_only_the_classifier_has_moved(
    tiny, drawn, weights, tmp_path
):
    assert start(tiny, tmp_path / "run", *settings(weights, "folds.train=[0]")) == 0
    fold, before = tmp_path / "run/fold-0", load_file(weights)
    after = load_file(fold / "model.safetensors")
    moved = {name for name in after if after[name].shape != before[name].shape or (after[name] != before[name]).any()}
    assert after.keys() == before.keys() and {name.rpartition(".")[2] for name in moved} == {"weight", "bias"}
    assert len(moved) == 2
    held, member = load_predictions(fold / "held_out.safetensors"), load_member(fold, torch.device("cpu"))
    view = member.transform
    seen = np.stack([view(Image.open(drawn / name).convert("RGB")) for name in held.ids])
    with torch.inference_mode():
        logits = member.model(member.normalize(torch.from_numpy(seen))).numpy()
    np.testing.assert_allclose(logits, held.logits, atol=1e-4)


def test_a_resumed_run_is_bitwise_equal(tiny, weights, tmp_path):
    assert start(tiny, tmp_path / "whole", *settings(weights, "folds.train=[0]")) == 0
    faults.start_until_step(2, tiny, tmp_path / "cut", *settings(weights, "folds.train=[0]"))
    assert start(tiny, tmp_path / "cut", *settings(weights, "folds.train=[0]"), resume=True) == 0
    assert weights_hash(tmp_path / "cut/fold-0") == weights_hash(tmp_path / "whole/fold-0")


@pytest.mark.parametrize("setting", ["augment.flip=0.1", "augment.mix=mixup", "images.cache=disk"])
def test_what_a_frozen_backbone_would_not_use_is_refused(tiny, weights, tmp_path, setting):
    with pytest.raises(UserError, match=rf"{setting.split('=')[0].rpartition('.')[0]}.*: is of no use with backbone.f"):
        start(tiny, tmp_path / "run", *settings(weights, setting))


@pytest.mark.parametrize(
    ("setting", "way_out", "message"),
    [
        ("augment.flip=0.1", "augment={}", "remove it, or --set augment={}"),
        ("backbone.freeze_batch_stats=true", "backbone.freeze_batch_stats=false", "set it to false"),
        ("optimizer.layer_decay=0.8", "optimizer.layer_decay=1.0", "set it to 1.0"),
    ],
)
def test_what_to_set_instead_is_told_and_taken(tiny, weights, setting, way_out, message):
    with pytest.raises(UserError) as refused:
        load_recipe(tiny, settings(weights, setting))
    assert f"{message}\n" in f"{refused.value}\n"
    assert load_recipe(tiny, settings(weights, setting, way_out)).backbone.frozen


def test_random_features_are_refused(tiny, tmp_path):
    with pytest.raises(UserError, match=r"backbone.frozen: random features are worth nothing; set backbone.pretrained"):
        start(tiny, tmp_path / "run", *FROZEN)


def test_a_classifier_that_does_not_come_last_is_refused():
    with pytest.raises(UserError, match=r"^backbone.frozen: the classifier of cspresnet50 is not its last layer"):
        model = timm.create_model("test_resnet", num_classes=3)
        forward = model.forward
        model.forward = lambda inputs: forward(inputs) + 1
        FeatureExtractor(model, Backbone(name="cspresnet50", frozen=True), 32)


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "swiftformer_xs"])
def test_a_model_with_several_classifiers_is_refused(name):
    model = build_backbone(Backbone(name=name, pretrained=False), 3, 32)
    with pytest.raises(UserError, match=rf"^backbone.frozen: {name} has several classifiers \(head, head_dist\); set"):
        FeatureExtractor(model, Backbone(name=name, frozen=True), 32)
    with pytest.raises(UserError, match=rf"^backbone.head_start: {name} has several classifiers .* set it to none"):
        FeatureExtractor(model, Backbone(name=name, head_start="probe"), 32)


@pytest.mark.parametrize(
    "settings",
    [
        ("backbone.frozen=true", "augment={}", "optimizer.lr=0.1"),
        ("backbone.head_start=probe", "backbone.freeze_batch_stats=true", "optimizer.lr=1e-9"),
    ],
)
def test_a_classifier_that_is_a_convolution_learns_on_features(tiny, tmp_path, settings):
    torch.manual_seed(3)
    path, run = tmp_path / "w.safetensors", tmp_path / "run"
    save_file(timm.create_model("dla46x_c", num_classes=10).state_dict(), path)
    more = ("backbone.name=dla46x_c", f"backbone.weights={path}", "folds.train=[0]", "schedule.epochs=1")
    assert start(tiny, run, *more, *settings) == 0
    before, after = load_file(path), load_file(run / "fold-0/model.safetensors")
    assert after["fc.weight"].shape == (12, 256, 1, 1) and after["fc.weight"].abs().max() > 0.001
    assert all(torch.allclose(after[key].float(), before[key].float(), atol=1e-5) for key in before if key[:3] != "fc.")


def test_features_are_the_input_of_a_classifier_that_timm_holds_within_a_head():
    model = build_backbone(Backbone(name="sequencer2d_s", pretrained=False), 3, 32)
    extractor = FeatureExtractor(model, Backbone(name="sequencer2d_s", frozen=True), 32)
    image = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        features = extractor(image)
        torch.testing.assert_close(model.get_submodule("head.fc")(features), model(image))
    assert features.shape == (2, 384)
