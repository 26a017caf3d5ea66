"""Prediction files: what is written is read, and what is damaged is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from creature.errors import BrokenError
from creature.metrics.predictions import Predictions, load_predictions, save_predictions

NAMES = ("ant", "bee", "Käfer")
IDS = ("train/ant/1.png", "train/蜂/2 é.png", "🐜", " ", "a,b\t'\"")


def predictions(count: int = len(IDS)) -> Predictions:
    logits = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
    hashes = tuple(f"{row + 1:032x}" for row in range(count))
    return Predictions(IDS[:count], hashes, np.arange(count) % 3, logits=logits, class_names=NAMES)


@pytest.mark.parametrize("count", [0, 1, len(IDS)])
def test_what_is_written_is_read(tmp_path, count):
    before = predictions(count)
    save_predictions(tmp_path / "p.safetensors", before)
    after = load_predictions(tmp_path / "p.safetensors")
    assert (after.ids, after.class_names, after.content_hashes) == (
        before.ids,
        before.class_names,
        before.content_hashes,
    )
    assert np.array_equal(after.labels, before.labels)
    assert after.logits.dtype == np.float32 and np.array_equal(after.logits, before.logits)


def test_logits_of_any_memory_layout_are_kept(tmp_path):
    before = replace(predictions(), logits=np.asfortranarray(predictions().logits))
    save_predictions(tmp_path / "p.safetensors", before)
    assert np.array_equal(load_predictions(tmp_path / "p.safetensors").logits, before.logits)


@pytest.mark.parametrize(
    ("ids", "shape"),
    [
        (("a", "a"), (2, 3)),
        (("a", "b", "c"), (2, 3)),
        (("a", "b"), (2, 2)),
        (("a", "b"), (6,)),
        (("a\nb", "c"), (2, 3)),
        (("",), (1, 3)),
    ],
)
def test_a_table_that_is_not_complete_and_unique_is_refused(ids, shape):
    with pytest.raises(ValueError, match=r"two rows|shape|line break"):
        Predictions(
            ids, ("",) * len(ids), np.zeros(len(ids), int), logits=np.zeros(shape, np.float32), class_names=NAMES
        )


def save(path: Path, metadata: dict[str, str] | None, **tensors: np.ndarray) -> None:
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path, metadata=metadata)


def rewritten(path: Path, metadata: dict[str, str] | None = None, **changes: np.ndarray | None) -> None:
    tensors = {**load_file(path), **changes}
    save(path, {"names": json.dumps(NAMES)} if metadata is None else metadata, **tensors)


def text(value: str) -> np.ndarray:
    return np.frombuffer(value.encode(), dtype=np.uint8)


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "empty": lambda path: path.write_bytes(b""),
    "cut in the header": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "cut in the tensors": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "another format": lambda path: path.write_bytes(b"PK\x03\x04" * 100),
    "no names": lambda path: rewritten(path, {}),
    "no metadata": lambda path: save(path, None, **load_file(path)),
    "names that are no list": lambda path: rewritten(path, {"names": "5"}),
    "names that are no JSON": lambda path: rewritten(path, {"names": "["}),
    "too few names": lambda path: rewritten(path, {"names": '["ant"]'}),
    "no ids": lambda path: rewritten(path, ids=None),
    "no logits": lambda path: rewritten(path, logits=None),
    "an id twice": lambda path: rewritten(path, ids=text("a\nb\nc\nd\na")),
    "an id too few": lambda path: rewritten(path, ids=text("a\nb\nc\nd")),
    "ids that are no UTF-8": lambda path: rewritten(path, ids=np.full(9, 255, np.uint8)),
    "an id that is one number": lambda path: rewritten(path, ids=np.array(5, np.uint8)),
    "logits in one row": lambda path: rewritten(path, logits=np.zeros(15, np.float32)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_a_user_error_that_names_it(tmp_path, damage):
    path = tmp_path / "p.safetensors"
    save_predictions(path, predictions())
    DAMAGES[damage](path)
    with pytest.raises(BrokenError, match=r"p\.safetensors: cannot be read as predictions"):
        load_predictions(path)
