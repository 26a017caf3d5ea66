"""A web service that classifies uploaded photos.

pip install fastapi uvicorn python-multipart
CREATURE_MODEL=runs/laptop/fold-0 uvicorn --app-dir examples service:app
CREATURE_MODEL=runs/laptop CREATURE_MEMBERS=1 uvicorn --app-dir examples service:app    # the run's ensemble
curl -F photo=@photo.jpg http://127.0.0.1:8000/predict
"""

import os
import sys
from typing import Annotated

from fastapi import FastAPI, HTTPException, Query, UploadFile
from pydantic import BaseModel

import creature

app = FastAPI(title="creature")
model = creature.load(
    os.environ.get("CREATURE_MODEL") or sys.exit("set CREATURE_MODEL to a fold, a run, hf-hub:USER/NAME or FILE.onnx"),
    device=os.environ.get("CREATURE_DEVICE", "auto"),
    members="CREATURE_MEMBERS" in os.environ,
)


class Label(BaseModel):
    """A label with its probability, and whether that is calibrated."""

    label: str
    probability: float
    calibrated: bool


@app.get("/classes")
def classes() -> list[str]:
    """The labels that the model knows."""
    return list(model.class_names)


@app.post("/predict")
def predict(photo: UploadFile, top: Annotated[int, Query(ge=1)] = 3) -> list[Label]:
    """The most probable labels of a photo; plain `def`, so that FastAPI serves requests in several threads."""
    (prediction,) = model.predict(photo.file.read(), top=top)
    if prediction.broken:
        raise HTTPException(422, f"{photo.filename}: {prediction.status}")
    calibrated = prediction.calibrated
    return [Label(label=label, probability=p, calibrated=calibrated) for label, p in prediction.top(top)]
