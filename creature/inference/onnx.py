"""An exported model in ONNX Runtime, as a predictor; nothing here needs torch. B batch, K classes, S side."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from creature.data.eval_transform import EvalTransform
from creature.errors import UserError
from creature.inference.predictor import Predictor

KEY = "creature"  # of the metadata that says how images are seen and what the classes are called


def open_session(path: str) -> Predictor:
    """The model of a file that creature.publishing.onnx_export wrote.

    Raises UserError where ONNX Runtime is missing, or the file is damaged or of others.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"{path} needs ONNX Runtime: pip install onnxruntime") from error
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers)
        said = json.loads(session.get_modelmeta().custom_metadata_map[KEY])
        transform = EvalTransform(int(said["size"]), str(said["fit"]), tuple(map(float, said["mean"])))
        names, fallback = tuple(map(str, said["names"])), str(said["fallback"])
    except Exception as error:  # ONNX Runtime's own errors share no base
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UserError(f"{path}: no model of creature export ({type(error).__name__}: {reason})") from error

    def compute(pixels: Mapping[EvalTransform, np.ndarray]) -> tuple[np.ndarray, None]:
        (probabilities,) = session.run(["probabilities"], {"pixels": pixels[transform]})
        # Predictors speak in logits, up to a constant: softmax of a logarithm is what it was taken of.
        return np.log(np.maximum(np.asarray(probabilities), np.finfo(np.float32).tiny))[None], None

    return Predictor(
        path, names, (path,), (transform,), compute, np.ones(1), "logits", fallback=fallback, files=(Path(path),)
    )
