"""The backbone: what timm lacks is refused, weights fit or are refused, and the saved folder is timm's own."""

import json
import socket
import time
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.data.config import resolve_model_data_config
from timm.models import get_deprecated_models  # type: ignore[attr-defined]
from torch import nn

from creature.data.eval_transform import EvalTransform
from creature.errors import UserError
from creature.recipe import Backbone, Optimizer
from creature.training import backbone as backbone_module
from creature.training.backbone import (
    build_backbone,
    check_backbone,
    classifier_prefixes,
    mean_and_std,
    timm_config,
)
from creature.training.checkpoint import host_weights, save_weights
from creature.training.loop import train_mode
from creature.training.optimizer import build_optimizer, parameter_groups

NAMES = ("ant", "bee", "cat")
TAGGED = "test_resnet.r160_in1k"


def scratch(name: str = "test_resnet", **settings) -> Backbone:
    return Backbone(name=name, pretrained=False, **settings)


def built(name: str = "test_resnet", size: int = 32, classes: int = 3, **settings) -> nn.Module:
    torch.manual_seed(0)
    return build_backbone(scratch(name, **settings), classes, size)


def noise(size: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


# What is refused before anything is read


def test_an_unknown_model_is_refused_with_the_nearest_names():
    with pytest.raises(
        UserError, match=r"backbone\.name: timm has no model 'test_resnt'; did you mean test_resnet or "
    ):
        check_backbone(scratch("test_resnt"))


@pytest.mark.parametrize("name", ["", "qqqqqqqqqqqq", "../resnet50"])
def test_a_name_that_is_like_no_other_is_refused(name):
    with pytest.raises(UserError, match=r"backbone\.name: timm has no model"):
        check_backbone(scratch(name))


@pytest.mark.parametrize("pretrained", [True, False])
def test_an_unknown_tag_is_refused_with_the_known_ones(pretrained):
    with pytest.raises(UserError, match=r"has no weights 'test_resnet\.nope'; there are: test_resnet\.r160_in1k"):
        check_backbone(Backbone(name="test_resnet.nope", pretrained=pretrained))


def test_a_weights_file_that_is_not_there_is_refused(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(UserError, match=r"backbone\.weights: no such file"):
            check_backbone(scratch(weights=str(path)))


def test_a_model_without_pretrained_weights_starts_from_scratch_or_a_file(tmp_path):
    with_weights = {name.partition(".")[0] for name in timm.list_pretrained()}
    name = next(name for name in timm.list_models() if name not in with_weights)
    with pytest.raises(UserError, match=r"backbone\.pretrained: .* set backbone\.pretrained=false"):
        check_backbone(Backbone(name=name))
    check_backbone(scratch(name))
    (tmp_path / "w.safetensors").write_bytes(b"")
    check_backbone(Backbone(name=name, weights=str(tmp_path / "w.safetensors")))


def test_a_model_s_earlier_name_leads_to_its_present_one():
    names = get_deprecated_models()
    assert len(names) > 100 and names["tf_efficientnet_b0_ns"] == "tf_efficientnet_b0.ns_jft_in1k"
    for name in names:
        with pytest.raises(UserError, match=rf"timm calls the model {name} \S+ now; give that name") as caught:
            check_backbone(Backbone(name=name))
        check_backbone(Backbone(name=str(caught.value).split()[-5]))


@pytest.mark.parametrize("name", ["test_resnet", TAGGED])
def test_what_timm_has_is_accepted(name):
    check_backbone(Backbone(name=name))


# Pretrained weights


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, and a network that answers nothing; whoever waits for it fails."""

    def unreachable(*_, **__):
        raise socket.gaierror("Name or service not known")

    def wait(_):
        raise AssertionError("waits for a network that is not there")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr(socket, "create_connection", unreachable)
    monkeypatch.setattr(time, "sleep", wait)
    return tmp_path / "hub"


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_network_both_ways_out_are_named_at_once(cache, monkeypatch, offline):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(UserError) as refused:
        build_backbone(Backbone(name=TAGGED), 3, 32)
    assert "backbone.weights=" in str(refused.value) and "backbone.pretrained=false" in str(refused.value)
    assert ("offline mode" if offline else "Name or service not known") in str(refused.value)


@pytest.mark.parametrize("offline", [True, False])
def test_cached_weights_need_no_network(cache, monkeypatch, offline):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    donor, repository = timm.create_model("test_resnet", num_classes=1000), cache / f"models--timm--{TAGGED}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_weights(repository / "snapshots" / ("0" * 40) / "model.safetensors", host_weights(donor))
    model = build_backbone(Backbone(name=TAGGED), 3, 32)
    run_copy, given = model.state_dict(), donor.state_dict()
    assert run_copy["fc.weight"].shape == (3, given["fc.weight"].shape[1]) and run_copy["fc.weight"].abs().max() == 0
    assert all(torch.equal(run_copy[key], given[key]) for key in run_copy if not key.startswith("fc."))


def test_pretrained_weights_that_timm_cannot_resample_name_their_size(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("Error(s) in loading state_dict for Pit:\n\tsize mismatch for pos_embed: copying a param")

    monkeypatch.setattr(timm, "create_model", fail)
    monkeypatch.setattr(backbone_module, "reach_weights", lambda _: None)
    with pytest.raises(UserError, match=r"images\.size: must be 224 for the weights of pit_ti_224"):
        build_backbone(Backbone(name="pit_ti_224"), 3, 32)


# Weights from a file


def tensors() -> dict[str, torch.Tensor]:
    return {key: tensor.contiguous() for key, tensor in built().state_dict().items()}


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("classes", [3, 7])
def test_a_file_gives_all_weights_but_a_classifier_of_another_width_starts_at_zero(tmp_path, name, classes):
    torch.manual_seed(1)
    size: dict[str, Any] = {"img_size": 32} if name == "test_vit" else {}
    donor = timm.create_model(name, num_classes=classes, **size)
    save_weights(tmp_path / "w.safetensors", host_weights(donor))
    given = donor.state_dict()
    model = built(name, weights=str(tmp_path / "w.safetensors"))
    for key, tensor in model.state_dict().items():
        replaced = key.startswith(classifier_prefixes(model)) and classes != 3
        assert torch.equal(tensor, torch.zeros_like(tensor) if replaced else given[key]), key


def test_a_file_without_a_classifier_and_of_half_precision_fits(tmp_path):
    given = {key: tensor.half() for key, tensor in tensors().items() if not key.startswith("fc.")}
    save_file(given, tmp_path / "w.safetensors")
    run_copy = built(weights=str(tmp_path / "w.safetensors")).state_dict()
    assert run_copy["conv1.0.weight"].dtype == torch.float32
    assert torch.equal(run_copy["conv1.0.weight"], given["conv1.0.weight"].float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("conv1.0.weight"), "conv1.0.weight: missing in the file"),
        (lambda w: w.update(extra=torch.zeros(1)), "extra: not in the model"),
        (lambda w: w.update({"bn1.bias": torch.zeros(5)}), "bn1.bias: (5,) in the file, ("),
    ],
)
def test_any_other_mismatch_lists_the_keys(tmp_path, change, message):
    weights = tensors()
    change(weights)
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(UserError) as refused:
        built(weights=str(tmp_path / "w.safetensors"))
    assert message in str(refused.value) and len(str(refused.value).splitlines()) == 2


def test_the_weights_of_another_architecture_list_ten_keys_and_count_the_rest(tmp_path):
    save_weights(tmp_path / "w.safetensors", host_weights(timm.create_model("test_vit")))
    with pytest.raises(UserError, match=r"and \d+ more") as refused:
        built(weights=str(tmp_path / "w.safetensors"))
    assert len(str(refused.value).splitlines()) == 12


@pytest.mark.parametrize(("name", "size"), [("test_vit", 48), ("deit_tiny_distilled_patch16_224", 64)])
def test_a_file_of_another_input_size_is_resampled_as_timm_does(tmp_path, name, size):
    torch.manual_seed(1)
    path = tmp_path / "w.safetensors"
    save_weights(path, host_weights(timm.create_model(name, num_classes=3, img_size=32)))
    overlay = {"file": str(path), "num_classes": 3}
    by_timm = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=3, img_size=size)
    model = built(name, size, weights=str(path))
    torch.testing.assert_close(model.state_dict(), by_timm.state_dict(), rtol=0, atol=0)


def test_a_file_that_timm_cannot_resample_may_be_of_another_size(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, host_weights(timm.create_model("pit_ti_224", img_size=64)))
    with pytest.raises(UserError, match=r"does not fit pit_ti_224, or not at this images\.size:\n  pos_embed: "):
        built("pit_ti_224", 32, weights=str(path))


def test_a_file_that_timm_cannot_adapt_to_the_model_is_refused(tmp_path):
    save_file({"patch_embed.proj.weight": torch.zeros(7)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"backbone\.weights: .* does not fit test_vit: "):
        built("test_vit", weights=str(tmp_path / "w.safetensors"))


def test_a_file_that_is_no_safetensors_is_refused(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"PK\x03\x04" * 10)
    with pytest.raises(UserError, match=r"backbone\.weights: .* cannot be read as safetensors"):
        built(weights=str(tmp_path / "w.safetensors"))


# The model


@pytest.mark.parametrize(
    ("name", "size"), [("test_resnet", 48), ("test_vit", 48), ("test_vit", 160), ("test_maxvit", 64)]
)
def test_a_model_has_the_classes_and_the_size_that_were_asked_for(name, size):
    model = built(name, size, classes=5)
    assert model(noise(size)).shape == (2, 5) and model.training
    if name == "test_vit":
        assert model.get_submodule("patch_embed").img_size == (size, size)


@pytest.mark.parametrize(("name", "size"), [("test_vit", 100), ("test_maxvit", 100), ("test_coatnet", 100)])
def test_a_size_that_the_architecture_cannot_take_is_refused(name, size):
    with pytest.raises(UserError, match=rf"images\.size: {name} cannot see 100 x 100 pixels: "):
        built(name, size)


def test_an_encoder_is_refused(monkeypatch):
    encoder = timm.create_model("test_resnet", num_classes=0)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: encoder)
    with pytest.raises(UserError, match=r"backbone\.name: qwen3_vit_88m_enc is an encoder without a classifier"):
        built("qwen3_vit_88m_enc")


def test_channels_last_leaves_other_layers_than_flat_convolutions():
    assert built("lambda_resnet26t")(noise(32)).shape == (2, 3)


def test_a_head_that_starts_from_scratch_is_random():
    assert built().state_dict()["fc.weight"].abs().min() > 0


def test_the_same_seed_gives_the_same_start():
    one, other = built().state_dict(), built().state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_building_leaves_the_statistics_untouched():
    assert all(int(value) == 0 for key, value in built().state_dict().items() if key.endswith("num_batches_tracked"))


@pytest.mark.parametrize("asked", [True, False])
def test_channels_last_is_a_layout_and_no_other_result(asked):
    model = built(channels_last=asked)
    weight = next(p for p in model.parameters() if p.ndim == 4 and min(p.shape) > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last) == asked
    torch.testing.assert_close(model.eval()(noise(32)), built().eval()(noise(32)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_gradient_checkpointing_gives_the_same_gradient(name):
    gradients = []
    for asked in (True, False):
        model = built(name, gradient_checkpointing=asked)
        assert getattr(model, "grad_checkpointing", asked) == asked
        model(noise(32, 4)).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_gradient_checkpointing_that_a_model_lacks_is_refused():
    with pytest.raises(UserError, match=r"backbone\.gradient_checkpointing: dla34 does not support it"):
        built("dla34", gradient_checkpointing=True)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_frozen_statistics_stay_while_the_rest_trains(name, frozen):
    model = built(name)
    running = {key: value.clone() for key, value in model.state_dict().items() if "running" in key}
    model.eval()
    train_mode(model, frozen)
    assert model.training
    model(noise(32, 4)).sum().backward()
    unchanged = [torch.equal(model.state_dict()[key], value) for key, value in running.items()]
    assert unchanged and all(unchanged) == frozen
    assert all(parameter.requires_grad for parameter in model.parameters())


# Normalization, optimizer


def test_normalization_is_none_imagenet_or_the_backbone_s():
    assert mean_and_std("test_vit", "none") == ((0, 0, 0), (1, 1, 1))
    assert mean_and_std("test_vit", "imagenet") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert mean_and_std("test_vit", "backbone") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.parametrize("decay_norms", [True, False])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_norms_and_biases_have_no_decay_and_each_parameter_is_in_one_group(name, decay_norms):
    model = built(name)
    groups = parameter_groups(model, Optimizer(weight_decay=0.3, decay_norms=decay_norms))
    decays = [(id(parameter), group["weight_decay"]) for group in groups for parameter in group["params"]]
    assert sorted(key for key, _ in decays) == sorted(id(parameter) for parameter in model.parameters())
    decay = dict(decays)
    norms = [m for m in model.modules() if isinstance(m, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm))]
    vectors = [parameter for norm in norms for parameter in norm.parameters()]
    vectors += [parameter for key, parameter in model.named_parameters() if key.endswith(".bias")]
    matrices = [m.weight for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    assert vectors and {decay[id(parameter)] for parameter in vectors} == {0.3 if decay_norms else 0.0}
    assert {decay[id(parameter)] for parameter in matrices} == {0.3}


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_an_optimizer_has_the_recipe_s_rate_and_a_decay_for_each_group(name, kind):
    settings = Optimizer(name=name, lr=0.02, weight_decay=0.3)
    optimizer = build_optimizer(parameter_groups(built(), settings), settings)
    assert type(optimizer) is kind and {group["lr"] for group in optimizer.param_groups} == {0.02}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    if name == "sgd":
        assert {(group["momentum"], group["nesterov"]) for group in optimizer.param_groups} == {(0.9, True)}


def test_only_decayed_parameters_shrink_without_a_gradient():
    model, settings = built(), Optimizer(lr=0.1, weight_decay=0.5)
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    build_optimizer(parameter_groups(model, settings), settings).step()
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[key] * (0.95 if parameter.ndim > 1 else 1.0))


# The folder


@pytest.mark.parametrize(
    ("name", "size"), [("test_resnet", 48), ("test_vit", 48), ("test_vit", 160), ("test_convnext", 64), (TAGGED, 40)]
)
def test_timm_loads_the_folder_and_gives_the_same_logits(tmp_path, name, size):
    model = built(name, size).eval()
    config = timm_config(model, NAMES, EvalTransform(size, "border", (0.1, 0.2, 0.3)), std=(0.4, 0.5, 0.6))
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_weights(tmp_path / "model.safetensors", host_weights(model))
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    loaded = loaded.to(memory_format=torch.channels_last)  # as the model is: one thread adds up in another order else
    assert torch.equal(loaded(noise(size)), model(noise(size)))
    data = resolve_model_data_config(loaded)
    assert list(data["input_size"]) == [3, size, size] and (data["crop_mode"], data["crop_pct"]) == ("border", 1.0)
    assert tuple(data["mean"]) == (0.1, 0.2, 0.3) and tuple(data["std"]) == (0.4, 0.5, 0.6)
    written: Any = loaded.pretrained_cfg
    assert loaded.num_classes == 3 and list(written["label_names"]) == list(NAMES)


def test_the_config_names_what_the_weights_are_and_no_class_count_among_the_arguments():
    transform = EvalTransform(48, "squash", (0, 0, 0))
    config = timm_config(built("test_vit", 48), NAMES, transform, std=(1, 1, 1))
    assert config["architecture"] == "test_vit" and config["model_args"] == {"img_size": 48}
    assert config["label_names"] == list(NAMES) and config["num_classes"] == 3 and config["num_features"] > 0
    assert "model_args" not in timm_config(built(), NAMES, transform, std=(1, 1, 1))


@pytest.mark.parametrize("name", ["test_resnet", "coat_lite_tiny"])  # CoaT's have some under several names
def test_saved_weights_hold_every_tensor_as_it_is(tmp_path, name):
    model = built(name)
    save_weights(tmp_path / "w.safetensors", host_weights(model))
    saved = load_file(tmp_path / "w.safetensors")
    assert {key: tensor.shape for key, tensor in saved.items()} == {k: t.shape for k, t in model.state_dict().items()}
    assert all(torch.equal(saved[key], tensor) for key, tensor in model.state_dict().items())
