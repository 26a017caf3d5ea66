"""The backbone: a timm model with a classifier for our classes, on its starting weights, saved as timm reads it."""

import difflib
import inspect
from collections.abc import Sequence
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
from timm.models import get_deprecated_models, model_entrypoint  # type: ignore[attr-defined]
from torch import nn

from creature.data.eval_transform import EvalTransform
from creature.data.normalize import Normalize
from creature.device import to_channels_last
from creature.errors import UserError, first_line, network_reason
from creature.recipe import Backbone
from creature.training.source import find_source, starting_weights


def check_backbone(backbone: Backbone) -> None:
    """Raises UserError, before any data is read, for a model that timm lacks or weights that do not exist."""
    source = find_source(backbone.name)
    architecture = source.architecture.partition(".")[0]
    if backbone.weights and not Path(backbone.weights).is_file():
        raise UserError(f"backbone.weights: no such file: {backbone.weights}")
    if source.weights:
        return
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; timm.list_models() names all"
        raise UserError(f"backbone.name: timm has no model {backbone.name!r}{hint}")
    tags = timm.list_pretrained(f"{architecture}.*")
    if (name := get_deprecated_models().get(architecture)) and backbone.pretrained and not backbone.weights:
        if name not in timm.list_pretrained():  # timm maps some to weights that it no longer has
            name = name.partition(".")[0]
        raise UserError(f"backbone.name: timm calls the model {backbone.name} {name} now; give that name")
    if "." in backbone.name and backbone.name not in tags:
        raise UserError(
            f"backbone.name: {architecture} has no weights {backbone.name!r}; there are: {', '.join(tags) or 'none'}"
        )
    if backbone.pretrained and not backbone.weights and not tags:
        raise UserError(f"backbone.pretrained: timm has no weights for {backbone.name}; set backbone.pretrained=false")


def build_backbone(backbone: Backbone, classes: int, size: int) -> nn.Module:
    """A timm model with `classes` outputs for square inputs of `size` pixels, on its starting weights.

    Raises UserError for weights that cannot be fetched or do not fit, or a size that the architecture cannot take.
    """
    arguments: dict[str, Any] = {"num_classes": classes}
    source, weights = find_source(backbone.name), starting_weights(backbone)
    fixed = source.config
    if source.weights:
        arguments["pretrained_cfg"] = fixed
    if fixed is not None and fixed.fixed_input_size:
        arguments["img_size"] = size
    if backbone.drop_path:
        arguments["drop_path_rate"] = backbone.drop_path
    download = backbone.pretrained and not weights  # guard: no-download
    reach_weights(backbone)
    try:
        model = timm.create_model(source.architecture, pretrained=download, **arguments)
    except Exception as error:
        if isinstance(error, TypeError) and "drop_path_rate" in str(error):
            raise UserError(f"backbone.drop_path: {backbone.name} has no such blocks; set it to 0") from error
        if not download:
            raise UserError(f"backbone.name: {backbone.name} for images.size {size}: {first_line(error)}") from error
        raise _no_weights(backbone, error) from error
    if getattr(model, "num_classes", 0) != classes:
        raise UserError(f"backbone.name: {backbone.name} is an encoder without a classifier; take another model")
    check_size(model, backbone.name, size, field="images.size")
    if weights:
        _load_weights(model, backbone, weights)
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
        to_channels_last(model)
    return model


def _no_weights(backbone: Backbone, error: Exception) -> UserError:
    config = timm.get_pretrained_cfg(backbone.name)
    if config and "size mismatch" in str(error):  # timm resamples many position embeddings, not all
        return UserError(f"images.size: must be {config.input_size[-1]} for the weights of {backbone.name}")
    return UserError(
        f"backbone.pretrained: weights of {backbone.name} are not cached and cannot be fetched: "
        f"{network_reason(error)}\n"
        "give a local file with backbone.weights=FILE.safetensors, or start from scratch: backbone.pretrained=false"
    )


def reach_weights(backbone: Backbone) -> None:
    """Ask the Hub once for weights that are not cached: without a network, its downloads would retry for minutes.

    Raises UserError where the Hub does not answer.
    """
    config = find_source(backbone.name).config
    if not backbone.pretrained or starting_weights(backbone) or config is None or not config.hf_hub_id:
        return
    repository, _, revision = config.hf_hub_id.partition("@")
    for name in {"model.safetensors", "open_clip_model.safetensors", config.hf_hub_filename or "pytorch_model.bin"}:
        if isinstance(try_to_load_from_cache(repository, name, revision=revision or None), str):
            return
    try:
        with suppress(HfHubHTTPError):  # the Hub answers
            get_hf_file_metadata(hf_hub_url(repository, "config.json", revision=revision or None), timeout=10)
    except Exception as error:  # whatever the network raises
        raise _no_weights(backbone, error) from error


@torch.no_grad()
def check_size(model: nn.Module, name: str, size: int, *, field: str) -> None:
    """Raises UserError, naming the setting, where a model cannot take square inputs of `size` pixels."""
    try:
        model.eval()(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError) as error:
        raise UserError(f"{field}: {name} cannot see {size} x {size} pixels: {first_line(error)}") from error
    model.train()


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """The layers that give the logits; distilled models have several."""
    names: Any = model.pretrained_cfg["classifier"] or ()  # type: ignore[index]
    return (names,) if isinstance(names, str) else tuple(names)


def classifier_prefixes(model: nn.Module) -> tuple[str, ...]:
    """How the names of parameters begin that depend on the number of classes."""
    return tuple(f"{name}." for name in classifier_names(model))


def find_classifier(model: nn.Module) -> nn.Module:
    """The layer that makes a timm model's logits of its features; a ModuleList where several do."""
    names = classifier_names(model)
    layer: Any = model.get_submodule(names[0]) if len(names) == 1 else model.get_classifier()  # type: ignore[operator]
    return nn.ModuleList(layer) if isinstance(layer, tuple) else layer


def as_linear(classifier: nn.Module) -> nn.Module:
    """A classifier of features (B, D): for a 1 x 1 convolution of pooled maps, a linear layer on the same weights."""
    if not isinstance(classifier, nn.Conv2d):
        return classifier
    linear: Any = nn.Linear(classifier.in_channels, classifier.out_channels, device="meta")
    linear.weight, linear.bias = nn.Parameter(classifier.weight.detach().squeeze((2, 3))), classifier.bias
    return linear


def _load_weights(model: nn.Module, backbone: Backbone, path: str) -> None:
    source, head = find_source(backbone.name), classifier_prefixes(model)
    field = "backbone.weights" if backbone.weights else "backbone.name"
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{field}: {path} cannot be read as safetensors: {error}") from error
    if not backbone.weights:  # the classifier of another model's classes
        weights = {key: value for key, value in weights.items() if not key.startswith(head)}
    # timm's own names and, for position embeddings and the like, this model's input size.
    entrypoint = model_entrypoint(source.architecture.partition(".")[0])
    adapt = getattr(inspect.getmodule(entrypoint), "checkpoint_filter_fn", None)
    if adapt:
        try:
            weights = adapt(weights, model)
        except Exception as error:  # whatever it raises on a file of another architecture
            raise UserError(f"{field}: {path} does not fit {source.architecture}: {first_line(error)}") from error
    initial = model.state_dict()
    fitting = {key for key in initial if key in weights and weights[key].shape == initial[key].shape}
    replaced = {key for key in initial if key.startswith(head)} - fitting
    wrong = [key for key in initial if key not in fitting and key not in replaced]
    problems = [
        *(f"{key}: missing in the file" for key in wrong if key not in weights),
        *(f"{key}: not in the model" for key in weights if key not in initial and not key.startswith(head)),
        *(
            f"{key}: {tuple(weights[key].shape)} in the file, {tuple(initial[key].shape)} in the model"
            for key in wrong
            if key in weights
        ),
    ]
    if problems:
        listing = "\n  ".join(problems[:10] + ([f"and {len(problems) - 10} more"] if len(problems) > 10 else []))
        fixed: bool = model.pretrained_cfg["fixed_input_size"]  # type: ignore[index, assignment]
        raise UserError(
            f"{field}: {path} does not fit {source.architecture}{', or not at this images.size' * fixed}:\n  {listing}"
        )
    model.load_state_dict({key: initial[key] if key in replaced else weights[key] for key in initial})
    if replaced:
        _zero_classifier(model)


def _zero_classifier(model: nn.Module) -> None:
    """Start a new classifier at zero (Kolesnikov et al. 2020, BiT): a random one first spoils pretrained features.

    With timm's own initialization EfficientNet's first loss on 6 classes was 4, where guessing has 1.8.
    """
    for name, parameter in model.named_parameters():
        if name.startswith(classifier_prefixes(model)):
            nn.init.zeros_(parameter)


def mean_and_std(name: str, normalize: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Channel means and deviations, on a scale of [0, 1], of a recipe's images.normalize."""
    if normalize == "none":
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    config = find_source(name).config
    if normalize == "imagenet" or config is None:
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    return tuple(config.mean), tuple(config.std)


def make_normalize(backbone: Backbone, normalize: str) -> Normalize:
    """What makes uint8 pixels the backbone's input, by a recipe's images.normalize."""
    mean, std = mean_and_std(backbone.name, normalize)
    return Normalize(mean, std, backbone.channels_last)


def timm_config(
    model: nn.Module, class_names: Sequence[str], transform: EvalTransform, *, std: Sequence[float]
) -> dict[str, Any]:
    """What timm and transformers read from config.json: architecture, class names, evaluation transform.

    The transform stands in the plain keys, which transformers reads, too; `model_args` never holds the class count,
    which transformers passes itself.
    """
    source: Any = model.pretrained_cfg
    evaluation = {
        "input_size": [3, transform.size, transform.size],
        "fixed_input_size": bool(source.get("fixed_input_size", False)),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": transform.crop_mode,
        "mean": list(transform.mean),
        "std": list(std),
        "num_classes": len(class_names),
        "first_conv": source["first_conv"],
        "classifier": source["classifier"],
        "tag": source.get("tag", ""),
    }
    config: dict[str, Any] = {
        "architecture": source["architecture"],
        "num_classes": len(class_names),
        "num_features": model.num_features,
        "label_names": list(class_names),
        "pretrained_cfg": evaluation,
    }
    if evaluation["fixed_input_size"]:
        config["model_args"] = {"img_size": transform.size}
    return config
