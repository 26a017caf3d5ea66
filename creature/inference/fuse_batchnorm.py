"""The same logits in less time: each BatchNorm folded into the convolution before it. S side of the input."""

from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TOLERANCE = 1e-5  # of the largest logit


@torch.no_grad()
def fuse(model: nn.Module, size: int) -> int:
    """Fold each BatchNorm of a model in eval mode into its convolution, in place; returns how many.

    Pairs are found by a forward of one random input (1, 3, S, S), not by name. A model whose logits would change, as
    where a convolution standardizes its weight, is left as it was.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return 0
    example = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected, pairs = _watch(model, example)
    names = {module: name for name, module in model.named_modules()}
    for conv, norm in pairs:
        model.set_submodule(names[conv], fuse_conv_bn_eval(conv, norm))
        model.set_submodule(names[norm], nn.Sequential(*norm.children()))  # timm's have dropout and activation inside
    if (model(example) - expected).abs().max() <= TOLERANCE * expected.abs().max():  # never where they are no numbers
        return len(pairs)
    for conv, norm in pairs:
        model.set_submodule(names[conv], conv)
        model.set_submodule(names[norm], norm)
    return 0


class _Reads(TorchDispatchMode):
    """Counts how often each tensor is read, by id, views and changes in place included."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count.update({id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)})
        return func(*args, **kwargs or {})


def _watch(model: nn.Module, example: torch.Tensor) -> tuple[torch.Tensor, list[tuple[nn.Conv2d, nn.BatchNorm2d]]]:
    """The logits of an example, and each convolution with the BatchNorm that alone reads its output; both run once."""
    reads, runs = _Reads(), Counter[nn.Module]()
    made: dict[int, tuple[nn.Conv2d, torch.Tensor]] = {}  # by output; kept, or its id would be given to another tensor
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d, int]] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        runs[module] += 1
        if isinstance(module, nn.Conv2d):
            made[id(output)], reads.count[id(output)] = (module, output), 0
        elif isinstance(module, nn.BatchNorm2d) and module.track_running_stats and id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])][0], module, id(inputs[0])))

    watched = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)]
    hooks = [module.register_forward_hook(note) for module in watched]
    with reads:
        logits = model(example)
    for hook in hooks:
        hook.remove()
    return logits, [(conv, norm) for conv, norm, out in pairs if runs[conv] == runs[norm] == reads.count[out] == 1]
