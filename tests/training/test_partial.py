"""Partial fine-tuning: what is not named stays as it was, and a stopped training goes on bitwise."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from creature.errors import UserError
from creature.training.partial import freeze_the_rest
from helpers import faults
from helpers.runs import losses, start, weights_hash


@pytest.fixture(scope="module", params=["test_resnet", "test_vit"])
def begin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A backbone, and the file of the weights that a training starts from."""
    torch.manual_seed(0)
    model = timm.create_model(request.param, num_classes=10)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
    save_file(model.state_dict(), path := tmp_path_factory.mktemp("weights") / "begin.safetensors")
    return request.param, path


def settings(begin: tuple[str, Path], trained: str) -> list[str]:
    size = 32 if begin[0] == "test_resnet" else 160
    return [
        f"backbone.name={begin[0]}",
        f"backbone.weights={begin[1]}",
        f"backbone.train={trained}",
        f"images.size={size}",
        "folds.train=[0]",
    ]


def changed(begin: tuple[str, Path], fold: Path) -> set[str]:
    """The names of tensors of the body that training has changed."""
    before, after = load_file(begin[1]), load_file(fold / "model.safetensors")
    body = {name for name in before if before[name].shape == after[name].shape}
    return {name for name in body if not torch.equal(before[name], after[name])}


def test_only_the_last_block_learns(begin, tiny, tmp_path):
    assert start(tiny, tmp_path / "run", *settings(begin, "last:1"), "optimizer.ema_decay=0.9") == 0
    names = changed(begin, tmp_path / "run/fold-0")
    last = "layer4." if begin[0] == "test_resnet" else ("blocks.5.", "norm.", "fc_norm.")
    assert names and all(name.startswith(last) for name in names)
    assert begin[0] == "test_vit" or any("running_mean" in name for name in names)


def test_only_the_norms_learn(begin, tiny, tmp_path):
    assert start(tiny, tmp_path / "run", *settings(begin, "norms")) == 0
    names = changed(begin, tmp_path / "run/fold-0")
    modules = timm.create_model(begin[0]).named_modules()
    norms = {name for name, module in modules if isinstance(module, (torch.nn.LayerNorm, torch.nn.BatchNorm2d))}
    assert len(names) > 4 and {name.rpartition(".")[0] for name in names} == norms


@pytest.mark.parametrize("trained", ["last:2", "norms"])
def test_a_training_of_a_part_that_is_stopped_goes_on_bitwise(begin, tiny, tmp_path, trained):
    more = [*settings(begin, trained), "optimizer.layer_decay=0.8", "backbone.gradient_checkpointing=true"]
    assert start(tiny, tmp_path / "whole", *more) == 0
    faults.start_until_step(5, tiny, tmp_path / "cut", *more)
    assert start(tiny, tmp_path / "cut", *more, resume=True) == 0
    assert losses(tmp_path / "cut/fold-0") == losses(tmp_path / "whole/fold-0")
    assert weights_hash(tmp_path / "cut/fold-0") == weights_hash(tmp_path / "whole/fold-0")


def test_more_blocks_than_there_are_and_no_norms_are_refused():
    with pytest.raises(UserError, match=r"backbone.train: last:99, and the backbone has 5 blocks; train all, or fewer"):
        freeze_the_rest(timm.create_model("test_resnet", num_classes=3), "last:99")
    plain = torch.nn.Sequential(torch.nn.Linear(3, 3))
    plain.pretrained_cfg = {"classifier": "0"}  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"backbone.train: norms, and the backbone has no normalization layers"):
        freeze_the_rest(plain, "norms")
