"""The recipe: every setting of a training, with its default, bounds and meaning, once.

`creature schema` prints the JSON schema, for editors that complete and check recipes.
Importing this module is cheap: what needs torch, timm or the device is checked later, still before any data is read.
"""

import argparse
import difflib
import hashlib
import json
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

from creature.console import printable
from creature.errors import UserError

# Marks what does not change a run's result, and so is not part of its identity.
FREE: dict[str, JsonValue] = {"identity": False}

# What a recipe never needs and a hostile file may have.
MAX_BYTES, MAX_VALUES, MAX_DEPTH, MAX_MISTAKES = 2**20, 50_000, 20, 50

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Images(_Settings):
    """Where the images are, and how they are seen in evaluation."""

    train: tuple[str, ...] = Field(
        min_length=1,
        json_schema_extra=FREE,
        description="class folders, .parquet or .arrow files, or hub:USER/DATASET:SPLIT; several are pooled",
    )
    validation: tuple[str, ...] = Field(
        default=(), json_schema_extra=FREE, description="with folds.count 1: the held-out images"
    )
    holdout: tuple[str, ...] = Field(
        default=(), json_schema_extra=FREE, description="scored by ensemble.py, never trained on"
    )
    labels: str | None = Field(
        default=None, json_schema_extra=FREE, description="CSV (image, label) for flat image folders"
    )
    image_column: str = Field(default="image", description="column of the image in Parquet, Arrow and Hub datasets")
    label_column: str = Field(
        default="label", description="column of the label in Parquet, Arrow and Hub datasets, and CSV"
    )
    size: int = Field(default=224, ge=16, le=2048, description="side of the square input, in pixels")
    fit: Literal["squash", "center", "border"] = Field(
        default="squash",
        description=(
            "evaluation view: squash distorts to the square, center crops to it, border pads to it with the mean colour"
        ),
    )
    normalize: Literal["none", "imagenet", "backbone"] = Field(
        default="backbone", description="mean and deviation: none keeps [0, 1], backbone takes those of its pretraining"
    )
    max_bad: int | None = Field(
        default=None,
        ge=0,
        json_schema_extra=FREE,
        description="unreadable images tolerated; null: the larger of 3 and 1 %",
    )
    cache: Literal["off", "auto", "memory", "disk"] = Field(
        default="off",
        description=(
            "decode each image once, for all folds, epochs and runs: crops are cut from copies of 8/7 of the size, "
            "which blurs the smallest ones; held-out views stay exact; auto: on disk, if it takes at most 16 GiB"
        ),
    )
    workers: int = Field(
        default=2,
        ge=0,
        le=128,
        json_schema_extra=FREE,
        description="processes that decode and augment; 0: the main process does",
    )


class Folds(_Settings):
    """How the rows are parted for cross-validation."""

    count: int = Field(
        default=5, ge=1, le=100, description="K; 1: no folds, one model that is held out on images.validation"
    )
    repeats: int = Field(
        default=1,
        ge=1,
        le=20,
        description=(
            "R; how often the rows are parted into K folds anew, for R x K members, of which R have never seen a row: "
            "their ensemble is scored without a holdout"
        ),
    )
    train: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None, min_length=1, json_schema_extra=FREE, description="which folds this start trains; null: all"
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of the partition; runs that are combined share it")
    group: str | None = Field(
        default=None,
        description="keeps rows together: a column, or a pattern with one (group) that is searched in each image's id",
    )

    @property
    def members(self) -> int:
        """How many models there are when all folds of all repeats are trained."""
        return self.count * self.repeats


class Backbone(_Settings):
    """The network that is fine-tuned."""

    name: str = Field(description="a timm model, with its pretraining tag: resnext101_64x4d.tv_in1k")
    pretrained: bool = Field(
        default=True, description="start from timm's pretrained weights (the Hub, or the local cache)"
    )
    weights: str | None = Field(
        default=None,
        json_schema_extra=FREE,
        description="start from this .safetensors file instead; its content is part of the run",
    )
    head_start: Literal["none", "probe"] = Field(
        default="none",
        description=(
            "where a new classifier starts: none, at zero; probe, at a logistic regression on the features of the "
            "backbone as it is, of the training rows alone"
        ),
    )
    drop_path: float = Field(
        default=0.0, ge=0, lt=1, description="how often the deepest block is skipped in training; earlier ones less"
    )
    frozen: bool = Field(
        default=False,
        description="train the classifier alone, on features of the evaluation views, computed once for all folds",
    )
    freeze_batch_stats: bool = Field(
        default=False, description="keep BatchNorm's running statistics as they were pretrained"
    )
    sync_batchnorm: bool = Field(default=False, description="BatchNorm statistics over all GPUs")
    gradient_checkpointing: bool = Field(
        default=False, description="recompute activations: less memory, about 30 % more time"
    )
    channels_last: bool = Field(default=True, description="memory layout that convolutions prefer")
    compile: Literal[True, False, "auto"] = Field(
        default=False,
        description=(
            "torch.compile for training, which costs a minute or so at each fold's start; auto times steps with and "
            "without it before the first fold, if that computes for ten minutes or more, and compiles where it surely "
            "saves time; on a CPU steps became 3 % shorter to 13 % longer, by the network; on a GPU it was never "
            "measured"
        ),
    )


class Augment(_Settings):
    """Random views of training images; held-out images never get one."""

    crop_scale: tuple[Share, Share] = Field(
        default=(0.08, 1.0), description="share of the area that a random crop keeps"
    )
    flip: Share = Field(default=0.5, description="probability of a horizontal flip")
    rotation: float = Field(default=0.0, ge=0, le=180, description="largest rotation, in degrees, either way")
    policy: Literal["none", "rand_augment", "trivial_augment"] = Field(
        default="none", description="automatic augmentation"
    )
    erasing: Share = Field(default=0.0, description="probability that a random rectangle is erased")
    mix: Literal["none", "mixup", "cutmix", "mixup_or_cutmix"] = Field(
        default="none", description="mixing within a batch"
    )
    mix_alpha: Positive = Field(default=1.0, description="Beta(alpha, alpha) from which the share of a mix is drawn")
    sizes: tuple[Annotated[int, Field(ge=16, le=2048)], ...] | None = Field(
        default=None,
        min_length=1,
        description="sides of the training views, each for an equal part of the epochs; null: images.size",
    )


class Loss(_Settings):
    """What is minimized."""

    name: Literal["cross_entropy", "focal"] = Field(
        default="cross_entropy", description="focal: cross-entropy that counts a row less the surer it is right"
    )
    gamma: float = Field(default=2.0, ge=0, le=10, description="focal: how much less; 0 is cross-entropy")
    smoothing: float = Field(default=0.0, ge=0, lt=1, description="label smoothing")
    balance: Literal["none", "sqrt", "inverse", "logit_adjust"] = Field(
        default="none",
        description=(
            "rare classes: sqrt and inverse weigh rows by a power of their class's size; logit_adjust adds the log of "
            "the class's share to the logits in training"
        ),
    )
    teacher: str | None = Field(
        default=None,
        json_schema_extra=FREE,
        description=(
            "distillation: a finished run on the same images; half of each target is then what its members that "
            "never saw the image say; their answers are part of this run"
        ),
    )


class Optimizer(_Settings):
    """How the weights move."""

    name: Literal["adamw", "sgd"] = Field(default="adamw", description="AdamW, or SGD with Nesterov momentum 0.9")
    lr: Positive = Field(default=1e-4, description="peak learning rate")
    weight_decay: float = Field(default=0.01, ge=0, description="decoupled in AdamW")
    decay_norms: bool = Field(default=False, description="weight decay on norms and biases, too")
    clip_norm: Positive | None = Field(default=None, description="largest norm of the gradient; null: no clipping")
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="learning rate of each layer as a share of that of the layer after it"
    )
    average: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description=(
            "decay of the moving average (EMA) of weights and BatchNorm statistics, which is then what is judged and "
            "kept; it rises to this over the first steps; null: no average"
        ),
    )


class Schedule(_Settings):
    """The learning rate over the epochs."""

    name: Literal["cosine", "cosine_warm_restarts", "constant"] = Field(
        default="cosine", description="shape after the warm-up"
    )
    epochs: int = Field(default=10, ge=1, le=100_000, description="passes over the training rows")
    warmup_epochs: float = Field(default=0.0, ge=0, description="linear rise from zero, in epochs; fractions are fine")
    restart_epochs: int = Field(
        default=10, ge=1, le=100_000, description="length of the first cycle of cosine_warm_restarts"
    )
    restart_factor: int = Field(
        default=2, ge=1, le=1000, description="each cycle is this many times as long as the one before"
    )
    update: Literal["step", "epoch"] = Field(default="step", description="how often the learning rate moves")


class Checkpoint(_Settings):
    """What is kept of a fold."""

    select: Literal["last", "best"] = Field(
        default="last",
        description="the epoch whose weights are used; best is chosen on the held-out rows, and so marked `selected`",
    )
    every_epochs: int | None = Field(
        default=None, ge=1, json_schema_extra=FREE, description="keep the weights of every n-th epoch"
    )
    every_minutes: float = Field(
        default=10.0,
        ge=0,
        json_schema_extra=FREE,
        description="resume points within an epoch; each epoch's end has one anyway",
    )


class Recipe(_Settings):
    """One training, whole: what a run folder's recipe.yaml holds."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=100,
        json_schema_extra=FREE,
        description="the run's folder: runs/NAME",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="of initialization, order, augmentation and mixing")
    images: Images
    folds: Folds = Folds()
    backbone: Backbone
    augment: Augment = Augment()
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    batch_size: int = Field(default=64, ge=1, le=1_000_000, description="images a step, over all processes")
    accumulate: int = Field(
        default=1, ge=1, description="parts in which a process computes its share of a batch, to save memory"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(default="fp32", description="arithmetic of the forward pass")
    device: Literal["auto", "cpu"] = Field(
        default="auto", json_schema_extra=FREE, description="auto: a GPU where there is one"
    )
    parameters_limit: int | None = Field(
        default=None, ge=1, json_schema_extra=FREE, description="warn where all folds' models together exceed this"
    )
    checkpoint: Checkpoint = Checkpoint()
    tracking: tuple[str, ...] = Field(
        default=(), json_schema_extra=FREE, description="Accelerate's trackers: tensorboard, wandb"
    )

    @model_validator(mode="after")
    def _settings_fit_together(self) -> "Recipe":
        """pydantic calls this once every single setting is valid; all that is wrong is said at once."""
        wrong = list(_contradictions(self))
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

    @property
    def train_folds(self) -> tuple[int, ...]:
        """The folds that this start trains."""
        return self.folds.train or tuple(range(self.folds.members))

    def identity(self) -> str:
        """Hash of what changes the run's result; data and weights are hashed by content elsewhere."""
        settings = _identity(self)
        if self.folds.repeats == 1:
            del settings["folds"]["repeats"]  # as it was before there were repeats
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _contradictions(recipe: Recipe) -> Iterator[str]:
    folds, schedule, low_high = recipe.folds, recipe.schedule, recipe.augment.crop_scale
    if folds.count == 1 and not recipe.images.validation:
        yield "images.validation: required with folds.count 1; name the held-out images, or set folds.count to 5"
    if folds.count > 1 and recipe.images.validation:
        yield (
            f"images.validation: only used with folds.count 1, got folds.count {folds.count}; "
            "add it to images.train, where folds hold it out in turn, or set folds.count to 1"
        )
    if folds.count == 1 and folds.repeats > 1:
        yield (
            f"folds.repeats: one model has no folds that could be drawn again, got {folds.repeats} with folds.count 1; "
            "set it to 1, or folds.count to 5"
        )
    repeats = f" and folds.repeats {folds.repeats}" if folds.repeats > 1 else ""
    for fold in sorted(set(recipe.train_folds)):
        if fold >= folds.members:
            yield (
                f"folds.train: {fold} is no fold; with folds.count {folds.count}{repeats} they are 0 to "
                f"{folds.members - 1}"
            )
    if len(set(recipe.train_folds)) < len(recipe.train_folds):
        yield f"folds.train: names a fold twice, got {list(recipe.train_folds)}"
    if recipe.backbone.compile == "auto" and recipe.backbone.sync_batchnorm:
        yield (
            "backbone.compile: auto is a trial in one process, where backbone.sync_batchnorm would wait for others; "
            "set it to true or false"
        )
    if schedule.warmup_epochs >= schedule.epochs:
        yield (
            f"schedule.warmup_epochs: must be less than schedule.epochs ({schedule.epochs}), "
            f"got {schedule.warmup_epochs:g}; lower it, too"
        )
    if not 0 < low_high[0] <= low_high[1]:
        yield f"augment.crop_scale: must be [smallest, largest] with 0 < smallest <= largest, got {list(low_high)}"
    if (sizes := recipe.augment.sizes) and len(sizes) > schedule.epochs:
        yield f"augment.sizes: {len(sizes)} sizes need as many epochs, schedule.epochs is {schedule.epochs}"
    if recipe.loss.teacher and folds.count > 1:
        yield (
            f"loss.teacher: its members were trained on what each fold would hold out, got folds.count {folds.count}; "
            "set folds.count to 1, with images.validation, or loss.teacher to null"
        )
    if recipe.backbone.frozen:
        yield from _useless_if_frozen(recipe)
    if recipe.backbone.head_start == "probe" and not recipe.backbone.pretrained and not recipe.backbone.weights:
        yield (
            "backbone.head_start: a probe of random features is worth nothing; set it to none, or "
            "backbone.pretrained=true, or backbone.weights"
        )
    if recipe.backbone.weights and not recipe.backbone.weights.endswith(".safetensors"):
        yield f"backbone.weights: must be a .safetensors file, got {recipe.backbone.weights!r}"


def _useless_if_frozen(recipe: Recipe) -> Iterator[str]:
    backbone, said = recipe.backbone, "is of no use with backbone.frozen"
    if recipe.augment != Augment():
        yield f"augment: {said}, which sees each image once, as in evaluation; remove it, or --set augment={{}}"
    if recipe.images.cache != "off":
        yield f"images.cache: {said}, which decodes each image once anyway; set it to off"
    for name in ("freeze_batch_stats", "sync_batchnorm", "gradient_checkpointing", "compile", "drop_path"):
        if getattr(backbone, name):
            plain = json.dumps(Backbone.model_fields[name].default)
            yield f"backbone.{name}: {said}, which computes the backbone as it is; set it to {plain}"
    if backbone.head_start != "none":
        yield f"backbone.head_start: {said}, which trains that classifier itself; set it to none"
    for name, plain in (("layer_decay", 1.0), ("average", None)):
        if getattr(recipe.optimizer, name) != plain:
            yield f"optimizer.{name}: {said}, which trains one layer; set it to {json.dumps(plain)}"
    if not backbone.pretrained and not backbone.weights:
        yield "backbone.frozen: random features are worth nothing; set backbone.pretrained=true, or backbone.weights"


def _identity(settings: BaseModel) -> dict[str, Any]:
    kept = {}
    for name, field in type(settings).model_fields.items():
        extra = field.json_schema_extra
        if not (isinstance(extra, dict) and extra.get("identity") is False):
            value = getattr(settings, name)
            kept[name] = _identity(value) if isinstance(value, BaseModel) else value
    return kept


def recipe_changes(before: Recipe, after: Recipe) -> list[str]:
    """Settings that differ between two recipes and change the result, as `key: before -> after`."""
    old, new = dict(_flat(_identity(before))), dict(_flat(_identity(after)))
    return [f"{key}: {json.dumps(old[key])} -> {json.dumps(new[key])}" for key in old if old[key] != new[key]]


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def cycle_ends(schedule: Schedule) -> list[int]:
    """Epochs after which a cycle of cosine_warm_restarts ends, up to the first one at or after the last epoch."""
    ends, length, end = [], schedule.restart_epochs, schedule.warmup_epochs
    while not ends or ends[-1] < schedule.epochs:
        end += length
        ends.append(int(end))
        length *= schedule.restart_factor
    return ends


def recipe_warnings(recipe: Recipe) -> list[str]:
    """What is allowed and seldom meant."""
    schedule = recipe.schedule
    if schedule.name == "cosine_warm_restarts" and (ends := cycle_ends(schedule))[-1] != schedule.epochs:
        past = schedule.epochs - (ends[-2] if len(ends) > 1 else schedule.warmup_epochs)
        choices = " or ".join(str(end) for end in ends[-2:])
        return [
            f"schedule.epochs: {schedule.epochs} ends inside a restart cycle, {past:g} epochs after its start, with "
            f"the learning rate still high; cycles end at {choices}"
        ]
    return []


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe whole, with overrides such as `schedule.epochs=5` merged before the check.

    Raises UserError with every mistake at once.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UserError(f"--recipe: {path} is larger than {MAX_BYTES >> 20} MiB, which no recipe is")
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise UserError(f"--recipe: cannot read {path}: {reason}") from error
    settings = _parse_yaml(text, str(path))
    if not isinstance(settings, dict):
        given = "nothing" if settings is None else f"a {type(settings).__name__}"
        raise UserError(f"{path}: a recipe is a mapping of settings (`name: first`, one a line), got {given}")
    for override in overrides:
        _merge(settings, override)
    return check_recipe(settings, str(path))


def check_recipe(settings: dict[str, Any], source: str) -> Recipe:
    """A Recipe from plain values; raises UserError with every mistake at once."""
    try:
        # Through JSON: strict types without refusing a list where the frozen model holds a tuple.
        text = json.dumps(settings, default=str)
    except (TypeError, ValueError) as error:
        raise UserError(f"{source}: the names of settings are plain words: {error}") from error
    try:
        return Recipe.model_validate_json(text)
    except ValidationError as error:
        problems = error.errors()
        lines = [line for problem in problems[:MAX_MISTAKES] for line in _explain(dict(problem))]
        count = max(len(problems), len(lines))
        more = [f"and {len(problems) - MAX_MISTAKES} more"] if len(problems) > MAX_MISTAKES else []
        raise UserError("\n  ".join([f"{source}: {count} mistake{'s' * (count > 1)}", *lines, *more])) from error


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    text = recipe.model_dump_json()
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.allow_unicode = "\x85" not in text  # a line end to YAML, which the writer does not escape
    writer.dump(json.loads(text), out := StringIO())
    return out.getvalue()


class _Constructor(SafeConstructor):
    """YAML 1.2's values: a date is a string."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


def _parse_yaml(text: str, source: str) -> Any:
    reader = YAML(typ="safe", pure=True)
    reader.Constructor = _Constructor
    try:
        _refuse_bombs(text, source)
        return reader.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{source}{where}: {error.problem or error.context}") from error
    except UserError:
        raise
    except (YAMLError, ValueError) as error:
        raise UserError(f"{source}: no YAML: {error}") from error


def _refuse_bombs(text: str, source: str) -> None:
    """Read no more than the syntax: a few lines of aliases can stand for gigabytes, and a deep nest ends the stack."""
    depth = 0
    for n, event in enumerate(YAML(typ="safe", pure=True).parse(text)):
        where = f"{source}, line {event.start_mark.line + 1}"
        if isinstance(event, AliasEvent):
            raise UserError(f"{where}: *{event.anchor} is an alias, which recipes do not have; write the value itself")
        if tag := getattr(event, "tag", None):
            raise UserError(f"{where}: {tag} is a tag, which recipes do not have; write the value alone, or in quotes")
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise UserError(f"{where}: nested too deeply, {MAX_DEPTH} levels are the most")
        if n > MAX_VALUES:
            raise UserError(f"{where}: too many values, {MAX_VALUES} are the most")


def _merge(settings: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"--set: must look like schedule.epochs=5, got {override!r}")
    *parents, last = key.split(".")
    for i, parent in enumerate(parents):
        settings = settings.setdefault(parent, {})
        if not isinstance(settings, dict):
            raise UserError(f"--set {override}: {'.'.join(parents[: i + 1])} is one value and has no settings inside")
    settings[last] = _parse_yaml(value, f"--set {key}")


def _keys(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.")


def _nearest(key: str) -> str:
    """The setting that a wrong key most likely means: alike in the last part, of the same group if possible."""
    group, _, own = key.rpartition(".")

    def likeness(other: str) -> tuple[float, bool]:
        other_group, _, name = other.rpartition(".")
        return difflib.SequenceMatcher(None, own, name).ratio(), other_group == group

    best = max(_keys(), key=likeness)
    return best if likeness(best)[0] >= 0.6 else ""


def _explain(problem: dict[str, Any]) -> list[str]:
    """The mistakes of one pydantic error, each as one line: setting, rule, value and way out."""
    key, given = _short(printable(".".join(str(part) for part in problem["loc"]))), problem["input"]
    shown = _short(json.dumps(given))
    match problem["type"]:
        case "extra_forbidden":
            if key in _keys():
                return [f"{key}: no such setting here; write it within {key.rpartition('.')[0]}"]
            near = _nearest(key)
            way_out = f"did you mean {near}?" if near else "`creature schema` lists all"
            return [f"{key}: no such setting; {way_out}"]
        case "json_invalid":
            return ["a text holds half a character (a lone surrogate, such as \\ud800); name files in UTF-8"]
        case "missing":
            return [f"{key}: required, and not given"]
        case "value_error":
            return str(problem["ctx"]["error"]).split("\n")
        case "literal_error":
            choices = _choices(problem["loc"])
            near = difflib.get_close_matches(str(given)[:60], choices, n=1)
            return [
                f"{key}: must be one of {', '.join(choices)}, got {shown}"
                + (f"; did you mean {near[0]}?" if near else "")
            ]
        case "model_type":
            return [f"{key}: must hold settings, indented below it, got {shown}"]
        case "tuple_type":
            return [f"{key}: must be a list, such as [a, b], got {shown}"]
        case "too_short" if not given:
            return [f"{key}: must hold one value or more, such as [a, b], got {shown}"]
        case "string_type":
            return [f"{key}: must be text, in quotes where it looks like a number, got {shown}"]
        case _:
            return [f"{key}: {problem['msg'][0].lower()}{problem['msg'][1:]}, got {shown}"]


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}..."


def _choices(loc: Sequence[str | int]) -> list[str]:
    model: Any = Recipe
    for part in loc:
        model = model.model_fields[part].annotation
    return [choice if isinstance(choice, str) else json.dumps(choice) for choice in get_args(model)]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    description = "Print every setting of a recipe with its meaning: creature schema > recipe.schema.json"
    return argparse.ArgumentParser(prog="creature schema", description=description).parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the JSON schema of a recipe."""
    parse(argv)
    print(json.dumps(Recipe.model_json_schema(), indent=2))
    return 0
