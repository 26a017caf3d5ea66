"""The recipe: every setting of a training, with its default, bounds and meaning, once.

Importing this module is cheap: what needs torch, timm or the device is checked later, still before any data is read.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator  # guard: light-schema

# Spellings of earlier versions, which recipe files and --set still may use; a group's name never changed.
OLDER_KEYS = {
    "images.fit": "images.crop_mode",
    "augment.erasing": "augment.random_erasing",
    "optimizer.average": "optimizer.ema_decay",
    "accumulate": "gradient_accumulation_steps",
}

# Marks a setting that does not change a run's result, and so is not part of its identity.
NOT_IN_IDENTITY = Field(json_schema_extra={"identity": False})

Fraction = Annotated[float, Field(ge=0, le=1)]
Side = Annotated[int, Field(ge=16, le=2048)]  # of a square input, in pixels
PlacePath = Annotated[str, AfterValidator(os.path.expanduser)]  # of a file or folder; ~ is the user's home
FoldIndex = Annotated[int, Field(ge=0)]


def _check_trained(part: str) -> str:
    if not re.fullmatch(r"all|norms|last:[1-9]\d{0,2}", part):
        raise ValueError("must be all, norms or last:N with N of 1 or more, such as last:2")
    return part


TrainedPart = Annotated[str, AfterValidator(_check_trained)]


def _join_lines(schema: dict[str, Any]) -> None:
    """Make each setting's description one line again, which its docstring may have wrapped."""
    for setting in schema["properties"].values():
        if "description" in setting:
            setting["description"] = " ".join(setting["description"].split())


class _Settings(BaseModel, use_attribute_docstrings=True, json_schema_extra=_join_lines):
    """Settings, each with its description as the docstring below it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)  # guard: strict-schema


class Images(_Settings):
    """Where the images are, and how they are read and preprocessed."""

    train: Annotated[tuple[PlacePath, ...], NOT_IN_IDENTITY] = Field(min_length=1)
    """training images: folders with one subfolder per class, .parquet or .arrow files, or hub:USER/DATASET:SPLIT;
    several sources are pooled"""
    validation: Annotated[tuple[PlacePath, ...], NOT_IN_IDENTITY] = ()
    """held-out images for folds.count 1; with more folds each fold holds out its own"""
    holdout: Annotated[tuple[PlacePath, ...], NOT_IN_IDENTITY] = ()
    """labelled images that no fold trains on; ensemble.py scores the ensemble on them"""
    labels: Annotated[PlacePath | None, NOT_IN_IDENTITY] = None
    """CSV file with columns image and label, for flat folders without class subfolders"""
    holdout_labels: Annotated[PlacePath | None, NOT_IN_IDENTITY] = None
    """such a CSV file for images.holdout, where images.labels is not its own; null: images.labels"""
    image_column: str = "image"
    """name of the image column in Parquet, Arrow and Hub datasets"""
    label_column: str = "label"
    """name of the label column in Parquet, Arrow and Hub datasets, and in images.labels"""
    size: Side = 224
    """side of the square model input, in pixels; training may use others (augment.sizes)"""
    crop_mode: Literal["squash", "center", "border"] = "squash"
    """how evaluation makes an image square: squash resizes both sides and distorts, center crops the middle, border
    pads with the mean colour"""
    normalize: Literal["none", "imagenet", "backbone"] = "backbone"
    """mean and standard deviation of the input channels: none keeps values in [0, 1], imagenet uses ImageNet's,
    backbone those of its pretraining"""
    max_bad: Annotated[int | None, NOT_IN_IDENTITY] = Field(default=None, ge=0)
    """number of unreadable images above which the run stops; null: the larger of 3 and 1 % of all"""
    cache: Literal["off", "auto", "memory", "disk", "device"] = "off"
    """keep decoded images for all folds, epochs and runs, at 8/7 of the input size, which slightly blurs the smallest
    random crops; evaluation is not affected; auto: disk if it takes at most 16 GiB, else off; device: on disk and in
    the GPU's memory, where crops are cut, flipped and rotated without workers"""
    workers: Annotated[Annotated[int, Field(ge=0, le=128)] | Literal["auto"], NOT_IN_IDENTITY] = "auto"
    """number of worker processes that decode and augment; 0: in the main process; auto: as many as the device needs and
    the cores allow"""


class Folds(_Settings):
    """How the images are split for cross-validation."""

    count: int = Field(default=5, ge=1, le=100)
    """number of folds K; 1: a single model, evaluated on images.validation"""
    repeats: int = Field(default=1, ge=1, le=20)
    """number of times R that the images are split into K folds anew, for R x K members; R of them have never seen a
    given image, so their ensemble is scored without a holdout"""
    train: Annotated[tuple[FoldIndex, ...] | None, NOT_IN_IDENTITY] = Field(default=None, min_length=1)
    """indices of the folds to train now, counted from 0; null: all"""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """random seed of the split; runs can only be combined if it is the same"""
    group: str | None = None
    """keep related images in one fold, such as those of one site or animal: the name of a column, or a regular
    expression with one (group), searched in each image's id"""

    @property
    def members(self) -> int:
        """How many models there are when all folds of all repeats are trained."""
        return self.count * self.repeats


class Backbone(_Settings):
    """The network that is fine-tuned."""

    name: str
    """name of a timm model, with the tag of its pretraining, such as resnext101_64x4d.tv_in1k; or where timm's
    config.json and model.safetensors are, whose classifier is replaced: hf-hub:USER/NAME, local-dir:FOLDER, or the
    folder of a fold or a run"""
    pretrained: bool = True
    """start from pretrained weights: timm's (the Hub, or the local cache), or those that name says; false: from random
    weights"""
    weights: Annotated[PlacePath | None, NOT_IN_IDENTITY] = None
    """start from this .safetensors file instead; the run is bound to the file's content, not its path"""
    head_start: Literal["none", "probe"] = "none"
    """initial weights of the new classifier: none, zeros; probe, a logistic regression fitted on features of the
    pretrained backbone for the fold's training images"""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """stochastic depth: probability of skipping the deepest block; it falls linearly towards the input"""
    frozen: bool = False
    """train only the classifier, on features of the unaugmented images, computed once for all folds and epochs"""
    train: TrainedPart = "all"
    """what of the network learns beside the classifier: all; norms, its normalization layers; or last:N, its N last
    blocks, such as last:2"""
    freeze_batch_stats: bool = False
    """keep BatchNorm's running mean and variance as they were pretrained"""
    sync_batchnorm: bool = False
    """compute BatchNorm statistics over all GPUs instead of on each"""
    gradient_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, steps about 30 % longer"""
    channels_last: bool = True
    """store images and activations as NHWC, which convolutions prefer"""
    compile: bool = False
    """use torch.compile for training, which costs about a minute at the start of each fold; on a CPU, steps were
    between 3 % shorter and 13 % longer, depending on the network; not measured on a GPU"""


class Augment(_Settings):
    """Random augmentation of training images; held-out images are never augmented."""

    crop_scale: tuple[Fraction, Fraction] = (0.08, 1.0)
    """[smallest, largest] area of a random resized crop, as a fraction of the image's area"""
    flip: Fraction = 0.5
    """probability of a horizontal flip"""
    vertical_flip: Fraction = 0.0
    """probability of a vertical flip, for images that have no up and down, such as those of a microscope"""
    rotation: float = Field(default=0.0, ge=0, le=180)
    """largest random rotation in either direction, in degrees"""
    policy: Literal["none", "rand_augment", "trivial_augment", "augmix", "three_augment"] = "none"
    """automatic augmentation policy: RandAugment, TrivialAugment, AugMix, or one of grey, solarize and blur
    (3-Augment)"""
    color_jitter: Fraction = 0.0
    """largest relative change of brightness, contrast and saturation in either direction"""
    random_erasing: Fraction = 0.0
    """probability that a random rectangle of the image is blacked out"""
    mix: Literal["none", "mixup", "cutmix", "mixup_or_cutmix"] = "none"
    """mix pairs of images, and their labels, within a batch; mixup_or_cutmix picks one for each batch"""
    mix_alpha: float = Field(default=1.0, gt=0)
    """the mixing proportion of each batch is drawn from Beta(alpha, alpha)"""
    mix_probability: float = Field(default=1.0, gt=0, le=1)
    """probability that a batch is mixed"""
    mix_until: float = Field(default=1.0, gt=0, le=1)
    """fraction of the epochs after which no batch is mixed any more"""
    sizes: tuple[Side, ...] | None = Field(default=None, min_length=1)
    """sides of the training images in pixels, each used for an equal share of the epochs, in this order; null:
    images.size throughout"""


class Loss(_Settings):
    """What is minimized."""

    name: Literal["cross_entropy", "focal", "binary_cross_entropy"] = "cross_entropy"
    """cross-entropy; focal loss, which weighs an image less the more confident the model is; or binary cross-entropy,
    which asks of each class by itself whether it is there, as it may be beside another in a mixed image"""
    gamma: float = Field(default=2.0, ge=0, le=10)
    """focusing exponent of the focal loss; 0 equals cross-entropy"""
    smoothing: float = Field(default=0.0, ge=0, lt=1)
    """label smoothing: probability mass that is spread over all classes"""
    balance: Literal["none", "sqrt", "inverse", "logit_adjust"] = "none"
    """for rare classes: sqrt and inverse weigh an image by the inverse square root, or the inverse, of its class's
    size; logit_adjust adds the log of the class's frequency to the training logits"""
    teacher: Annotated[PlacePath | None, NOT_IN_IDENTITY] = None
    """distillation: the folder of a finished run on the same images; half of each target is the label, half the
    prediction of the run's members that never saw the image; the run is bound to these predictions"""


class Optimizer(_Settings):
    """How the weights are updated."""

    name: str = "adamw"
    """adamw, sgd (with Nesterov momentum 0.9) or another of timm's optimizers, such as lion, muon, adopt and lamb;
    lookahead_NAME averages the steps of any"""
    lr: float = Field(default=1e-4, gt=0)
    """peak learning rate; schedule says how it changes"""
    weight_decay: float = Field(default=0.01, ge=0)
    """weight decay coefficient; decoupled in adamw, lion and muon, an L2 penalty in sgd; in others as timm has it: a
    name that ends in w is the decoupled form"""
    decay_norms: bool = False
    """apply weight decay to normalization layers and biases, too"""
    clip_norm: float | None = Field(default=None, gt=0)
    """largest L2 norm of the whole gradient; a larger one is scaled down; null: no limit"""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """learning rate of each layer, as a fraction of the next layer's"""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """decay per step of the exponential moving average (EMA) of weights and BatchNorm statistics, which is then what is
    evaluated and saved; it is smaller during the first steps; null: no average"""


class Schedule(_Settings):
    """The learning rate over the epochs."""

    name: Literal["cosine", "cosine_warm_restarts", "constant"] = "cosine"
    """shape of the learning rate after the warm-up"""
    epochs: int = Field(default=10, ge=1, le=100_000)
    """number of passes over the training images"""
    warmup_epochs: float = Field(default=0.0, ge=0)
    """epochs, fractions allowed, in which the learning rate rises linearly from zero"""
    min_steps: int = Field(default=0, ge=0, le=100_000)
    """least number of optimizer steps a fold: where epochs are fewer, as of few images, there are more epochs, and the
    warm-up is longer in proportion; 0: as many as epochs make"""
    restart_epochs: int = Field(default=10, ge=1, le=100_000)
    """cosine_warm_restarts: length of the first cycle, in epochs"""
    restart_factor: int = Field(default=2, ge=1, le=1000)
    """cosine_warm_restarts: each cycle is this many times as long as the last"""
    update: Literal["step", "epoch"] = "step"
    """whether the learning rate changes at every step, or once per epoch"""

    def lengthened(self, steps: int) -> "Schedule":
        """The schedule of epochs of so many steps: itself, or one of more epochs that has min_steps."""
        epochs = math.ceil(self.min_steps / steps)
        if epochs <= self.epochs:
            return self
        return self.model_copy(update={"epochs": epochs, "warmup_epochs": self.warmup_epochs * epochs / self.epochs})

    def cycle_ends(self) -> list[int]:
        """Epochs after which a cycle of cosine_warm_restarts ends, up to the first one at or after the last epoch."""
        ends, length, end = [], self.restart_epochs, self.warmup_epochs
        while not ends or ends[-1] < self.epochs:
            end += length
            ends.append(int(end))
            length *= self.restart_factor
        return ends


class Checkpoint(_Settings):
    """Which weights of a fold are kept, and how often a training can be resumed."""

    select: Literal["last", "best"] = "last"
    """epoch whose weights are used: the last, or the one with the best held-out score, which is optimistic and
    therefore marked `selected`"""
    metric: Literal["accuracy", "balanced_accuracy", "macro_f1"] = "accuracy"
    """the score that the best epoch has; balanced accuracy (the mean recall of the classes) and macro F1 count rare
    classes as much as frequent ones"""
    every_epochs: Annotated[int | None, NOT_IN_IDENTITY] = Field(default=None, ge=1)
    """also keep the weights of every n-th epoch; null: only those of the last and the best"""
    every_minutes: Annotated[float, NOT_IN_IDENTITY] = Field(default=10.0, ge=0)
    """minutes between resume points within an epoch; 0: at every step; each epoch's end has one anyway"""


class Recipe(_Settings):
    """All settings of one training; a run's recipe.yaml holds them."""

    name: Annotated[str, NOT_IN_IDENTITY] = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """name of the run; its folder is runs/NAME unless --out says otherwise"""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """random seed of initial weights, image order, augmentation and mixing"""
    images: Images
    folds: Folds = Folds()
    backbone: Backbone
    augment: Augment = Augment()
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    batch_size: int = Field(default=64, ge=1, le=1_000_000)
    """number of images per optimizer step, over all processes together"""
    gradient_accumulation_steps: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """number of micro-batches in which each process computes its share of batch_size, to save memory; the batch size
    stays the same; auto: 1, or with one process 2, 4, ... from the first step on that does not fit"""
    deterministic: bool = False
    """the same bits each time on the same GPU, where training takes longer; on a CPU they are the same anyway"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """floating-point format of the forward and backward pass; weights stay fp32"""
    device: Annotated[Literal["auto", "cpu"], NOT_IN_IDENTITY] = "auto"
    """auto: a GPU if there is one, else the CPU"""
    parameters_limit: Annotated[int | None, NOT_IN_IDENTITY] = Field(default=None, ge=1)
    """warn if the models of all folds together have more parameters than this; null: no limit"""
    checkpoint: Checkpoint = Checkpoint()
    tracking: Annotated[tuple[str, ...], NOT_IN_IDENTITY] = ()
    """experiment trackers of Accelerate to log to, such as tensorboard and wandb"""

    @model_validator(mode="after")
    def _settings_fit_together(self) -> "Recipe":
        """Called by pydantic once each setting is valid by itself; reports all contradictions at once."""
        if contradictions := list(_contradictions(self)):
            raise ValueError("\n".join(contradictions))
        return self

    @property
    def train_folds(self) -> tuple[int, ...]:
        """The folds that this start trains."""
        return self.folds.train or tuple(range(self.folds.members))

    def identity(self) -> str:
        """Hash of the settings that change the run's result; data and weights are hashed by content elsewhere."""
        return hashlib.sha256(json.dumps(identity_settings(self), sort_keys=True).encode()).hexdigest()


def _contradictions(recipe: Recipe) -> Iterator[str]:
    schedule, low_high = recipe.schedule, recipe.augment.crop_scale
    yield from _contradictions_of_folds(recipe)
    if schedule.warmup_epochs >= schedule.epochs:
        yield (
            f"schedule.warmup_epochs: must be less than schedule.epochs ({schedule.epochs}), "
            f"got {schedule.warmup_epochs:g}; lower it, too"
        )
    if schedule.min_steps and schedule.name == "cosine_warm_restarts":
        yield (
            f"schedule.min_steps: more epochs would end inside a cycle of cosine_warm_restarts, got "
            f"{schedule.min_steps}; set it to 0, or schedule.name to cosine"
        )
    if not 0 < low_high[0] <= low_high[1]:
        yield f"augment.crop_scale: must be [smallest, largest] with 0 < smallest <= largest, got {list(low_high)}"
    if (sizes := recipe.augment.sizes) and len(sizes) > schedule.epochs:
        yield f"augment.sizes: {len(sizes)} sizes need as many epochs, schedule.epochs is {schedule.epochs}"
    for name, plain in (("policy", "none"), ("color_jitter", 0.0)):
        if recipe.images.cache == "device" and (value := getattr(recipe.augment, name)) != plain:
            yield (
                f"images.cache: device crops, flips and rotates alone, got augment.{name} {value}; set it to disk, "
                f"from which workers augment, or augment.{name} to {plain}"
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


def _contradictions_of_folds(recipe: Recipe) -> Iterator[str]:
    folds = recipe.folds
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
    if recipe.loss.teacher and folds.count > 1:
        yield (
            f"loss.teacher: its members were trained on what each fold would hold out, got folds.count {folds.count}; "
            "set folds.count to 1, with images.validation, or loss.teacher to null"
        )


def _useless_if_frozen(recipe: Recipe) -> Iterator[str]:
    backbone, useless = recipe.backbone, "is of no use with backbone.frozen"
    if recipe.augment != Augment():
        yield f"augment: {useless}, which sees each image once, as in evaluation; remove it, or --set augment={{}}"
    if recipe.images.cache != "off":
        yield f"images.cache: {useless}, which decodes each image once anyway; set it to off"
    for name in ("train", "freeze_batch_stats", "sync_batchnorm", "gradient_checkpointing", "compile", "drop_path"):
        if getattr(backbone, name) != Backbone.model_fields[name].default:
            plain = json.dumps(Backbone.model_fields[name].default)
            yield f"backbone.{name}: {useless}, which computes the backbone as it is; set it to {plain}"
    if backbone.head_start != "none":
        yield f"backbone.head_start: {useless}, which trains that classifier itself; set it to none"
    for name, plain in (("layer_decay", 1.0), ("ema_decay", None)):
        if getattr(recipe.optimizer, name) != plain:
            yield f"optimizer.{name}: {useless}, which trains one layer; set it to {json.dumps(plain)}"
    if not backbone.pretrained and not backbone.weights:
        yield "backbone.frozen: random features are worth nothing; set backbone.pretrained=true, or backbone.weights"


def _result_settings(settings: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings that change a run's result, by their keys, such as `folds.count`."""
    for name, field in type(settings).model_fields.items():
        value, extra = getattr(settings, name), field.json_schema_extra
        if isinstance(value, BaseModel):
            yield from _result_settings(value, f"{prefix}{name}.")
        elif name == "gradient_accumulation_steps" and value == "auto":
            yield prefix + name, 1  # which it is where memory suffices, and was before there was `auto`
        elif not (isinstance(extra, dict) and extra.get("identity") is False):
            yield prefix + name, value


# Settings that came later: where they have this value, a recipe's identity is what it was before them.
ADDED_KEYS = {
    "folds.repeats": 1,
    "deterministic": False,
    "schedule.min_steps": 0,
    "backbone.train": "all",
    "checkpoint.metric": "accuracy",
    "augment.vertical_flip": 0.0,
    "augment.color_jitter": 0.0,
    "augment.mix_probability": 1.0,
    "augment.mix_until": 1.0,
}


def identity_settings(recipe: Recipe) -> dict[str, Any]:
    """What a recipe's identity is the hash of: settings as earlier versions spelled them, whose hashes stay valid."""
    settings = dict(_result_settings(recipe))
    for key, default in ADDED_KEYS.items():
        if settings[key] == default:
            del settings[key]
    for older, key in OLDER_KEYS.items():
        settings[older] = settings.pop(key)
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        group, _, name = key.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[name] = value
    return nested


def recipe_changes(before: Recipe, after: Recipe) -> list[str]:
    """Settings that differ between two recipes and change the result, as `key: before -> after`."""
    old, new = (dict(_result_settings(recipe)) for recipe in (before, after))
    return [f"{key}: {json.dumps(old[key])} -> {json.dumps(new[key])}" for key in old if old[key] != new[key]]


def recipe_warnings(recipe: Recipe) -> Iterator[str]:
    """Settings that are allowed and seldom meant, each as one line."""
    schedule = recipe.schedule
    if schedule.name == "cosine_warm_restarts" and (ends := schedule.cycle_ends())[-1] != schedule.epochs:
        past = schedule.epochs - (ends[-2] if len(ends) > 1 else schedule.warmup_epochs)
        choices = " or ".join(str(end) for end in ends[-2:])
        yield (
            f"schedule.epochs: {schedule.epochs} ends inside a restart cycle, {past:g} epochs after its start, with "
            f"the learning rate still high; cycles end at {choices}"
        )
