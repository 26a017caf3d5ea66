"""Moving average, layer decay, drop path and sizes of training views: what each changes in a training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

from creature.data import loader
from creature.data.loader import ImageDataset
from creature.errors import BrokenError, UserError
from creature.metrics.predictions import load_predictions
from creature.recipe import Backbone, Optimizer
from creature.training import checkpoint
from creature.training.backbone import build_backbone
from creature.training.optimizer import exempt_from_decay, parameter_groups
from helpers import faults
from helpers.runs import losses, start, weights_hash

ONE = ("folds.train=[0]", "optimizer.ema_decay=0.9")


def test_what_is_kept_and_judged_is_the_average_of_weights_and_statistics(tiny, tmp_path, monkeypatch):
    states = faults.note_weights(monkeypatch)
    assert start(tiny, tmp_path / "run", *ONE) == 0
    average = states[0]
    for number, state in enumerate(states[1:], 1):
        decay = min(0.9, 1 - (1 + number) ** (-2 / 3))
        average = {
            name: average[name] * decay + value * (1 - decay) if value.is_floating_point() else value
            for name, value in state.items()
        }
    kept = load_file(tmp_path / "run/fold-0/model.safetensors")
    assert kept.keys() == average.keys()
    for name, value in average.items():
        torch.testing.assert_close(kept[name], value, atol=1e-6, rtol=1e-5)
    assert any((kept[name] != states[-1][name]).any() for name in kept if "running_mean" in name)


def test_held_out_rows_are_answered_by_the_average(tiny, drawn, tmp_path):
    assert start(tiny, tmp_path / "run", *ONE) == 0
    fold = tmp_path / "run/fold-0"
    model = timm.create_model(f"local-dir:{fold}", pretrained=True).eval()
    see: Any = create_transform(**resolve_model_data_config(model))
    held = load_predictions(fold / "held_out.safetensors")
    with torch.inference_mode():
        logits = model(torch.stack([see(Image.open(drawn / name)) for name in held.ids]))
    np.testing.assert_allclose(logits, held.logits, atol=1e-5)


def test_a_training_with_an_average_that_is_stopped_goes_on_bitwise(tiny, tmp_path):
    more = (*ONE, "optimizer.layer_decay=0.7", "backbone.drop_path=0.2", "augment.sizes=[24,32]")
    assert start(tiny, tmp_path / "whole", *more) == 0
    faults.start_until_step(2, tiny, tmp_path / "cut", *more)
    assert start(tiny, tmp_path / "cut", *more, resume=True) == 0
    assert weights_hash(tmp_path / "cut/fold-0") == weights_hash(tmp_path / "whole/fold-0")
    assert losses(tmp_path / "cut/fold-0") == losses(tmp_path / "whole/fold-0")


def test_an_average_that_is_lost_is_no_resume_point(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "verifies", lambda folder: (folder / "model.safetensors").exists())
    faults.start_until_step(2, tiny, tmp_path / "run", *ONE)
    for file in (tmp_path / "run").rglob("average.safetensors"):
        file.unlink()
    with pytest.raises(BrokenError, match="no resume point of this model"):
        start(tiny, tmp_path / "run", *ONE, resume=True)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_early_layers_have_less_of_the_rate_and_the_classifier_all_of_it(name):
    model = build_backbone(Backbone(name=name, pretrained=False), 3, 160)
    groups = parameter_groups(model, Optimizer(weight_decay=0.3, layer_decay=0.5))
    scale = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    parameters = list(model.parameters())
    assert len(scale) == len(parameters) == sum(len(group["params"]) for group in groups)
    assert all(scale[id(parameter)] == 1 for parameter in model.get_classifier().parameters())  # type: ignore[operator]
    assert scale[id(parameters[0])] == min(scale.values()) <= 0.25
    exempt = exempt_from_decay(model)
    for key, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.3 if parameter.ndim > 1 and key not in exempt else 0)


def test_each_group_learns_at_its_share_of_the_rate(tiny, tmp_path, monkeypatch):
    rates, step = [], torch.optim.AdamW.step

    def noted(self, *words):
        rates.append({(group["lr_scale"], group["lr"]) for group in self.param_groups})
        return step(self, *words)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    assert start(tiny, tmp_path / "run", "folds.train=[0]", "optimizer.layer_decay=0.5") == 0
    assert all(len(each) > 2 for each in rates) and {0.003} == {max(lr for _, lr in rates[0])}
    for each in rates:
        peak = max(lr for _, lr in each)
        assert all(lr == pytest.approx(peak * scale) for scale, lr in each)


def test_blocks_are_dropped_in_training_and_never_in_evaluation():
    torch.manual_seed(0)
    model = build_backbone(Backbone(name="test_convnext", pretrained=False, drop_path=0.9), 3, 32)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.eval()(pixels), model(pixels))
        actual = [model.train()(pixels) for _ in range(4)]
    assert any(not torch.equal(actual[0], other) for other in actual[1:])


def test_a_backbone_without_blocks_to_drop_says_so():
    with pytest.raises(UserError, match=r"backbone\.drop_path: vgg11 has no such blocks"):
        build_backbone(Backbone(name="vgg11", pretrained=False, drop_path=0.1), 3, 32)


def test_training_views_grow_and_held_out_rows_are_seen_in_the_full_size(tiny, tmp_path, monkeypatch):
    sides, get = [], ImageDataset.__getitems__

    def noted(self, items):
        batch = get(self, items)
        sides.append((items[0][1], batch.pixels.shape[-1]))
        return batch

    monkeypatch.setattr(ImageDataset, "__getitems__", noted)
    more = ("folds.train=[0]", "schedule.epochs=5", "augment.sizes=[16,24]")
    assert start(tiny, tmp_path / "run", *more) == 0
    training = [(epoch, side) for epoch, side in sides if side != 32]
    assert training == [(epoch, 16 if epoch < 3 else 24) for epoch in range(5) for _ in range(3)]
    assert len(sides) - len(training) == 5 * 2  # 24 held-out rows, in batches of 16
    config = json.loads((tmp_path / "run/fold-0/config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32]


def test_a_size_that_the_backbone_cannot_see_is_named(tiny, tmp_path):
    with pytest.raises(UserError, match=r"augment\.sizes: vit_tiny_patch16_224 cannot see 64 x 64"):
        start(tiny, tmp_path / "run", "backbone.name=vit_tiny_patch16_224", "augment.sizes=[64,32]")


def test_more_sizes_than_epochs_are_refused(tiny, tmp_path):
    with pytest.raises(UserError, match=r"augment\.sizes: 3 sizes need as many epochs"):
        start(tiny, tmp_path / "run", "augment.sizes=[16,24,32]")


def test_a_cached_training_sees_the_same_sizes(tiny, tmp_path, monkeypatch):
    sides, get = [], loader.ImageDataset.__getitems__
    monkeypatch.setattr(
        loader.ImageDataset,
        "__getitems__",
        lambda self, items: sides.append((batch := get(self, items)).pixels.shape[-1]) or batch,
    )
    assert start(tiny, tmp_path / "run", "folds.train=[0]", "augment.sizes=[16,24]", "images.cache=memory") == 0
    assert sides == [16, 16, 16, 32, 32, 24, 24, 24, 32, 32]


def test_a_frozen_backbone_has_no_use_for_them(tiny, tmp_path):
    settings = (
        "backbone.frozen=true",
        "optimizer.ema_decay=0.9",
        "optimizer.layer_decay=0.5",
        "backbone.drop_path=0.1",
    )
    with pytest.raises(UserError) as refused:
        start(tiny, tmp_path / "run", *settings, "backbone.head_start=probe")
    for setting in ("optimizer.ema_decay", "optimizer.layer_decay", "backbone.drop_path", "backbone.head_start"):
        assert f"{setting}: is of no use" in str(refused.value)
    assert not Path(tmp_path / "run").exists()
