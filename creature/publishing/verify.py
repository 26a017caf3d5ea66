"""What an exported folder must prove before anyone gets it: it gives the same elsewhere, and tells nothing.

K classes, S side of the evaluation view.
"""

import getpass
import json
import re
import socket
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors import safe_open
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

from creature.console import printable
from creature.errors import UserError
from creature.inference.members import load_member

TOLERANCE = 1e-5
TEXTS = (".json", ".jsonl", ".md", ".yaml", ".arrow")  # a fold file holds text among its numbers
TOKEN = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bsk-[\w-]{20,}|\bAKIA[0-9A-Z]{16}\b"
    r"|\bxox[abp]-[\w-]{10,}|\beyJ[\w-]{10,}\.[\w-]{10,}\.|-----BEGIN [A-Z ]*PRIVATE KEY"
)
# A slash after a space, a quote or a bracket, and a second one; C:\ and \\host; the home folder; what URLs call a file.
PATH = re.compile(r"(?<![\w./:<>)}\]~])/[\w.@+-]+/[^\s\"'<>|`]*|\b[A-Za-z]:\\+\w|(?<!\\)\\\\\\\\\w|~/\w|file://")


def verify(folder: Path, public: Collection[str] = ()) -> list[tuple[str, str]]:
    """Rows (check, outcome) for a folder that holds what it promises; `public` are words that may stand in it.

    Raises UserError with all that is wrong.
    """
    golden = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    image = Image.open(folder / golden["picture"]).convert("RGB")
    member = load_member(folder, torch.device("cpu"))
    pixels = torch.from_numpy(member.transform(image))[None]
    inputs = member.normalize(pixels).contiguous()
    said = np.array(golden["logits"])
    checks: dict[str, Callable[[], Iterator[str]]] = {
        "timm loads it: same pixels, logits, labels": lambda: _with_timm(folder, image, pixels, inputs, said, golden),
        "weights only, in safetensors": lambda: _weights(folder, member.model),
        "no path, token or name of this machine": lambda: scan(folder, public),
    }
    title = "transformers loads it: same pixels, logits, labels"
    if not (absent := _without_transformers()):
        checks[title] = lambda: _with_transformers(folder, image, inputs, said, golden)
    rows, wrong = [], []
    for name, check in checks.items():
        try:
            problems = list(check())
        except Exception as error:  # whatever a library raises on a folder that it cannot load
            problems = [f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"]
        wrong += [f"{name}: {problem}" for problem in problems]
        rows.append((name, "failed" if problems else "ok"))
    if wrong:
        raise UserError(f"{folder} must not be published:\n  " + "\n  ".join(map(printable, wrong)))
    return [*rows, (title, f"not checked: {absent}")] if absent else rows


def _without_transformers() -> str:
    """Why it cannot be asked; empty where it can."""
    try:
        import transformers  # noqa: F401
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    except ImportError as error:  # it refuses packages of other versions
        return str(error).splitlines()[0]
    return ""


def _same(what: str, found: Any, expected: Any) -> Iterator[str]:
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape:
        yield f"{what} of shape {found.shape}, expected {expected.shape}"
    elif (worst := float(np.abs(found - expected).max())) > TOLERANCE:
        yield f"{what} differ by {worst:.2g}, more than {TOLERANCE:g}"


@torch.inference_mode()
def _with_timm(
    folder: Path, image: Image.Image, pixels: torch.Tensor, inputs: torch.Tensor, said: np.ndarray, golden: Any
) -> Iterator[str]:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config = resolve_model_data_config(model)
    exact = create_transform(**config, normalize=False)(image)  # type: ignore[operator]
    if not torch.equal(exact, pixels[0]):  # type: ignore[arg-type]
        yield "its evaluation view gives other pixels"
    seen = create_transform(**config)(image)[None]  # type: ignore[index, operator, call-arg]
    yield from _same("normalized pixels", seen, inputs)
    yield from _same("logits", model(seen)[0], said)
    if list(model.pretrained_cfg["label_names"]) != golden["labels"]:  # type: ignore[index]
        yield "its labels are in another order"


@torch.inference_mode()
def _with_transformers(
    folder: Path, image: Image.Image, inputs: torch.Tensor, said: np.ndarray, golden: Any
) -> Iterator[str]:
    from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    seen = processor(image, return_tensors="pt")["pixel_values"]
    yield from _same("normalized pixels", seen, inputs)
    yield from _same("logits", model(seen).logits[0], said)
    labels = [model.config.id2label[k] for k in range(len(golden["labels"]))]
    if labels != golden["labels"]:
        yield "its labels are in another order"
    probabilities = torch.tensor(said).softmax(0).numpy()
    told = pipeline("image-classification", model=model, image_processor=processor)(image, top_k=len(labels))  # type: ignore[arg-type, call-overload]
    by_label = {row["label"]: row["score"] for row in told}
    yield from _same("pipeline's probabilities", [by_label.get(label, np.nan) for label in labels], probabilities)


def _weights(folder: Path, model: torch.nn.Module) -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"):
            yield f"{path.name} may be a pickle"
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        if extra := set(file.keys()) ^ set(model.state_dict()):
            yield f"model.safetensors has more or less than the model: {', '.join(sorted(extra)[:5])}"
        metadata = file.metadata() or {}
    if metadata.get("format") != "pt":
        yield "model.safetensors lacks the metadata format: pt, which transformers asks for"
    if set(metadata) - {"format"}:
        yield f"model.safetensors has metadata that no one reads: {', '.join(sorted(set(metadata) - {'format'}))}"


def scan(folder: Path, public: Collection[str] = ()) -> Iterator[str]:
    """What in the texts of a folder speaks of the machine or the person: places, tokens, names of user and host."""
    allowed = {word.lower() for text in public for word in re.findall(r"\w+", text)}
    names = {getpass.getuser(), Path.home().name, socket.gethostname()} - {"", "root", "localhost"}
    own = [name for name in names if not set(re.findall(r"\w+", name.lower())) <= allowed]
    named = re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in own) or r"(?!)", re.IGNORECASE)
    for path in sorted(folder.rglob("*")):
        if path.suffix not in TEXTS:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        for kind, pattern in (("a path of this machine", PATH), ("a token", TOKEN), ("a name of this machine", named)):
            for found in pattern.finditer(text):
                line = text.count("\n", 0, found.start()) + 1
                shown = f"{found.group()[:4]}..." if kind == "a token" else found.group()[:80]
                yield f"{path.name}, line {line}: {kind}: {shown}"
                break
