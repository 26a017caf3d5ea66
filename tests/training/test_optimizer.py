"""The optimizer: which parameters are decayed, by how much their layer learns, and its state by parameter name."""

import re
from collections.abc import Sequence

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.optim import list_optimizers  # type: ignore[attr-defined]
from torch import nn
from torch.nn.functional import cross_entropy

from creature.data.loader import Batch
from creature.errors import UserError
from creature.recipe import Backbone, Optimizer
from creature.storage import write_manifest
from creature.training import checkpoint
from creature.training.backbone import build_backbone
from creature.training.learner import Learner
from creature.training.optimizer import (
    build_optimizer,
    check_optimizer,
    exempt_from_decay,
    load_optimizer_tensors,
    offered_optimizers,
    optimizer_tensors,
    parameter_groups,
)
from creature.training.step import StepResult, train_step
from helpers import faults
from helpers.learners import ALONE, make_learner
from helpers.runs import start, weights_hash

EXEMPT = {"pos_embed", "cls_token", "reg_token"}


def built(name: str = "test_vit", size: int = 32) -> nn.Module:
    torch.manual_seed(0)
    return build_backbone(Backbone(name=name, pretrained=False), 3, size)


def decays(model: nn.Module, settings: Optimizer) -> dict[str, float]:
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, settings)
    actual = {names[parameter]: group["weight_decay"] for group in groups for parameter in group["params"]}
    assert actual.keys() == set(names.values()), "a parameter is in no group"
    assert sum(len(group["params"]) for group in groups) == len(names), "a parameter is in two groups"
    return actual


def older_positions(model: nn.Module, settings: Optimizer) -> Sequence[torch.Tensor]:
    """The parameters in the order of the groups, before exemptions were known."""
    if settings.layer_decay < 1:
        from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]

        decay, rate = settings.weight_decay, settings.layer_decay
        groups = param_groups_layer_decay(model, decay, weight_decay_exclude_1d=True, layer_decay=rate)
        return [parameter for group in groups for parameter in group["params"]]
    parameters = list(model.parameters())
    return [p for p in parameters if p.ndim > 1] + [p for p in parameters if p.ndim <= 1]


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
@pytest.mark.parametrize("decay_norms", [False, True])
@pytest.mark.parametrize(
    ("name", "size", "exempt"),
    [
        ("test_vit", 32, EXEMPT),
        ("vit_tiny_patch16_224", 32, EXEMPT),
        ("test_maxvit", 64, {"relative_position_bias_table"}),
        ("xcit_nano_12_p16_224", 32, {"pos_embed", "cls_token"}),  # named by a pattern
    ],
)
def test_what_timm_exempts_is_never_decayed(name, size, exempt, decay_norms, layer_decay):
    model = built(name, size)
    settings = Optimizer(weight_decay=0.3, decay_norms=decay_norms, layer_decay=layer_decay)
    actual = decays(model, settings)
    exempted = {key for key in actual if exempt & set(key.split("."))}
    assert exempted and {actual[key] for key in exempted} == {0.0}
    for key, parameter in model.named_parameters():
        if key not in exempted:
            assert actual[key] == (0.3 if decay_norms or parameter.ndim > 1 else 0.0), key


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_without_exemptions_the_groups_are_in_the_order_that_older_runs_have(name, layer_decay):
    model, settings = built(name), Optimizer(layer_decay=layer_decay)
    assert not exempt_from_decay(model)
    actual = [parameter for group in parameter_groups(model, settings) for parameter in group["params"]]
    assert all(one is other for one, other in zip(actual, older_positions(model, settings), strict=True))


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
@pytest.mark.parametrize("method", ["adamw", "sgd"])
@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
@pytest.mark.parametrize("older", [True, False])
def test_a_state_is_restored_by_name_and_an_older_one_by_position(name, method, layer_decay, older):
    settings = Optimizer(name=method, layer_decay=layer_decay)
    model = built(name)
    optimizer = build_optimizer(parameter_groups(model, settings), settings)
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    saved = optimizer_tensors(optimizer, model)
    names: dict[torch.Tensor, str] = {parameter: key for key, parameter in model.named_parameters()}
    if older:
        places = {names[parameter]: place for place, parameter in enumerate(older_positions(model, settings))}
        saved = {f"{places[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": saved[key] for key in saved}
        assert all(key[0].isdigit() for key in saved)
    other = built(name)
    restored = build_optimizer(parameter_groups(other, settings), settings)
    load_optimizer_tensors(restored, other, settings, tensors=saved)
    expected, actual = optimizer_tensors(optimizer, model), optimizer_tensors(restored, other)
    assert actual.keys() == expected.keys() and len(actual) >= len(names)
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


def test_a_state_of_another_model_is_refused():
    settings = Optimizer()
    model = built()
    optimizer = build_optimizer(parameter_groups(model, settings), settings)
    with pytest.raises(KeyError):
        load_optimizer_tensors(optimizer, model, settings, tensors={"layer9.weight.exp_avg": torch.zeros(1)})


def test_a_resume_point_of_an_older_version_goes_on_bitwise(tiny, tmp_path):
    """Its optimizer is keyed by position; a ViT's positions are others today."""
    settings = ("folds.train=[0]", "backbone.name=test_vit", "optimizer.layer_decay=0.5")
    assert start(tiny, tmp_path / "whole", *settings) == 0
    faults.start_until_step(2, tiny, tmp_path / "cut", *settings)
    (point,) = (tmp_path / "cut/fold-0/state").iterdir()
    saved = load_file(point / "optimizer.safetensors")
    model = build_backbone(Backbone(name="test_vit", pretrained=False), 12, 32)
    positions = older_positions(model, Optimizer(layer_decay=0.5))
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    slots = ("step", "exp_avg", "exp_avg_sq")
    older = {f"{at}.{slot}": saved[f"{names[p]}.{slot}"] for at, p in enumerate(positions) for slot in slots}
    save_file(older, point / "optimizer.safetensors")
    write_manifest(point)
    assert start(tiny, tmp_path / "cut", *settings, resume=True) == 0
    assert weights_hash(tmp_path / "cut/fold-0") == weights_hash(tmp_path / "whole/fold-0")


# All that are offered

OFFERED = [*offered_optimizers(), "lookahead_adamw", "lookahead_lamb"]
SPOILED = (0, 3)  # steps


def small_learner(settings: Optimizer) -> Learner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 20, 3), nn.BatchNorm2d(20), nn.Flatten(), nn.Linear(20 * 4, 18))
    learner = make_learner(
        model, settings, lambda logits, labels: cross_entropy(logits, labels, reduction="none"), batch_sizes=[4] * 100
    )
    learner.learning_rate = lambda epochs: settings.lr * (epochs > 0.015)  # zero in two steps, as a warm-up begins
    return learner


def state_of(learner: Learner) -> dict[str, torch.Tensor]:
    """Copies of weights, statistics and the optimizer's state."""
    model = {f"model.{name}": tensor.clone() for name, tensor in learner.model.state_dict().items()}
    return model | optimizer_tensors(learner.optimizer, learner.model)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def take_steps(learner: Learner, numbers: range) -> None:
    """Steps on images drawn by number, of which those of the spoiled ones are not finite and must change nothing."""
    for number in numbers:
        random = torch.Generator().manual_seed(number)
        pixels = torch.randn(4, 3, 4, 4, generator=random) + (torch.inf if number in SPOILED else 0)
        labels = torch.randint(18, (4,), generator=random)
        before = state_of(learner)
        packed = train_step(ALONE, learner, Batch(pixels, labels, torch.arange(4), list("abcd"), bad={}), number=number)
        skipped, after = not StepResult.unpack([packed])[0].taken, state_of(learner)
        unchanged = same(before, {key: after[key] for key in before})  # a fused one adds zeros, even then
        assert skipped == unchanged == (number in SPOILED)


@pytest.mark.parametrize("name", OFFERED)
def test_every_optimizer_skips_what_is_not_finite_and_goes_on_bitwise(tmp_path, name):
    settings = Optimizer(name=name, lr=0.01)
    whole, cut, resumed = (small_learner(settings) for _ in range(3))
    take_steps(whole, range(16))
    take_steps(cut, range(9))  # lookahead averages after the sixth step that is taken
    checkpoint.save_state(tmp_path, checkpoint.take_snapshot(cut, ALONE))
    assert checkpoint.load_state(tmp_path, resumed, ALONE, settings=settings)
    assert same(state_of(resumed), state_of(cut))
    take_steps(resumed, range(9, 16))
    assert same(state_of(resumed), state_of(whole))


@pytest.mark.parametrize("name", ["lamb", "muon", "lookahead_adan"])
def test_a_run_with_another_optimizer_goes_on_bitwise(tiny, tmp_path, name):
    settings = (
        "folds.train=[0]",
        f"optimizer.name={name}",
        "optimizer.layer_decay=0.8",
        "batch_size=8",
        "backbone.name=test_vit",
    )
    assert start(tiny, tmp_path / "whole", *settings) == 0
    faults.start_until_step(8, tiny, tmp_path / "cut", *settings)
    assert start(tiny, tmp_path / "cut", *settings, resume=True) == 0
    assert weights_hash(tmp_path / "cut/fold-0") == weights_hash(tmp_path / "whole/fold-0")


def test_what_timm_lists_is_offered_or_refused_by_name():
    for name in map(str, list_optimizers()):
        if name in offered_optimizers():
            check_optimizer(name)
            check_optimizer(f"lookahead_{name}")
        else:
            with pytest.raises(UserError, match=f"^optimizer.name: {name} .*; there are: .*adamw"):
                check_optimizer(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lamp", "no optimizer 'lamp'; did you mean lamb"),
        ("AdamW", "no optimizer 'AdamW'; did you mean adamw"),
        ("zzzz", "no optimizer 'zzzz'; there are: adabelief, "),
        ("lookahead_", "no optimizer 'lookahead_'; there are: "),
        ("foo_lamb", "no optimizer 'foo_lamb'; did you mean "),  # of which timm reads the end alone
        ("lookahead_kron", "lookahead_kron draws its updates from a generator of its own"),
        ("adahessian", "adahessian needs second derivatives"),
        ("adamw_schedule_free", "adamw_schedule_free evaluates other weights than it trains"),
        ("schedulefree", "schedulefree evaluates other weights than it trains"),
    ],
)
def test_an_optimizer_that_is_not_offered_is_refused_with_those_that_are(name, message):
    with pytest.raises(UserError, match=re.escape(f"optimizer.name: {message}")) as refused:
        check_optimizer(name)
    assert "muon" in str(refused.value)


def test_an_optimizer_is_checked_before_any_image_is_read(tiny, tmp_path):
    with pytest.raises(UserError, match=r"optimizer.name: no optimizer 'lamp'"):
        start(tiny, tmp_path / "run", "optimizer.name=lamp", "images.train=[/nowhere]")
