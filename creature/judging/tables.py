"""Prediction files: a submission (image_name, pred_label), or a full table (id, status, labels, probabilities)."""

import csv
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from creature.images.files import file_id, list_pictures
from creature.judging.blend import blend
from creature.judging.members import Answers
from creature.terminal import UserError, warn


class Input(NamedTuple):
    """A picture to predict: its name in tables, and where it is."""

    id: str
    path: str


def image_of(inputs: Sequence[Input]) -> Callable[[int], dict[str, Any]]:
    """The image value of the input at a place."""
    return lambda row: {"bytes": None, "path": inputs[row].path}


class Row(NamedTuple):
    """One answered input: `status` is ok, or why it could not be read; labels and probabilities, the best first."""

    id: str
    status: str
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]


def list_inputs(paths: Sequence[str]) -> list[Input]:
    """Files, and all pictures below folders, sorted by id: the path below the folder if one is given, else as typed."""
    inputs: list[Input] = []
    for path in paths:
        if os.path.isdir(path):
            for found in list_pictures(path):
                name = os.path.relpath(found, path) if len(paths) == 1 else os.path.normpath(found)
                inputs.append(Input(file_id(name), found))
        elif os.path.lexists(path):
            inputs.append(Input(file_id(os.path.normpath(path)), path))
        else:
            raise UserError(f"{path}: no such file or folder")
    if not inputs:
        raise UserError(f"no pictures in {', '.join(paths)}")
    for names in ([item.id for item in inputs], [file_id(os.path.abspath(item.path)) for item in inputs]):
        if twice := [name for name, n in Counter(names).items() if n > 1]:
            raise UserError(f"{min(twice)} is given twice")
    return sorted(inputs)


def stem(name: str) -> str:
    """The name of an image in a submission: without folders and ending."""
    return PurePosixPath(name).stem


def order_for_submission(inputs: Sequence[Input], template: str | None) -> tuple[list[Input], tuple[str, str]]:
    """Inputs in the order of a submission, by name or as a template has them, and the names of its two columns.

    Raises UserError where two inputs share a name, or the template names an image that is not there.
    """
    by_stem: dict[str, Input] = {}
    for item in inputs:
        other = by_stem.setdefault(stem(item.id), item)
        if other is not item:
            raise UserError(
                f"{other.id} and {item.id} would both be {stem(item.id)} in a submission; rename one of them"
            )
    if template is None:
        return [by_stem[name]._replace(id=name) for name in sorted(by_stem)], ("image_name", "pred_label")
    try:
        with open(template, newline="", encoding="utf-8-sig") as file:
            header, *rows = [row for row in csv.reader(file) if row] or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--template: {template} cannot be read: {error}") from None
    if len(header) != 2:
        raise UserError(f"--template: {template} must have two columns, image and label, got {','.join(header)!r}")
    by_name = by_stem | {PurePosixPath(item.id).name: item for item in inputs} | {item.id: item for item in inputs}
    if missing := [row[0] for row in rows if row[0] not in by_name]:
        raise UserError(
            f"--template: {template} names {missing[0]}, which is not among the images ({len(missing)} such)"
        )
    ordered = [by_name[row[0]]._replace(id=row[0]) for row in rows]
    if extra := len(inputs) - len({item.path for item in ordered}):
        warn(f"--template: {extra} images are not in {template} and get no row")
    return ordered, (header[0], header[1])


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A temporary file that gets its name only once it is whole."""
    if not path.name or (os.path.exists(path) and not os.path.isfile(path)):
        raise UserError(f"--out: {path} is no file; give the name of one, such as prediction.csv")
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"--out: cannot write {path}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):  # the folder may be none, or the name too long
            part.unlink(missing_ok=True)


@contextmanager
def table_writer(path: Path) -> Iterator[Any]:
    """A CSV writer to a file that gets its name only once it is whole."""
    with _whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        yield csv.writer(file, lineterminator="\n")


def answer_rows(
    answers: Iterable[Answers],
    inputs: Sequence[Input],
    names: Sequence[str],
    top: int,
    strategy: str = "logits",
    weights: np.ndarray | None = None,
) -> Iterator[Row]:
    """Each input's row, with the `top` labels of the blended members."""
    for batch in answers:
        probabilities = blend(batch.logits, strategy, weights)
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        for at, row in enumerate(batch.rows):
            if at in batch.broken:
                yield Row(inputs[row].id, batch.broken[at], (), ())
            else:
                labels = tuple(str(names[k]) for k in best[at])
                yield Row(inputs[row].id, "ok", labels, tuple(map(float, probabilities[at, best[at]])))


def write_submission(path: Path, columns: tuple[str, str], rows: Iterable[Row], fallback: str) -> None:
    """Write image names and labels; a picture that could not be read gets the `fallback` label."""
    with table_writer(path) as out:
        out.writerow(columns)
        for row in rows:
            out.writerow((row.id, row.labels[0] if row.labels else fallback))


def write_full(path: Path, rows: Iterable[Row], top: int) -> None:
    """Write id, status, and the `top` labels with their probabilities; empty where the picture could not be read."""
    more = [name for k in range(2, top + 1) for name in (f"label_{k}", f"probability_{k}")]
    with table_writer(path) as out:
        out.writerow(("id", "status", "label", "probability", *more))
        for row in rows:
            pairs = zip(row.labels, (f"{p:.6f}" for p in row.probabilities), strict=True)
            cells = [cell for pair in pairs for cell in pair]
            out.writerow((row.id, row.status, *cells, *[""] * (2 * top - len(cells))))


def warn_of_broken(broken: Sequence[Row], fallback: str) -> None:
    """Name the pictures that could not be read, and what stands in their place."""
    instead = f"they have the most frequent class, {fallback}" if fallback else "they have no label"
    listing = "\n  ".join(f"{row.id}: {row.status}" for row in broken[:20])
    more = f"\n  and {len(broken) - 20} more" if len(broken) > 20 else ""
    warn(f"{len(broken)} pictures could not be read; {instead}:\n  {listing}{more}")


def write_zip(path: Path) -> Path:
    """Pack a submission into a zip that holds exactly `prediction.csv`, beside it."""
    target = path.with_suffix(".zip")
    with _whole(target) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as file:
        file.write(path, "prediction.csv")
    return target
