"""The held-out images whose labels are the least likely, as thumbnails. N rows, K classes."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from PIL import Image

from creature.data.dataset import read_images
from creature.data.decode import BadImage, content_hash, decode, read
from creature.data.sources import SourceFormat
from creature.errors import UserError
from creature.inference.explain import draw_overlay
from creature.inference.members import choose_device, load_member
from creature.metrics.label_errors import suspects
from creature.reporting.labels import ContradictedLabel, contradicted_labels
from creature.reporting.study import StudyRun

SHOWN = 24  # images
SIDE = 192  # pixels of a thumbnail

FindImage = Callable[[str, str], Image.Image | None]  # by id and content hash; None where it is missing or has changed
ReadImages = Callable[[tuple[str, ...], SourceFormat], FindImage]
DrawOverlay = Callable[[str, Image.Image, int], Image.Image]  # of a row's id, its image and a class index


@dataclass(frozen=True)
class Mistake:
    """A held-out image that is put into another class than its label."""

    contradicted: ContradictedLabel
    sources: tuple[str, ...]  # URLs of the thumbnail and, where it was asked for, of the overlay


@dataclass(frozen=True)
class Gallery:
    """Mistakes, the least likely label first, and a note on what they show or why they are missing."""

    mistakes: tuple[Mistake, ...]
    note: str


def labelled_images(sources: tuple[str, ...], source_format: SourceFormat) -> FindImage:
    """What finds an image of these sources."""
    dataset = read_images(sources, source_format, "images.train")
    row_of = {name: row for row, name in enumerate(dataset["id"])}

    def find(name: str, content: str) -> Image.Image | None:
        try:
            encoded = read(dataset[row_of[name]]["image"])  # type: ignore[call-overload]
            return decode(encoded) if content_hash(encoded) == content else None
        except (KeyError, BadImage):
            return None

    return find


def make_gallery(run: StudyRun, explain: bool = False, read_sources: ReadImages = labelled_images) -> Gallery:
    """The gallery of a run, with what in an image speaks for the predicted class where `explain`."""
    rows = run.unseen.rows
    worst = suspects(run.unseen.probabilities, rows.labels)[:SHOWN].tolist()
    if not worst:
        return Gallery((), "No held-out row is wrong.")
    images = run.recipe.images
    source_format = SourceFormat(images.image_column, images.label_column, images.labels)
    try:
        find = read_sources((*images.train, *images.validation), source_format)
    except UserError as error:
        return Gallery((), f"The images are not at hand: {error}")
    draw, refusal = _overlays(run) if explain else None, ""
    mistakes: list[Mistake] = []
    for row, contradicted in zip(worst, contradicted_labels(run), strict=False):
        image = find(rows.ids[row], rows.content_hashes[row])
        if image is None:
            continue
        shown = [image]
        if draw and not refusal:
            try:
                shown.append(draw(rows.ids[row], image, int(rows.predicted[row])))
            except UserError as error:
                refusal = str(error)
        mistakes.append(Mistake(contradicted, tuple(map(_thumbnail, shown))))
    notes = []
    if run.unseen.models > 1:
        notes.append(f"Judged by the {run.unseen.models} members that never saw the image.")
    if missing := len(worst) - len(mistakes):
        notes.append(f"{missing} more are gone, or are no longer the images that were trained on.")
    if draw and mistakes:
        notes.append(refusal or "To the right: orange speaks for what it was taken for, blue against that.")
    return Gallery(tuple(mistakes), " ".join(notes))


def _overlays(run: StudyRun) -> DrawOverlay:
    """What draws the overlay of a held-out row for a class, by a member that never saw the row."""
    holder = {name: fold.folder for fold in run.one_repeat for name in fold.held_out.ids}
    load = cache(lambda folder: load_member(folder, choose_device("auto")))

    def draw(name: str, image: Image.Image, label: int) -> Image.Image:
        return Image.fromarray(draw_overlay(load(holder[name]), image, label))

    return draw


def _thumbnail(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    small.save(encoded := io.BytesIO(), "JPEG", quality=85)
    return data_url(encoded.getvalue(), "jpeg")


def data_url(content: bytes, kind: str) -> str:
    """The content within a URL, so that the page needs no file beside it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
