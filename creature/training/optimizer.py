"""The optimizer: its name, parameter groups with their weight decay and share of the rate, its state by parameter."""

import difflib
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatch
from typing import Any

import numpy as np
import torch
from timm.optim import create_optimizer_v2, list_optimizers, param_groups_layer_decay  # type: ignore[attr-defined]
from torch import nn

from creature.errors import UserError
from creature.recipe import Optimizer

# What cannot train here, or not go on bit for bit from a resume point.
REFUSED = {
    "adahessian": "needs second derivatives, which no step computes",
    "kron*": "draws its updates from a generator of its own, which no resume point holds",
    "bnb*": "is of bitsandbytes, whose state no resume point is known to hold",
    "fused*": "is of NVIDIA's apex, whose state no resume point is known to hold; adamw and sgd are fused by torch",
    "*schedule*free*": "evaluates other weights than it trains, for which BatchNorm has no statistics",
}
LOOKAHEAD = "lookahead_"  # before another optimizer's name
GROUP = "param_groups."  # before a group's number
COUNTERS = ("step", "lookahead_step")  # which some optimizers keep by group


def offered_optimizers() -> list[str]:
    """The names that a recipe may give, each also after `lookahead_`."""
    return [name for name in map(str, list_optimizers()) if not any(fnmatch(name, pattern) for pattern in REFUSED)]


def check_optimizer(name: str) -> None:
    """Raises UserError, before any data is read, for an optimizer that timm lacks or that is not offered."""
    base, offered = name.removeprefix(LOOKAHEAD), offered_optimizers()
    if reason := next((reason for pattern, reason in REFUSED.items() if fnmatch(base, pattern)), None):
        raise UserError(f"optimizer.name: {name} {reason}; there are: {', '.join(offered)}")
    if base not in offered:
        near = difflib.get_close_matches(base.lower(), offered, n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UserError(f"optimizer.name: no optimizer {name!r}; {hint}there are: {', '.join(offered)}")


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
    """AdamW (Loshchilov and Hutter 2019) or SGD with Nesterov momentum, both fused; or another one of timm's.

    A fused one can skip a step on the device, by its `found_inf`.
    """
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, fused=True)
    if settings.name != "sgd":
        return create_optimizer_v2(groups, settings.name, lr=settings.lr)
    sgd = torch.optim.SGD(groups, lr=settings.lr, momentum=0.9, nesterov=True, fused=True)
    for group in sgd.param_groups:
        for parameter in group["params"]:  # torch leaves a momentum undefined whose first step is skipped
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)  # guard: new-optimizer-state
    return sgd


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the optimizer's state as PARAMETER.SLOT: a parameter's place in the groups may change, its name not.

    Counters of a group are `param_groups.NUMBER.SLOT`. Numbers of Python are scalars of 64 bits, or of type bool, which
    no optimizer's own tensors are.
    """
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    places = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    saved = optimizer.state_dict()  # lookahead's `state` is empty
    state = {f"{places[at]}.{slot}": value for at, slots in saved["state"].items() for slot, value in slots.items()}
    for number, group in enumerate(saved["param_groups"]):
        state |= {f"{GROUP}{number}.{slot}": group[slot] for slot in COUNTERS if slot in group}
    return {
        key: (value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value)))
        .detach()
        .to("cpu", copy=True)
        .contiguous()
        for key, value in state.items()
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
    groups = optimizer.state_dict()["param_groups"]
    state: dict[int, dict[str, torch.Tensor | float]] = {}
    for key, tensor in tensors.items():
        name, _, slot = key.rpartition(".")
        number = not tensor.ndim and tensor.dtype in (torch.int64, torch.float64, torch.bool)
        value = tensor.item() if number else tensor
        if name.startswith(GROUP):
            groups[int(name.removeprefix(GROUP))][slot] = value
            continue
        parameter = parameters[name]
        if tensor.ndim and tensor.shape == parameter.shape:
            # The parameter's memory layout, for a fused step walks both in memory order.
            value = torch.empty_like(parameter).copy_(tensor)
        state.setdefault(places[parameter], {})[slot] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})
