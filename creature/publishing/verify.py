"""Checks of an exported folder: other libraries predict the same with it, and nothing in it names this machine.

K classes, S side of the evaluation view.
"""

import re
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import timm
import torch
from PIL import Image
from safetensors import safe_open
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

from creature.console import only_errors_of, printable
from creature.errors import UserError, first_line
from creature.inference.members import load_member
from creature.publishing.golden import read_golden

TOLERANCE = 1e-5
TEXTS = (".json", ".jsonl", ".md", ".yaml", ".arrow")  # a fold file holds text among its numbers
TOKEN = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bsk-[\w-]{20,}|\bAKIA[0-9A-Z]{16}\b"
    r"|\bxox[abp]-[\w-]{10,}|\beyJ[\w-]{10,}\.[\w-]{10,}\.|-----BEGIN [A-Z ]*PRIVATE KEY"
)
# Absolute paths of at least two names, C:\ and \\host, the home folder, and URLs of files.
PATH = re.compile(r"(?<![\w./:<>)}\]~])/[\w.@+-]+/[^\s\"'<>|`]*|\b[A-Za-z]:\\+\w|(?<!\\)\\\\\\\\\w|~/\w|file://")


# Where people's files lie.
ROOTS = {"home", "Users", "root", "data", "mnt", "media", "tmp", "var", "opt", "srv", "scratch", "work", "workspace"}
ROOTS |= {"content", "kaggle", "gpfs", "lustre", "nfs", "storage", "Volumes", "private", "cluster", "projects"}


@dataclass(frozen=True)
class Expected:
    """The golden image, and what a library that loads the folder must compute of it."""

    image: Image.Image
    pixels: torch.Tensor  # uint8 (1, 3, S, S)
    inputs: torch.Tensor  # float32 (1, 3, S, S), normalized
    logits: np.ndarray  # (K,)
    labels: tuple[str, ...]


def verify(folder: Path, public: Collection[str] = (), *, reviewed: bool = False) -> list[tuple[str, str]]:
    """Rows (check, outcome) for a folder; words of the `public` texts may stand in its files.

    Somebody who has `reviewed` the texts wants no places looked for in them.

    Raises UserError with everything that is wrong.
    """
    golden = read_golden(folder)
    member = load_member(folder, torch.device("cpu"))
    image = Image.open(folder / golden.image).convert("RGB")
    pixels = torch.from_numpy(member.transform(image))[None]
    inputs = member.normalize(pixels).contiguous()
    expected = Expected(image, pixels, inputs, logits=np.array(golden.logits), labels=golden.labels)
    checks = {
        "timm loads it: same pixels, logits, labels": _with_timm(folder, expected),
        "weights only, in safetensors": _weights(folder, member.model),
        "no path, token or name of this machine": scan(folder, public, reviewed=reviewed),
    }
    title = "transformers loads it: same pixels, logits, labels"
    if not (unavailable := _why_no_transformers()):
        checks[title] = _with_transformers(folder, expected)
    rows, wrong = [], []
    for name, check in checks.items():
        try:
            problems = list(check)
        except Exception as error:  # whatever a library raises on a folder that it cannot load
            problems = [f"{type(error).__name__}: {first_line(error)}"]
        wrong += [f"{name}: {problem}" for problem in problems]
        rows.append((name, "failed" if problems else "ok"))
    if wrong:
        raise UserError(f"{folder} must not be published:\n  " + "\n  ".join(map(printable, wrong)))
    return [*rows, (title, f"not checked: {unavailable}")] if unavailable else rows


def _why_no_transformers() -> str:
    """Why transformers cannot be imported; empty where it can."""
    try:
        import transformers  # noqa: F401
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    except ImportError as error:  # it refuses packages of other versions
        return first_line(error)
    return ""


def _compare(what: str, computed: npt.ArrayLike, expected: npt.ArrayLike) -> Iterator[str]:
    computed, expected = np.asarray(computed), np.asarray(expected)
    if computed.shape != expected.shape:
        yield f"{what} of shape {computed.shape}, expected {expected.shape}"
    elif (largest := float(np.abs(computed - expected).max())) > TOLERANCE * max(1.0, float(np.abs(expected).max())):
        yield f"{what} differ by {largest:.2g}, of up to {float(np.abs(expected).max()):.2g}"


@torch.inference_mode()
def _with_timm(folder: Path, expected: Expected) -> Iterator[str]:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config = resolve_model_data_config(model)
    pixels = create_transform(**config, normalize=False)(expected.image)  # type: ignore[operator]
    if not torch.equal(pixels, expected.pixels[0]):  # type: ignore[arg-type]
        yield "its evaluation view gives other pixels"
    inputs = create_transform(**config)(expected.image)[None]  # type: ignore[index, operator, call-arg]
    yield from _compare("normalized pixels", inputs, expected.inputs)
    yield from _compare("logits", model(inputs)[0], expected.logits)
    if tuple(model.pretrained_cfg["label_names"]) != expected.labels:  # type: ignore[index]
        yield "its labels are in another order"


@torch.inference_mode()
def _with_transformers(folder: Path, expected: Expected) -> Iterator[str]:
    from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

    with _quiet_transformers():
        model = AutoModelForImageClassification.from_pretrained(folder).eval()
        processor = AutoImageProcessor.from_pretrained(folder)
        inputs = processor(expected.image, return_tensors="pt")["pixel_values"]
        logits = model(inputs).logits[0]
        classify = pipeline("image-classification", model=model, image_processor=processor)  # type: ignore[call-overload]
        predictions = classify(expected.image, top_k=len(expected.labels))  # type: ignore[arg-type]
    yield from _compare("normalized pixels", inputs, expected.inputs)
    yield from _compare("logits", logits, expected.logits)
    if tuple(model.config.id2label[k] for k in range(len(expected.labels))) != expected.labels:
        yield "its labels are in another order"
    by_label = {prediction["label"]: prediction["score"] for prediction in predictions}
    probabilities = [by_label.get(label, np.nan) for label in expected.labels]
    yield from _compare("pipeline's probabilities", probabilities, torch.tensor(expected.logits).softmax(0))


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Within the block, transformers logs errors alone and shows no progress; afterwards it does what it did."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with only_errors_of("transformers"):
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _weights(folder: Path, model: torch.nn.Module) -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"):
            yield f"{path.name} may be a pickle"
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        if different := set(file.keys()) ^ set(model.state_dict()):
            yield f"model.safetensors has more or less than the model: {', '.join(sorted(different)[:5])}"
        metadata = file.metadata() or {}
    if metadata.get("format") != "pt":
        yield "model.safetensors lacks the metadata format: pt, which transformers asks for"
    if set(metadata) - {"format"}:
        yield f"model.safetensors has metadata that no one reads: {', '.join(sorted(set(metadata) - {'format'}))}"


def scan(folder: Path, public: Collection[str] = (), *, reviewed: bool = False) -> Iterator[str]:
    """What in the texts of a folder names this machine or its user: paths, tokens, user@host, a host such as gpu-7.

    A user's name or a host's that is a word (max, laptop) may stand for anything, and is not looked for. `reviewed`
    looks for tokens alone.
    """
    allowed = {word.lower() for text in public for word in re.findall(r"\w+", text)}
    host = socket.gethostname()
    private = []
    if host != "localhost" and not set(re.findall(r"\w+", host.lower())) <= allowed:
        private = [rf"[\w.-]+@{re.escape(host)}"] + [re.escape(host)] * bool(re.search(r"[\d.-]", host))
    named = re.compile("|".join(rf"(?<!\w){name}(?!\w)" for name in private) or r"(?!)", re.IGNORECASE)
    kinds = [("a token", TOKEN)]
    if not reviewed:
        kinds += [("a path of this machine", PATH), ("a name of this machine", named)]
    for path in sorted(folder.rglob("*")):
        if path.suffix not in TEXTS:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        for kind, pattern in kinds:
            if match := next(filter(_names_a_place, pattern.finditer(text)), None):
                line = text.count("\n", 0, match.start()) + 1
                shown = f"{match.group()[:4]}..." if kind == "a token" else match.group()[:80]
                way_out = "" if kind == "a token" else "; where it may be read by all, --reviewed goes on"
                yield f"{path.name}, line {line}: {kind}: {shown}{way_out}"


def _names_a_place(match: re.Match[str]) -> bool:
    """Whether what looks like a path begins as one here or elsewhere does; class names such as /m/01yrx do not."""
    root = re.match(r"/([\w.@+-]+)/", match.group())
    return root is None or root[1] in ROOTS or Path("/", root[1]).is_dir()
