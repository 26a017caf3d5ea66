"""The optimizer: parameter groups with their weight decay and share of the rate, and its state by parameter name."""

from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatch
from typing import Any

import torch
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]
from torch import nn

from creature.recipe import Optimizer


def parameter_groups(
    model: nn.Module, settings: Optimizer, exempt: Collection[str] | None = None
) -> list[dict[str, Any]]:
    """Groups with a weight decay each: none for norms and biases (vectors and scalars) unless `decay_norms` is set.

    `exempt` are names of parameters that are never decayed, by default those that timm names for the model. With layer
    decay a group is of one layer, too, and has that layer's share of the learning rate as `lr_scale` (Bao et al. 2022,
    BEiT; timm's layers).
    """
    exempt = exempt_from_decay(model) if exempt is None else exempt
    if settings.layer_decay < 1:
        return param_groups_layer_decay(
            model,
            settings.weight_decay,
            no_weight_decay_list=exempt,
            weight_decay_exclude_1d=not settings.decay_norms,
            layer_decay=settings.layer_decay,
        )
    # timm's param_groups_weight_decay would give the groups in another order, and so other sums over all gradients.
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            vector = parameter.ndim <= 1 and not settings.decay_norms
            (others if vector or name in exempt else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return groups if others or not settings.decay_norms else groups[:1]


def exempt_from_decay(model: nn.Module) -> set[str]:
    """Names of the parameters that a timm model wants undecayed: position embeddings, class tokens, bias tables."""
    listed: Any = getattr(model, "no_weight_decay", set)
    patterns: Collection[str] = listed()  # some are patterns, such as pos_embed.*
    return {name for name, _ in model.named_parameters() if any(fnmatch(name, pattern) for pattern in patterns)}


def build_optimizer(groups: Iterable[dict[str, Any]], settings: Optimizer) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019) or SGD with Nesterov momentum; fused, which can skip a step on the device."""
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, fused=True)
    sgd = torch.optim.SGD(groups, lr=settings.lr, momentum=0.9, nesterov=True, fused=True)
    for group in sgd.param_groups:
        for parameter in group["params"]:  # torch leaves a momentum undefined whose first step is skipped
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)  # guard: new-optimizer-state
    return sgd


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the optimizer's state as PARAMETER.SLOT: a parameter's place in the groups may change, its name not."""
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}.{slot}": value.detach().to("cpu", copy=True).contiguous()
        for parameter, slots in optimizer.state.items()
        for slot, value in slots.items()
        if value is not None
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: nn.Module, settings: Optimizer, *, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Restore the optimizer's state in place; raises KeyError for a parameter that the model does not have.

    Older versions named a parameter by its place in the groups, which then knew no exemptions.
    """
    older = [parameter for group in parameter_groups(model, settings, exempt=()) for parameter in group["params"]]
    parameters = {str(place): parameter for place, parameter in enumerate(older)} | dict(model.named_parameters())
    current = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    places = {parameter: place for place, parameter in enumerate(current)}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, slot = key.rpartition(".")
        parameter = parameters[name]
        # The parameter's memory layout, for a fused step walks both in memory order.
        same = tensor.ndim and tensor.shape == parameter.shape
        value = torch.empty_like(parameter).copy_(tensor) if same else tensor
        state.setdefault(places[parameter], {})[slot] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
