"""Prediction files: a submission (image_name, pred_label), or a full table (id, status, labels, probabilities)."""

import csv
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path, PurePosixPath
from typing import Any

from creature.console import BROKEN_IMAGES, say, warn
from creature.errors import UserError
from creature.inference.inputs import InputPath, Shard, find_shards, list_inputs, read_inputs
from creature.inference.options import OutputOptions
from creature.inference.prediction import Prediction
from creature.inference.predictor import Predictor
from creature.storage import write_atomically

FULL_COLUMNS = ("id", "status", "label", "probability")


def find_sources(
    images: Sequence[str], output: OutputOptions, image_column: str, *, urls: bool
) -> tuple[list[Shard], tuple[str, str]]:
    """The images to predict, and a submission's columns, whose images are in the order of its template."""
    if not output.submission:
        return find_shards(images, image_column, urls), ("", "")
    listed, columns = order_for_submission(list_inputs(images, urls), output.template)
    return [Shard("all", len(listed), partial(read_inputs, listed))], columns


def order_for_submission(inputs: Sequence[InputPath], template: str | None) -> tuple[list[InputPath], tuple[str, str]]:
    """Inputs in the order of a submission, by name or as a template has them, and the names of its two columns.

    Raises UserError where two inputs share a name, or the template names an image that is not there.
    """
    by_stem: dict[str, InputPath] = {}
    for item in inputs:
        stem = PurePosixPath(item.id).stem
        other = by_stem.setdefault(stem, item)
        if other is not item:
            raise UserError(
                f"{other.id} and {item.id} would both be {stem} in a submission; rename one of them, "
                "or take --format full"
            )
    if template is None:
        return [replace(by_stem[name], id=name) for name in sorted(by_stem)], ("image_name", "pred_label")
    try:
        with open(template, newline="", encoding="utf-8-sig") as file:
            header, *rows = [row for row in csv.reader(file) if row] or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--template: {template} cannot be read: {error}") from error
    if len(header) != 2:
        raise UserError(f"--template: {template} must have two columns, image and label, got {','.join(header)!r}")
    by_name = by_stem | {PurePosixPath(item.id).name: item for item in inputs} | {item.id: item for item in inputs}
    if missing := [row[0] for row in rows if row[0] not in by_name]:
        raise UserError(
            f"--template: {template} names {missing[0]}, which is not among the images ({len(missing)} such)"
        )
    ordered = [replace(by_name[row[0]], id=row[0]) for row in rows]
    if extra := len(inputs) - len({item.path for item in ordered}):
        warn(f"--template: {extra} images are not in {template} and get no row")
    return ordered, (header[0], header[1])


@contextmanager
def _output_file(path: Path) -> Iterator[Path]:
    """A temporary file that takes its name once it is complete; raises UserError where it cannot be written."""
    if not path.name or (os.path.exists(path) and not os.path.isfile(path)):
        raise UserError(f"--out: {path} is no file; give the name of one, such as prediction.csv")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(path) as temporary:
            yield temporary
    except OSError as error:
        raise UserError(f"--out: cannot write {path}: {error.strerror or error}; name another file") from error


@contextmanager
def table_writer(path: Path) -> Iterator[Any]:
    """A CSV writer to a file that takes its name once it is complete; raises UserError where it cannot be written."""
    with _output_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        yield csv.writer(file, lineterminator="\n")


def write_submission(path: Path, columns: tuple[str, str], rows: Iterable[Prediction], *, fallback: str) -> None:
    """Write image names and labels; an image that could not be read gets the `fallback` label."""
    with table_writer(path) as out:
        out.writerow(columns)
        for row in rows:
            out.writerow((row.id, row.labels[0] if row.labels else fallback))


def write_full(
    path: Path, rows: Iterable[Prediction], top: int, *, features: int | None = None, sets: bool = False
) -> None:
    """Write id, status, and the `top` labels with their probabilities, and whether these are calibrated.

    They are empty where the image could not be read.

    As CSV, JSON lines or Parquet, by the ending; the last two with an embedding of that many `features`, where these
    were asked for. A set of labels is a list, in CSV one of JSON.
    """
    embedded = features if path.suffix in (".jsonl", ".parquet") else None
    values = (_columns(row, top, features=embedded, sets=sets) for row in rows)
    names = _column_names(top)
    if path.suffix == ".parquet":
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter

        columns = [(name, pa.float64() if name.startswith("probability") else pa.string()) for name in names]
        columns += [("calibrated", pa.bool_())]
        columns += [("embedding", pa.list_(pa.float32(), features))] if features else []
        schema = pa.schema(columns + ([("set", pa.list_(pa.string()))] if sets else []))
        with _output_file(path) as temporary, ParquetWriter(temporary, schema) as file:
            while chunk := list(islice(values, 1024)):
                file.write_table(pa.Table.from_pylist(chunk, schema))
    elif path.suffix == ".jsonl":
        with _output_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(value) + "\n" for value in values)
    else:
        with table_writer(path) as out:
            out.writerow((*names, "calibrated", *["set"] * sets))
            out.writerows(map(_cell, value.values()) for value in values)


def _cell(value: Any) -> str:
    if isinstance(value, list | bool):
        return json.dumps(value, ensure_ascii=False)
    return "" if value is None else f"{value:.6f}" if isinstance(value, float) else value


def _column_names(top: int) -> tuple[str, ...]:
    return FULL_COLUMNS + tuple(name for k in range(2, top + 1) for name in (f"label_{k}", f"probability_{k}"))


def _columns(row: Prediction, top: int, *, features: int | None, sets: bool) -> dict[str, Any]:
    """The values of a row by column; None for a label that it does not have."""
    values = [row.id, row.status, *(value for pair in row.top(top) for value in pair)]
    columns: dict[str, Any] = dict(zip_longest(_column_names(top), values))
    columns["calibrated"] = row.calibrated if row.labels else None
    if features:
        columns["embedding"] = None if row.features is None else row.features.tolist()
    if sets:
        columns["set"] = None if row.broken else list(row.label_set)
    return columns


def write_predictions(
    output: OutputOptions,
    columns: tuple[str, str],
    rows: Iterable[Prediction],
    *,
    predictor: Predictor,
    top: int,
    sets: bool = False,
) -> int:
    """Write the rows as they come; the exit code tells of images that could not be read."""
    assert output.path
    broken: list[Prediction] = []

    def note_broken() -> Iterator[Prediction]:
        for row in rows:
            if row.broken:
                broken.append(row)
            yield row

    if output.submission:
        write_submission(output.path, columns, note_broken(), fallback=predictor.fallback)
        if output.zip:
            say(f"{write_zip(output.path)} holds exactly prediction.csv")
    else:
        write_full(output.path, note_broken(), top, features=predictor.features, sets=sets)
    if broken:
        warn_of_broken(broken, predictor.fallback if output.submission else "")
    return BROKEN_IMAGES if broken else 0


def warn_of_broken(broken: Sequence[Prediction], fallback: str) -> None:
    """Name the images that could not be read, and what stands in their place."""
    instead = f"they have the most frequent class, {fallback}" if fallback else "they have no label"
    listing = "\n  ".join(f"{row.id}: {row.status}" for row in broken[:20])
    more = f"\n  and {len(broken) - 20} more" if len(broken) > 20 else ""
    warn(f"{len(broken)} images could not be read; {instead}:\n  {listing}{more}")


def write_zip(path: Path) -> Path:
    """Pack a submission into a zip that holds exactly `prediction.csv`, beside it."""
    target = path.with_suffix(".zip")
    with _output_file(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as file:
        file.write(path, "prediction.csv")
    return target
