"""Features (N, D): what a backbone makes of a run's images before it is trained, computed once for all folds."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from creature.data.loader import FeatureDataset, MakeBatches
from creature.data.order import held_out_requests
from creature.errors import UserError
from creature.recipe import Backbone, Images
from creature.training import distributed, loop
from creature.training.backbone import as_linear, build_backbone, classifier_names, find_classifier, make_normalize
from creature.training.checkpoint import has_state
from creature.training.run_folder import fold_state
from creature.training.train_data import TrainData


class FeatureExtractor(nn.Module):
    """A timm model up to its classifier: normalized pixels (B, 3, H, W) -> features (B, D).

    Raises UserError for a model that does not end in one classifier, or not in a linear one where it is to be solved.
    """

    def __init__(self, model: nn.Module, backbone: Backbone, size: int):
        super().__init__()
        self.model, self.classifier = model.eval(), find_classifier(model)
        field, plain = ("frozen", "false") if backbone.frozen else ("head_start", "none")
        if isinstance(self.classifier, nn.ModuleList):
            reason = f"{backbone.name} has several classifiers ({', '.join(classifier_names(model))})"
        elif not self._classifier_is_last(size):
            reason = f"the classifier of {backbone.name} is not its last layer"
        elif not backbone.frozen and not isinstance(as_linear(self.classifier), nn.Linear):
            reason = f"the classifier of {backbone.name} is no linear layer"
        else:
            return
        raise UserError(f"backbone.{field}: {reason}; set it to {plain}, or take another model")

    @torch.inference_mode()
    def _classifier_is_last(self, size: int) -> bool:
        """Whether an image's logits are what the classifier makes of its features."""
        image = torch.linspace(-1, 1, 3 * size * size).view(1, 3, size, size)
        features = self(image)
        return features.ndim == 2 and torch.allclose(as_linear(self.classifier)(features), self.model(image), atol=1e-5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """What the classifier gets."""
        seen: list[torch.Tensor] = []
        with self.classifier.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0])):
            self.model(inputs)
        return seen[-1].squeeze((2, 3)) if seen[-1].ndim == 4 else seen[-1]


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
