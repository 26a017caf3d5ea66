"""Partial fine-tuning: only the last blocks, or only the normalization layers, of a backbone learn."""

from collections.abc import Iterator
from typing import Any

from timm.models import group_parameters
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from creature.errors import UserError
from creature.training.backbone import find_classifier


def freeze_the_rest(network: nn.Module, trained: str) -> None:
    """Have only what backbone.train names, and the classifier, learn: all, norms (Frankle et al. 2021), or last:N.

    Blocks are timm's, which layer decay counts, too. Raises UserError where there are fewer than N, or no norms.
    """
    if trained == "all":
        return
    kept = set(find_classifier(network).parameters())
    kept |= set(_norms(network)) if trained == "norms" else set(_last_blocks(network, int(trained.partition(":")[2])))
    for parameter in network.parameters():
        parameter.requires_grad_(parameter in kept)


def frozen_batch_norms(model: nn.Module) -> Iterator[nn.Module]:
    """The BatchNorm layers of which nothing learns: their statistics stay as well."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.affine and not any(p.requires_grad for p in module.parameters()):
            yield module


def _norms(network: nn.Module) -> Iterator[nn.Parameter]:
    norms = [module for module in network.modules() if "norm" in type(module).__name__.lower()]
    parameters = [parameter for norm in norms for parameter in norm.parameters(recurse=False)]
    if not parameters:
        raise UserError("backbone.train: norms, and the backbone has no normalization layers; train all, or last:N")
    yield from parameters


def _last_blocks(network: Any, count: int) -> Iterator[nn.Parameter]:
    layers: Any = group_parameters(network, network.group_matcher(coarse=False), reverse=True)
    last = max(layers.values())  # the classifier's
    if count >= last:
        raise UserError(f"backbone.train: last:{count}, and the backbone has {last} blocks; train all, or fewer")
    yield from (parameter for name, parameter in network.named_parameters() if layers[name] >= last - count)
