"""The held-out images whose labels are the least likely, as thumbnails. N rows, K classes."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from datasets import Dataset
from PIL import Image

from creature.data.dataset import read_images
from creature.data.decode import BadImage, content_hash, decode, read
from creature.data.sources import SourceFormat
from creature.errors import UserError
from creature.inference.explain import draw_overlay
from creature.inference.members import choose_device, load_member
from creature.metrics.label_errors import suspects
from creature.recipe import Recipe
from creature.reporting.study import StudyRun, UnseenPredictions

SHOWN = 24  # images
SIDE = 192  # pixels of a thumbnail

DrawOverlay = Callable[[str, Image.Image, int], Image.Image]  # of a row's id, its image and a class index


@dataclass(frozen=True)
class Mistake:
    """A held-out image that is put into another class than its label, with the probabilities of both."""

    id: str
    label: str
    predicted: str
    label_probability: str
    predicted_probability: str
    sources: tuple[str, ...]  # URLs of the thumbnail and, where it was asked for, of the overlay


@dataclass(frozen=True)
class Gallery:
    """Mistakes, the least likely label first, and a note on what they show or why they are missing."""

    mistakes: tuple[Mistake, ...]
    note: str


@dataclass(frozen=True)
class LabelledImages:
    """The labelled images of a recipe."""

    dataset: Dataset
    row: dict[str, int]  # by id

    def find(self, name: str, content: str) -> Image.Image | None:
        """The image; None where it is missing or has other content."""
        try:
            encoded = read(self.dataset[self.row[name]]["image"])  # type: ignore[call-overload]
            return decode(encoded) if content_hash(encoded) == content else None
        except (KeyError, BadImage):
            return None


class Galleries:
    """Makes the galleries of several runs; images that they share are listed once."""

    def __init__(self, explain: bool = False):
        self.explain = explain  # whether to draw what in an image speaks for the predicted class
        self._images: dict[tuple[tuple[str, ...], SourceFormat], LabelledImages] = {}

    def make(self, run: StudyRun) -> Gallery:
        """The gallery of a run."""
        unseen = run.unseen
        worst = suspects(unseen.probabilities, unseen.rows.labels)[:SHOWN].tolist()
        if not worst:
            return Gallery((), "No held-out row is wrong.")
        try:
            images = self._images_of(run.recipe)
        except UserError as error:
            return Gallery((), f"The images are not at hand: {error}")
        draw, refusal = _overlays(run) if self.explain else None, ""
        mistakes: list[Mistake] = []
        for row in worst:
            image = images.find(unseen.rows.ids[row], unseen.rows.content_hashes[row])
            if image is None:
                continue
            shown = [image]
            if draw and not refusal:
                try:
                    shown.append(draw(unseen.rows.ids[row], image, int(unseen.rows.predicted[row])))
                except UserError as error:
                    refusal = str(error)
            mistakes.append(_mistake(unseen, row, shown))
        notes = []
        if unseen.models > 1:
            notes.append(f"Judged by the {unseen.models} members that never saw the image.")
        if missing := len(worst) - len(mistakes):
            notes.append(f"{missing} more are gone, or are no longer the images that were trained on.")
        if draw and mistakes:
            notes.append(refusal or "To the right: orange speaks for what it was taken for, blue against that.")
        return Gallery(tuple(mistakes), " ".join(notes))

    def _images_of(self, recipe: Recipe) -> LabelledImages:
        sources = (*recipe.images.train, *recipe.images.validation)
        source_format = SourceFormat(recipe.images.image_column, recipe.images.label_column, recipe.images.labels)
        if (sources, source_format) not in self._images:
            dataset = read_images(sources, source_format, "images.train")
            rows = {name: row for row, name in enumerate(dataset["id"])}
            self._images[sources, source_format] = LabelledImages(dataset, rows)
        return self._images[sources, source_format]


def _mistake(unseen: UnseenPredictions, row: int, shown: Sequence[Image.Image]) -> Mistake:
    label, predicted = int(unseen.rows.labels[row]), int(unseen.rows.predicted[row])
    return Mistake(
        id=unseen.rows.ids[row],
        label=unseen.rows.class_names[label],
        predicted=unseen.rows.class_names[predicted],
        label_probability=f"{unseen.probabilities[row, label]:.4f}",
        predicted_probability=f"{unseen.probabilities[row, predicted]:.4f}",
        sources=tuple(map(_thumbnail, shown)),
    )


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
