"""The golden image of a model, and the logits that the model must give it wherever it is loaded. K classes."""

from io import BytesIO
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from creature.errors import UserError, first_problem
from creature.samples import draw
from creature.storage import write_json

FILE, IMAGE = "golden.json", "golden.png"
SIZE = (160, 120)  # not square, so that a wrong crop mode gives other logits


class Golden(BaseModel):
    """What golden.json holds."""

    model_config = ConfigDict(frozen=True)

    image: str = Field(alias="picture")  # its file name
    labels: tuple[str, ...]
    logits: tuple[float, ...]  # (K,)
    device: str
    precision: str
    torch: str


def write_golden(folder: Path) -> None:
    """Draw an image into a model's folder, and write the logits that the model gives it."""
    drawing = draw("bird", np.random.default_rng(0), max(SIZE))
    drawing.crop((0, 0, *SIZE)).save(encoded := BytesIO(), "PNG")
    (folder / IMAGE).write_bytes(encoded.getvalue())
    write_json(folder / FILE, predict_golden(folder, IMAGE).model_dump(by_alias=True))


def read_golden(folder: Path) -> Golden:
    """A folder's golden.json; raises UserError where it is missing or damaged."""
    try:
        return Golden.model_validate_json((folder / FILE).read_bytes())
    except OSError as error:
        raise UserError(f"{folder / FILE} cannot be read: {error.strerror}; download it again") from error
    except ValidationError as error:
        raise UserError(f"{folder / FILE}: {first_problem(error)}; download it again") from error


def predict_golden(folder: Path, image: str) -> Golden:
    """What a folder's model predicts of an image in that folder, on the CPU; raises UserError for an unreadable one."""
    import torch  # here, for reading golden.json needs none

    from creature.inference.members import load_member, predictor
    from creature.inference.predictor import predict_batches
    from creature.inference.prepare import ImageInput

    path = folder / Path(image).name
    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; download it again") from error
    member = load_member(folder, torch.device("cpu"))
    (batch,) = predict_batches(predictor([member]), [ImageInput(path.name, lambda: encoded)], 1)
    return Golden(
        picture=path.name,
        labels=tuple(member.class_names),
        logits=tuple(batch.logits[0, 0].astype(float).tolist()),
        device="cpu",
        precision="fp32",
        torch=torch.__version__.partition("+")[0],
    )
