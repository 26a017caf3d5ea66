"""The page of a study: one HTML file that needs no network and no other file. N rows, K classes."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from sklearn.metrics import precision_recall_fscore_support

from creature.console import printable
from creature.data.dataset import read_images
from creature.data.decode import BadImage, content_hash, decode, read
from creature.data.sources import SourceFormat
from creature.errors import UserError
from creature.inference.explain import draw_overlay
from creature.inference.members import choose_device, load_member
from creature.metrics.accuracy import Count
from creature.metrics.label_errors import suspects
from creature.reporting.figures import confused_pairs
from creature.reporting.study import StudyRun
from creature.reporting.tables import Table

SHOWN = 24  # images in a gallery
SIDE = 192  # pixels of a thumbnail

CLASS_COLUMNS = ("class", "rows", "recall", "95 % from", "to", "precision", "F1", "most often taken for")


class Figure(NamedTuple):
    """An image of the page, with what it shows."""

    caption: str
    source: str


class Mistake(NamedTuple):
    """A wrong answer, with the image."""

    id: str
    label: str
    said: str
    likely: str  # the probability of the label
    sure: str  # and of what was said
    sources: tuple[str, ...]  # the image; and what in it speaks for what was said, where that was asked for


def data_url(content: bytes, kind: str) -> str:
    """The content within a URL, so that the page needs no file beside it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def class_table(run: StudyRun) -> list[dict[str, Any]]:
    """A record for each class of the held-out rows; empty scores where it has none."""
    held, classes = run.held, len(run.held.class_names)
    precision, _, f1, _ = precision_recall_fscore_support(
        held.labels,
        held.predicted,
        labels=np.arange(classes),
        zero_division=0,  # type: ignore[arg-type]
    )
    taken: dict[int, int] = {}
    for truth, said, _, _ in confused_pairs(held.labels, held.predicted, classes):
        taken.setdefault(truth, said)
    records = []
    for k, name in enumerate(held.class_names):
        own = held.labels == k
        record: dict[str, Any] = dict.fromkeys(CLASS_COLUMNS, "") | {"class": name, "rows": int(own.sum())}
        if own.any():
            count = Count(int((held.predicted[own] == k).sum()), int(own.sum()))
            low, high = count.interval
            record |= {"recall": count.accuracy, "95 % from": low, "to": high}
            record |= {"precision": float(np.asarray(precision)[k]), "F1": float(np.asarray(f1)[k])}
            record["most often taken for"] = held.class_names[taken[k]] if k in taken else ""
        records.append(record)
    return records


def class_cells(records: Sequence[Mapping[str, Any]]) -> list[list[tuple[str, float]]]:
    """Rows of (text, what it is sorted by); classes sort in their own order."""
    order = {record["class"]: float(k) for k, record in enumerate(records)}

    def cell(value: Any) -> tuple[str, float]:
        if isinstance(value, str):
            return value, order.get(value, -1.0)
        return (str(value) if isinstance(value, int) else f"{value:.4f}"), float(value)

    return [[cell(value) for value in record.values()] for record in records]


def gallery(run: StudyRun, explain: bool = False) -> tuple[list[Mistake], str]:
    """The held-out rows whose label is the least likely, be it the model or the label that is wrong; and what lacks."""
    models, held, probabilities = run.unseen.models, run.unseen.rows, run.unseen.probabilities
    worst = suspects(probabilities, held.labels)[:SHOWN]
    if not len(worst):
        return [], "No held-out row is wrong."
    images = run.recipe.images
    columns = SourceFormat(images.image_column, images.label_column, images.labels)
    try:
        pictures = _pictures((*images.train, *images.validation), columns)
    except UserError as error:
        return [], f"The images are not at hand: {error}"
    notes = [f"Judged by the {models} members that never saw the image."] if models > 1 else []
    draw, refused = _overlays(run) if explain else None, ""
    shown, absent = [], 0
    for row in worst:
        picture = pictures.find(held.ids[row], held.content_hashes[row])
        if picture is None:
            absent += 1
            continue
        label, said = int(held.labels[row]), int(held.predicted[row])
        likely, sure = (f"{probabilities[row, k]:.4f}" for k in (label, said))
        names, sources = (held.class_names[label], held.class_names[said]), [_thumbnail(picture)]
        if draw and not refused:
            try:
                sources.append(_thumbnail(Image.fromarray(draw(held.ids[row], picture, said))))
            except UserError as error:
                refused = str(error)
        shown.append(Mistake(held.ids[row], *names, likely, sure, tuple(sources)))
    if absent:
        notes.append(f"{absent} more are gone, or are no longer the images that were trained on.")
    if draw and shown:
        notes.append(refused or "To the right: orange speaks for what it was taken for, blue against that.")
    return shown, " ".join(notes)


def _overlays(run: StudyRun) -> Callable[[str, Image.Image, int], np.ndarray]:
    """What draws the overlay of a held-out row for a label: by a member that never saw it."""
    holders = {name: fold.folder for fold in run.once for name in fold.held_out.ids}
    load = cache(lambda fold: load_member(fold, choose_device("auto")))
    return lambda name, picture, label: draw_overlay(load(holders[name]), picture, label)


class _Pictures(NamedTuple):
    dataset: Any
    place: dict[str, int]  # id -> row

    def find(self, name: str, content: str) -> Image.Image | None:
        """The image; None where it is not there with that content."""
        try:
            data = read(self.dataset[self.place[name]]["image"])
            return decode(data) if content_hash(data) == content else None
        except (KeyError, BadImage):
            return None


def _thumbnail(picture: Image.Image) -> str:
    small = picture.copy()
    small.thumbnail((SIDE, SIDE))
    small.save(out := io.BytesIO(), "JPEG", quality=85)
    return data_url(out.getvalue(), "jpeg")


@cache
def _pictures(sources: tuple[str, ...], columns: SourceFormat) -> _Pictures:
    """The labelled images of a recipe; runs of a study mostly share them."""
    dataset = read_images(sources, columns, "images.train")
    return _Pictures(dataset, {name: row for row, name in enumerate(dataset["id"])})


def render(
    title: str, lead: str, tables: Sequence[Table], curves: Sequence[Figure], runs: Sequence[Mapping[str, Any]]
) -> str:
    """The page; every name in it is text, and none is markup."""

    def plain(value: Any) -> Any:
        return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    loader = FileSystemLoader(Path(__file__).parent)
    # guard: autoescape
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, finalize=plain)
    page = environment.get_template("page.html")
    return page.render(title=title, lead=lead, tables=tables, curves=curves, runs=runs) + "\n"
