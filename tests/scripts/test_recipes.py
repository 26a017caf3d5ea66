"""Every recipe that the project ships: it loads, says what it costs, builds, and takes one step."""

import math
import re
from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file

import train
from creature.data.loader import start_loader
from creature.data.order import BatchRequest
from creature.recipe import recipe_changes
from creature.recipe_file import load_recipe
from creature.training import loop
from creature.training.backbone import build_backbone
from creature.training.distributed import start_accelerator
from creature.training.features import add_features
from creature.training.learner import build_learner
from creature.training.train_data import prepare_data
from helpers import ROOT

RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


def test_all_recipes_are_tested():
    assert [str(path.relative_to(ROOT / "recipes")) for path in RECIPES] == [
        "all.yaml",
        "best.yaml",
        "fair/all.yaml",
        "fair/backbones/resnest101.yaml",
        "fair/backbones/resnet152.yaml",
        "fair/baseline.yaml",
        "fair/five_fold.yaml",
        "fair/focal.yaml",
        "fair/logit_adjust.yaml",
        "fair/mixup_cutmix.yaml",
        "fair/normalization.yaml",
        "fair/rand_augment.yaml",
        "fair/trivial_augment.yaml",
        "fair/warm_restarts.yaml",
        "head.yaml",
        "laptop.yaml",
        "paper/backbones/resnest101.yaml",
        "paper/backbones/resnet152.yaml",
        "paper/backbones/resnext101.yaml",
        "paper/five_fold.yaml",
        "paper/focal.yaml",
        "paper/mixup_cutmix.yaml",
        "paper/normalization.yaml",
        "paper/rand_augment.yaml",
        "paper/resnext.yaml",
        "paper/trivial_augment.yaml",
        "quickstart.yaml",
        "student.yaml",
    ]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "recipes"))[:-5])
def test_a_recipe_s_header_says_command_cost_and_expectation(path: Path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(header)
    assert all(re.search(rf"^# {word}:", text, re.M) for word in ("Run", "Needs", "Expect"))
    assert f"{'--distill' if path.stem == 'student' else '--recipe'} {path.relative_to(ROOT)}" in text
    assert load_recipe(path).name == ("fair_" if "fair" in path.parts else "") + path.stem


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "recipes"))[:-5])
def test_a_recipe_builds_and_takes_one_step(path: Path, drawn: Path, tmp_path: Path):
    """Batch 2 at the recipe's own size, from scratch where weights would be fetched."""
    shipped = load_recipe(path, [])
    one_model, frozen = shipped.folds.count == 1, shipped.backbone.frozen
    settings = [f"images.train=[{drawn / 'train'}]", "images.workers=0", "backbone.pretrained=false", "device=cpu"]
    settings += ["batch_size=2"] + ([f"images.validation=[{tmp_path / 'val'}]"] if one_model else [])
    if shipped.backbone.head_start == "probe":
        settings.append("backbone.head_start=none")  # which has tests of its own, and here no weights to start from
    if frozen:
        name = shipped.backbone.name.partition(".")[0]
        save_file(timm.create_model(name).state_dict(), tmp_path / "w.safetensors")
        settings.append(f"backbone.weights={tmp_path / 'w.safetensors'}")
    for species in (drawn / "train").iterdir():
        (tmp_path / "val" / species.name).mkdir(parents=True)
    (tmp_path / "val/fish/00001.jpg").write_bytes((drawn / "train/fish/00001.jpg").read_bytes() + b"\\0")
    recipe = load_recipe(path, settings)
    accelerator = start_accelerator(recipe, tmp_path / "run")
    data = prepare_data(accelerator, recipe, tmp_path / "run", resume=False)
    with start_loader(data.images, 0, 0, device=accelerator.device) as make_batches:
        if frozen:
            data, make_batches = add_features(
                accelerator, data, make_batches, backbone=recipe.backbone, images=recipe.images
            )
        rows = (~data.folds.held_out(0)).nonzero()[0][:2]
        batch = next(make_batches([BatchRequest([(int(row), 0) for row in rows])]))
    learner = build_learner(accelerator, recipe, data, fold=0)
    learner.model = accelerator.prepare(learner.model)
    loop.train_mode(learner.model, recipe.backbone.freeze_batch_stats)
    before = [parameter.detach().clone() for parameter in learner.model.parameters()]
    (result,) = loop.StepResult.unpack([loop.train_step(accelerator, learner, batch, number=5)])
    assert result.taken and math.isfinite(result.loss)
    assert any((a != b).any() for a, b in zip(before, learner.model.parameters(), strict=True))


def test_the_report_s_network_has_its_parameters():
    backbone = load_recipe(ROOT / "recipes/all.yaml", ["backbone.pretrained=false"]).backbone
    model = build_backbone(backbone, 100, 224)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == 81.6


def test_the_report_s_methods_are_what_the_report_says():
    resnext, five, mixed, everything = (
        load_recipe(ROOT / "recipes" / f"{name}.yaml")
        for name in ("paper/resnext", "paper/five_fold", "paper/mixup_cutmix", "all")
    )
    assert (resnext.folds.count, mixed.folds.count, five.folds.count, everything.folds.count) == (1, 1, 5, 5)
    assert (resnext.augment.mix, five.augment.mix) == ("none", "none")
    assert (mixed.augment.mix, everything.augment.mix) == ("mixup_or_cutmix", "mixup_or_cutmix")
    for recipe in (resnext, five, mixed, everything):
        assert (recipe.images.size, recipe.images.crop_mode, recipe.images.normalize) == (224, "squash", "none")
        assert (recipe.optimizer.lr, recipe.optimizer.weight_decay, recipe.optimizer.decay_norms) == (1e-4, 0.01, True)
        assert (recipe.schedule.epochs, recipe.batch_size, recipe.augment.rotation) == (80, 64, 15)


FACTORS = {
    "all": ["augment.mix"],
    "backbones/resnest101": ["backbone.name"],
    "backbones/resnet152": ["backbone.name"],
    "five_fold": [],
    "focal": ["loss.name"],
    "logit_adjust": ["loss.balance"],
    "mixup_cutmix": ["augment.mix"],
    "normalization": ["images.normalize"],
    "rand_augment": ["augment.policy"],
    "trivial_augment": ["augment.policy"],
    "warm_restarts": ["schedule.name", "schedule.update"],
}


def test_fair_recipes_change_one_factor_and_share_their_folds():
    folder = ROOT / "recipes/fair"
    baseline = load_recipe(folder / "baseline.yaml")
    actual = {str(path.relative_to(folder))[:-5]: load_recipe(path) for path in folder.rglob("*.yaml")}
    assert set(actual) == {*FACTORS, "baseline"}
    for name, keys in FACTORS.items():
        changes = [change.partition(":")[0] for change in recipe_changes(baseline, actual[name])]
        assert changes == keys, name
        assert actual[name].images == baseline.images or keys == ["images.normalize"]
        assert actual[name].train_folds == (tuple(range(5)) if name in ("five_fold", "all") else (0,))


def test_the_report_s_tricks_are_what_the_report_s_code_did():
    recipes = {path.stem: load_recipe(path) for path in (ROOT / "recipes/paper").rglob("*.yaml")}
    base = recipes["resnext"]
    changes = {name: sorted(recipe_changes(base, recipe)) for name, recipe in recipes.items()}
    focal = ['loss.name: "cross_entropy" -> "focal"', "schedule.epochs: 80 -> 50"]
    assert changes["focal"] == focal
    assert changes["normalization"] == ['images.normalize: "none" -> "imagenet"', *focal]
    for policy in ("rand_augment", "trivial_augment"):
        assert changes[policy] == [
            f'augment.policy: "none" -> "{policy}"',
            "augment.rotation: 15.0 -> 0.0",
            "schedule.epochs: 80 -> 100",
        ]
    assert changes["resnext101"] == [] and len(changes["resnet152"]) == len(changes["resnest101"]) == 1


def test_the_ensemble_s_parameters_are_held_against_the_recipe_s_limit(drawn, tiny, tmp_path, capsys):
    words = [
        "--recipe",
        str(tiny),
        "--out",
        str(tmp_path / "run"),
        "--set",
        "folds.train=[0]",
        "--set",
        "schedule.epochs=1",
    ]
    train.main([*words, "--set", "parameters_limit=1000"])
    assert "parameters_limit: 3 members" in capsys.readouterr().err
