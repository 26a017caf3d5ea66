"""Features (N, D): what a backbone makes of a run's images before it is trained, computed once for all folds."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from creature.data.loader import FeatureDataset, MakeBatches
from creature.data.order import held_out_requests
from creature.errors import UserError
from creature.recipe import Backbone, Images
from creature.training import distributed, loop
from creature.training.backbone import build_backbone, make_normalize
from creature.training.checkpoint import has_state
from creature.training.run_folder import fold_state
from creature.training.train_data import TrainData


class FeatureExtractor(nn.Module):
    """A timm model without its classifier: normalized pixels (B, 3, H, W) -> features (B, D).

    Raises UserError for a model whose classifier is not its last layer.
    """

    def __init__(self, model: Any, backbone: Backbone, size: int):
        super().__init__()
        self.model = model.eval()
        with torch.inference_mode():
            image = torch.linspace(-1, 1, 3 * size * size).view(1, 3, size, size)
            logits = model.get_classifier()(self(image))
            if not torch.allclose(logits, model(image), atol=1e-5):
                field = f"backbone.{'frozen' if backbone.frozen else 'head_start'}"
                raise UserError(f"{field}: the classifier of {backbone.name} is not its last layer; take another model")

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """What the classifier gets."""
        return self.model.forward_head(self.model.forward_features(inputs), pre_logits=True)


def needs_features(backbone: Backbone, folders: Sequence[Path]) -> bool:
    """Whether a fold of these folders is to be trained on features, or to start at a linear probe of them."""
    unfinished = [folder for folder in folders if fold_state(folder) != "finished"]
    probed = backbone.head_start == "probe"
    return any(backbone.frozen or (probed and not has_state(folder)) for folder in unfinished)


def add_features(
    accelerator: Accelerator, data: TrainData, make_batches: MakeBatches, *, backbone: Backbone, images: Images
) -> tuple[TrainData, MakeBatches]:
    """The data with the features of the backbone on its starting weights; a frozen one gets batches of these alone."""
    model = build_backbone(backbone, len(data.folds.class_names), images.size)
    extractor = FeatureExtractor(model, backbone, images.size)
    rows = np.arange(len(data.folds.labels))
    features = loop.predict(
        accelerator,
        extractor.to(accelerator.device),
        make_batches(held_out_requests(rows, data.batch_size, distributed.share_of(accelerator))),
        rows=rows,
        batch_size=data.batch_size,
        normalize=make_normalize(backbone, images.normalize).to(accelerator.device),
        title="features",
    )
    tensor = torch.from_numpy(features)
    if backbone.frozen:
        make_batches = FeatureDataset(data.images.dataset, tensor, data.images.training.targets).batches
    return replace(data, features=tensor), make_batches
