"""The backbone: a timm model with a head for our classes, its starting weights, and what the recipe asks of it."""

import difflib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD  # type: ignore[attr-defined]
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]
from torch import nn

from creature.errors import UserError
from creature.recipe import Backbone, Optimizer


def check_backbone(backbone: Backbone) -> None:
    """Raises UserError, before any data is read, for a model that timm lacks or weights that are not there."""
    architecture = backbone.name.partition(".")[0]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; timm.list_models() names all"
        raise UserError(f"backbone.name: timm has no model {backbone.name!r}{hint}")
    tags = timm.list_pretrained(f"{architecture}.*")
    if "." in backbone.name and backbone.name not in tags:
        raise UserError(
            f"backbone.name: {architecture} has no weights {backbone.name!r}; there are: {', '.join(tags) or 'none'}"
        )
    if backbone.weights and not Path(backbone.weights).is_file():
        raise UserError(f"backbone.weights: no such file: {backbone.weights}")
    if backbone.pretrained and not backbone.weights and not tags:
        raise UserError(f"backbone.pretrained: timm has no weights for {backbone.name}; set backbone.pretrained=false")


def build_backbone(backbone: Backbone, classes: int, size: int) -> nn.Module:
    """A timm model with `classes` outputs for square inputs of `size` pixels, on its starting weights.

    Raises UserError for weights that cannot be fetched or do not fit, and a size that the architecture cannot take.
    """
    arguments: dict[str, Any] = {"num_classes": classes}
    fixed = timm.get_pretrained_cfg(backbone.name)
    if fixed is not None and fixed.fixed_input_size:
        arguments["img_size"] = size
    if backbone.drop_path:
        arguments["drop_path_rate"] = backbone.drop_path
    download = backbone.pretrained and not backbone.weights
    reach_weights(backbone)
    try:
        model = timm.create_model(backbone.name, pretrained=download, **arguments)
    except Exception as error:
        if isinstance(error, TypeError) and "drop_path_rate" in str(error):
            raise UserError(f"backbone.drop_path: {backbone.name} has no such blocks; set it to 0") from error
        if not download:
            raise UserError(f"backbone.name: {backbone.name} for images.size {size}: {reason_of(error)}") from error
        raise _no_weights(backbone, error) from error
    check_size(model, backbone.name, size, "images.size")
    if backbone.weights:
        _load_weights(model, backbone.weights)
    elif download and fixed is not None and fixed.num_classes != classes:
        _zero_classifier(model)
    if backbone.gradient_checkpointing:
        try:
            model.set_grad_checkpointing(True)  # type: ignore[operator]
        except (AssertionError, AttributeError) as error:
            raise UserError(
                f"backbone.gradient_checkpointing: {backbone.name} does not support it; set it to false"
            ) from error
    if backbone.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def reason_of(error: Exception) -> str:
    """What a library's error says, in a line."""
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


def _no_weights(backbone: Backbone, error: Exception) -> UserError:
    return UserError(
        f"backbone.pretrained: weights of {backbone.name} are neither cached nor to be had: {reason_of(error)}\n"
        "give a local file with backbone.weights=FILE.safetensors, or start from scratch: backbone.pretrained=false"
    )


def reach_weights(backbone: Backbone) -> None:
    """Ask the Hub once for weights that are not cached: without a network, its downloads would try for minutes.

    Raises UserError where it does not answer.
    """
    config: Any = timm.get_pretrained_cfg(backbone.name)
    if not backbone.pretrained or backbone.weights or config is None or not config.hf_hub_id:
        return
    repository, _, revision = config.hf_hub_id.partition("@")
    for name in {"model.safetensors", "open_clip_model.safetensors", config.hf_hub_filename or "pytorch_model.bin"}:
        if isinstance(try_to_load_from_cache(repository, name, revision=revision or None), str):
            return
    try:
        with suppress(HfHubHTTPError):  # any answer is one
            get_hf_file_metadata(hf_hub_url(repository, "config.json", revision=revision or None), timeout=10)
    except Exception as error:  # whatever the network raises
        raise _no_weights(backbone, error) from error


@torch.no_grad()
def check_size(model: nn.Module, name: str, size: int, field: str) -> None:
    """Raises UserError, naming the setting, where a model cannot take square inputs of `size` pixels."""
    try:
        model.eval()(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError) as error:
        raise UserError(f"{field}: {name} cannot see {size} x {size} pixels: {reason_of(error)}") from error
    model.train()


def classifier_keys(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of the parameters that depend on the number of classes."""
    classifier: Any = model.pretrained_cfg["classifier"] or ()  # type: ignore[index]
    return (classifier,) if isinstance(classifier, str) else tuple(classifier)


def _load_weights(model: nn.Module, path: str) -> None:
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"backbone.weights: {path} cannot be read as safetensors: {error}") from error
    own = model.state_dict()
    head = tuple(f"{prefix}." for prefix in classifier_keys(model))
    replaced = {
        key for key in own if key.startswith(head) and (key not in weights or weights[key].shape != own[key].shape)
    }
    problems = [
        *(f"{key}: missing in the file" for key in own if key not in weights and key not in replaced),
        *(f"{key}: not in the model" for key in weights if key not in own and not key.startswith(head)),
        *(
            f"{key}: {tuple(weights[key].shape)} in the file, {tuple(own[key].shape)} in the model"
            for key in own
            if key in weights and key not in replaced and weights[key].shape != own[key].shape
        ),
    ]
    if problems:
        listing = "\n  ".join(problems[:10] + ([f"and {len(problems) - 10} more"] if len(problems) > 10 else []))
        raise UserError(f"backbone.weights: {path} does not fit backbone.name:\n  {listing}")
    model.load_state_dict({key: own[key] if key in replaced else weights[key] for key in own})
    if replaced:
        _zero_classifier(model)


def _zero_classifier(model: nn.Module) -> None:
    """Start a new head at zero (Kolesnikov et al. 2020, BiT), for a random one first spoils pretrained features.

    With timm's own initialization EfficientNet's first loss on 6 classes was 4, where guessing has 1.8.
    """
    head = tuple(f"{prefix}." for prefix in classifier_keys(model))
    for name, parameter in model.named_parameters():
        if name.startswith(head):
            nn.init.zeros_(parameter)


class Body(nn.Module):
    """A timm model without its classifier: normalized pixels (B, 3, H, W) -> features (B, D).

    Raises UserError for a model whose classifier does not come last.
    """

    def __init__(self, model: Any, field: str, name: str, size: int):
        super().__init__()
        self.model = model.eval()
        with torch.inference_mode():
            picture = torch.linspace(-1, 1, 3 * size * size).view(1, 3, size, size)
            apart = model.get_classifier()(self(picture))
            if not torch.allclose(apart, model(picture), atol=1e-5):
                raise UserError(f"{field}: the classifier of {name} is not its last layer; take another model")

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """What the classifier sees."""
        return self.model.forward_head(self.model.forward_features(inputs), pre_logits=True)


def mean_and_std(name: str, normalize: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Channel means and deviations, on a scale of [0, 1], of a recipe's images.normalize."""
    if normalize == "none":
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    config = timm.get_pretrained_cfg(name)
    if normalize == "imagenet" or config is None:
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    return tuple(config.mean), tuple(config.std)


def parameter_groups(model: nn.Module, optimizer: Optimizer) -> list[dict[str, Any]]:
    """Groups with a weight decay each, none for norms and biases (vectors and scalars) unless they are to have it.

    With layer decay a group is of one layer, too, and has that layer's share of the learning rate as `lr_scale` (Bao et
    al. 2022, BEiT; timm's layers).
    """
    if optimizer.layer_decay < 1:
        return param_groups_layer_decay(
            model,
            optimizer.weight_decay,
            weight_decay_exclude_1d=not optimizer.decay_norms,
            layer_decay=optimizer.layer_decay,
        )
    named = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if optimizer.decay_norms:
        return [{"params": named, "weight_decay": optimizer.weight_decay}]
    matrices = [parameter for parameter in named if parameter.ndim > 1]
    vectors = [parameter for parameter in named if parameter.ndim <= 1]
    return [{"params": matrices, "weight_decay": optimizer.weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def build_optimizer(groups: Iterable[dict[str, Any]], optimizer: Optimizer) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019) or SGD with Nesterov momentum; fused, which can skip a step on the device."""
    if optimizer.name == "adamw":
        return torch.optim.AdamW(groups, lr=optimizer.lr, fused=True)
    sgd = torch.optim.SGD(groups, lr=optimizer.lr, momentum=0.9, nesterov=True, fused=True)
    for group in sgd.param_groups:
        for parameter in group["params"]:  # torch leaves a momentum undefined whose first step is skipped
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def timm_config(
    model: nn.Module, names: Sequence[str], size: int, fit: str, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    """What timm and transformers read from config.json: architecture, class names, evaluation view.

    The view stands in the plain keys, which transformers reads, too; `model_args` never holds the class count, which
    transformers passes itself.
    """
    source: Any = model.pretrained_cfg
    view = {
        "input_size": [3, size, size],
        "fixed_input_size": bool(source.get("fixed_input_size", False)),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": fit,
        "mean": list(mean),
        "std": list(std),
        "num_classes": len(names),
        "first_conv": source["first_conv"],
        "classifier": source["classifier"],
        "tag": source.get("tag", ""),
    }
    config: dict[str, Any] = {
        "architecture": source["architecture"],
        "num_classes": len(names),
        "num_features": model.num_features,
        "label_names": list(names),
        "pretrained_cfg": view,
    }
    if view["fixed_input_size"]:
        config["model_args"] = {"img_size": size}
    return config
