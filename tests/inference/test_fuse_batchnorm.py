"""BatchNorm folded into convolutions: the same logits and features, and nothing folded that must not be."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import StdConv2d  # pyright: ignore[reportPrivateImportUsage]
from torch import nn

from creature.inference.fuse_batchnorm import fuse
from creature.inference.members import load_member


def with_statistics(model: nn.Module) -> nn.Module:
    """The model as if trained: no BatchNorm is the identity."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None:
            nn.init.normal_(norm.running_mean, 0, 0.5)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
    return model.eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@torch.inference_mode()
def answers(model: nn.Module, size: int = 64) -> torch.Tensor:
    return model(torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1)))


def same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


# Those of coatnet and maxvit that stay are pre-activations: what they read is read by a shortcut, too.
@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("test_resnet", 0),
        ("test_efficientnet", 0),
        ("test_byobnet", 0),
        ("mobilenetv3_small_050", 0),
        ("tf_efficientnet_lite0", 0),
        ("test_coatnet", 2),
        ("test_maxvit", 4),
        ("resnetv2_50", 17),
        ("test_vit", 0),
        ("test_convnext", 0),
    ],
)
def test_logits_and_features_are_the_same(name: str, kept: int):
    torch.manual_seed(0)
    fixed = timm.get_pretrained_cfg(name).fixed_input_size  # type: ignore[union-attr]
    size: dict[str, Any] = {"img_size": 64} if fixed else {}
    model = with_statistics(timm.create_model(name, num_classes=5, **size))
    before = norms(model)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        logits, maps = answers(model), model.forward_features(pixels)  # type: ignore[operator]
        features = model.forward_head(maps, pre_logits=True)  # type: ignore[operator]
        assert fuse(model, 64) == before - kept and norms(model) == kept
        same(answers(model), logits)
        same(model.forward_features(pixels), maps)  # type: ignore[operator]
        same(model.forward_head(model.forward_features(pixels), pre_logits=True), features)  # type: ignore[operator]


class Between(nn.Module):
    """A convolution and a BatchNorm, with something between, beside or around them."""

    def __init__(self, kind: str):
        super().__init__()
        conv = StdConv2d if kind == "standardized weight" else nn.Conv2d
        self.kind, self.conv, self.norm, self.other = (
            kind,
            conv(3, 3, 3, padding=1),
            nn.BatchNorm2d(3),
            nn.BatchNorm2d(3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        match self.kind:
            case "shortcut":
                x = x + self.norm(x)
            case "activation in place":
                x = self.norm(x.relu_())
            case "two readers":
                x = self.norm(x) * self.other(x)
            case "two runs":
                x = self.norm(self.conv(x))
            case _:
                x = self.norm(x)
        return x.mean((2, 3))


@pytest.mark.parametrize("kind", ["shortcut", "activation in place", "two readers", "two runs", "standardized weight"])
def test_what_must_not_be_folded_is_not(kind: str):
    torch.manual_seed(0)
    model = with_statistics(Between(kind))
    parts, expected = list(model.named_modules()), answers(model)
    assert fuse(model, 16) == 0
    assert list(model.named_modules()) == parts and torch.equal(answers(model), expected)


def test_the_plain_pair_is_folded():
    torch.manual_seed(0)
    model = with_statistics(Between("plain"))
    expected = answers(model)
    assert fuse(model, 16) == 1
    same(answers(model), expected)


def test_batch_statistics_are_not_folded():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten()).eval()
    expected = answers(model, 8)
    assert fuse(model, 8) == 0
    assert torch.equal(answers(model, 8), expected)


def test_a_member_is_fused_when_asked_for_and_keeps_its_layout(run: Path):
    plain, fused = (load_member(run / "fold-0", torch.device("cpu"), fused=fused).model for fused in (False, True))
    assert norms(plain) > norms(fused) == 0
    same(answers(fused, 32), answers(plain, 32))
    kernels = [module.weight for module in fused.modules() if isinstance(module, nn.Conv2d)]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    sizes = [sum(value.nbytes for value in model.state_dict().values()) for model in (plain, fused)]
    assert sizes[1] <= sizes[0]
