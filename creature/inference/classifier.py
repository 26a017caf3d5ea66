"""A loaded model for Python programs: notebooks, services, pipelines. N images, K classes, D features."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from creature.data.decode import BadImage, image_of_array, read
from creature.data.files import file_id, list_images
from creature.errors import UserError
from creature.inference.load import find_model
from creature.inference.prediction import Prediction, to_predictions
from creature.inference.predictor import LogitsBatch, Predictor, predict_batches, with_mirroring
from creature.inference.prepare import ImageInput

if TYPE_CHECKING:
    from creature.inference.members import Member

ImageLike = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | np.ndarray | ImageInput
SINGLE = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray, ImageInput)


class Classifier:
    """A model, or an ensemble of models, that predicts images; several threads may use one at once.

    Images are paths of files or folders, encoded bytes, PIL images, or uint8 arrays (H, W, 3) or (H, W): one of them,
    an array of several (N, H, W, 3), or any iterable, also mixed and without an end. Nothing is raised for an image
    that cannot be read: it is a Prediction whose `status` says why.
    """

    def __init__(self, predictor: Predictor, models: "Sequence[Member]" = ()):
        self.predictor = predictor  # how the members are computed and blended
        self._models = models  # none for an ONNX file

    def __repr__(self) -> str:
        return f"<Classifier {self.predictor.title}: {len(self.class_names)} classes>"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The labels, in the order of the logits."""
        return self.predictor.class_names

    @property
    def members(self) -> tuple[str, ...]:
        """The names of the models that predict together."""
        return self.predictor.members

    @cached_property
    def feature_predictor(self) -> Predictor:
        """As `predictor`, with features; raises UserError for an ensemble or an ONNX file, which have none."""
        from creature.inference.members import predictor

        model, ensemble = self._one_model("features"), self.predictor
        featured = predictor([model], ensemble.blending, features=True, title=ensemble.title, names=self.members)
        return replace(featured, calibrations=ensemble.calibrations)

    @cached_property
    def overlay_predictor(self) -> Predictor:
        """As `predictor`, whose features are overlays that show what speaks for each image's first label."""
        from creature.inference.explain import with_overlays

        return with_overlays(self.predictor, self._one_model("activation maps"))

    def choose_predictor(self, *, features: bool = False, overlays: bool = False, tta: bool = False) -> Predictor:
        """How images are predicted: with features or overlays, or with mirror images as test-time augmentation."""
        predictor = self.feature_predictor if features else self.overlay_predictor if overlays else self.predictor
        return with_mirroring(predictor) if tta else predictor

    def _one_model(self, what: str) -> "Member":
        if len(self._models) != 1:
            kind = f"an ensemble of {len(self._models)}" if self._models else "an ONNX file"
            raise UserError(
                f"{self.predictor.title} is {kind}, without {what}; load one trained fold or published model"
            )
        return self._models[0]

    def predict(
        self, images: ImageLike | Iterable[ImageLike], *, batch_size: int = 32, top: int = 5, tta: bool = False
    ) -> Iterator[Prediction]:
        """The images' predictions, one after another and in order, with the `top` most probable labels each.

        Images are taken as they are needed: at most two batches are ahead of the prediction that is asked for.
        `tta` (test-time augmentation) takes the mean with the logits of the mirror image, for twice the computing.
        """
        _check_positive("top", top)
        batches = self.batches(images, batch_size=batch_size, tta=tta)
        return to_predictions(batches, self.choose_predictor(tta=tta), min(top, len(self.class_names)))

    def logits(self, images: ImageLike | Iterable[ImageLike], *, batch_size: int = 32, tta: bool = False) -> np.ndarray:
        """The members' logits (M, N, K); NaN for an image that cannot be read."""
        tables = [np.empty((len(self.members), 0, len(self.class_names)), np.float32)]
        for batch in self.batches(images, batch_size=batch_size, tta=tta):
            tables.append(batch.logits.copy())
            tables[-1][:, list(batch.broken)] = np.nan
        return np.concatenate(tables, axis=1)

    def features(self, images: ImageLike | Iterable[ImageLike], *, batch_size: int = 32) -> np.ndarray:
        """The input of one model's classifier layer for each image (N, D); NaN for an image that cannot be read.

        Raises UserError for an ensemble or an ONNX file, which have none.
        """
        _check_positive("batch_size", batch_size)
        tables = [np.empty((0, self.feature_predictor.features or 0), np.float32)]
        for batch in predict_batches(self.feature_predictor, _inputs(images), batch_size):
            assert batch.features is not None
            tables.append(batch.features.copy())
            tables[-1][list(batch.broken)] = np.nan
        return np.concatenate(tables)

    def batches(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        batch_size: int = 32,
        tta: bool = False,
        title: str = "",
        total: int | None = None,
    ) -> Iterator[LogitsBatch]:
        """The images' logits by member, a batch at a time; with a `title`, a terminal shows a progress bar."""
        predictor = self.choose_predictor(tta=tta)
        _check_positive("batch_size", batch_size)
        return predict_batches(predictor, _inputs(images), batch_size, title=title, total=total)


def load(model: str | os.PathLike[str], *, device: str = "auto", members: bool = False) -> Classifier:
    """A model to predict with: a fold (`runs/NAME/fold-0`), `hf-hub:USER/NAME`, an exported folder, or `FILE.onnx`.

    `members` loads every member of a run or repository as an ensemble; a run of several folds needs it. `device` is
    cuda, mps, cpu, or auto for the first that is there. Probabilities are calibrated where enough labelled images were
    predicted that the model never saw. Raises UserError where there is no model, or none that can be loaded.
    """
    name = os.fspath(model)
    if name.endswith(".onnx"):
        from creature.inference.onnx import open_session

        if members:
            raise UserError(f"{name} is one model, without members; load the trained run instead")
        return Classifier(open_session(name))
    from creature.inference.members import choose_device, load_member, predictor

    folders, chosen = find_model(name, members), choose_device(device)
    models = [load_member(folder, chosen, fused=True) for folder in folders.folders]
    if len({model.class_names for model in models}) > 1:
        raise UserError(f"{name}: its members know different classes")
    title = f"{name}, {len(models)} member{'s' * (len(models) != 1)}" if members else name
    ensemble = predictor(models, folders.blending, title=title, names=folders.names)
    return Classifier(replace(ensemble, calibrations=folders.calibrations), models)


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{name} must be 1 or more, got {value}")


def _inputs(images: ImageLike | Iterable[ImageLike]) -> Iterator[ImageInput]:
    """Each image with an id: its path, or image-0, image-1, ... by its position."""
    number = count()
    if isinstance(images, np.ndarray) and images.ndim == 4:
        images = list(images)
    for image in [images] if isinstance(images, SINGLE) else images:
        if isinstance(image, ImageInput):
            yield image
        elif isinstance(image, str | os.PathLike):
            path = os.fspath(image)
            for file in list_images(path) if os.path.isdir(path) else [path]:
                next(number)
                yield ImageInput(file_id(file), partial(read, {"bytes": None, "path": file}))
        else:
            yield ImageInput(f"image-{next(number)}", partial(_content, image))


def _content(image: object) -> bytes | Image.Image:
    """Encoded bytes or a decoded image; raises BadImage for anything else."""
    if isinstance(image, bytes | bytearray | memoryview):
        return read({"bytes": bytes(image)})
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray):
        return image_of_array(image)
    raise BadImage(f"an image must be a path, bytes, a PIL image or an array, got {type(image).__name__}")
