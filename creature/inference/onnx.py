"""An exported model in ONNX Runtime, as a predictor; nothing here needs torch. B batch, K classes, S side."""

import json
from pathlib import Path

import numpy as np

from creature.data.eval_transform import EvalTransform
from creature.errors import UserError, check_installed, first_line
from creature.inference.predictor import Computed, Predictor
from creature.inference.prepare import Pixels
from creature.metrics.blend import Blending
from creature.metrics.calibration import by_mirror

KEY = "creature"  # of the metadata with the evaluation view and the class names


def open_session(path: str) -> Predictor:
    """The model of a file that creature.publishing.onnx_export wrote.

    Raises UserError where ONNX Runtime is missing, or the file is damaged or of others.
    """
    check_installed("export", path, "onnxruntime")
    import onnxruntime

    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers)
        metadata = json.loads(session.get_modelmeta().custom_metadata_map[KEY])
        transform = EvalTransform(int(metadata["size"]), str(metadata["fit"]), tuple(map(float, metadata["mean"])))
        names, fallback = tuple(map(str, metadata["names"])), str(metadata["fallback"])
        calibrations = by_mirror(metadata.get("temperature"))  # older files have none
    except Exception as error:  # ONNX Runtime's errors share no base
        raise UserError(f"{path}: no model of creature export ({type(error).__name__}: {first_line(error)})") from error

    def compute(pixels: Pixels) -> Computed:
        (probabilities,) = session.run(["probabilities"], {"pixels": pixels[transform]})
        # A predictor gives logits up to a constant, as logs of probabilities are.
        return Computed(np.log(np.maximum(np.asarray(probabilities), np.finfo(np.float32).tiny))[None])

    return Predictor(
        title=path,
        class_names=names,
        members=(path,),
        transforms=(transform,),
        compute=compute,
        blending=Blending(np.ones(1)),
        fallback=fallback,
        files=(Path(path),),
        calibrations=calibrations,
    )
