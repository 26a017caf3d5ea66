"""Fine-tune image classifiers in folds, score them honestly, share the weights.

The public names, each imported when it is first used, so that `import creature` is quick and changes nothing in the
host program:

>>> import creature
>>> model = creature.load("runs/tiny/fold-0", device="cpu")
>>> for prediction in model.predict(["photo.png"], top=3):
...     print(prediction.id, prediction.status, prediction.label in model.class_names, len(prediction.top(3)))
photo.png ok True 3
>>> run = creature.Run("runs/tiny")
>>> [fold.name for fold in run.folds]
['fold-0', 'fold-1', 'fold-2']
>>> run.out_of_fold.score.n == len(run.out_of_fold.ids)
True
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from creature.errors import BrokenError, CreatureError, Interrupted, UserError
    from creature.inference.classifier import Classifier, load
    from creature.inference.prediction import Prediction
    from creature.metrics.predictions import Predictions
    from creature.recipe import Recipe
    from creature.run import Fold, Run
    from creature.train_api import load_recipe, train

__version__ = "0.1.0"
__all__ = [
    "BrokenError",
    "Classifier",
    "CreatureError",
    "Fold",
    "Interrupted",
    "Prediction",
    "Predictions",
    "Recipe",
    "Run",
    "UserError",
    "load",
    "load_recipe",
    "train",
]

_HOMES = {
    "BrokenError": "creature.errors",
    "Classifier": "creature.inference.classifier",
    "CreatureError": "creature.errors",
    "Fold": "creature.run",
    "Interrupted": "creature.errors",
    "Prediction": "creature.inference.prediction",
    "Predictions": "creature.metrics.predictions",
    "Recipe": "creature.recipe",
    "Run": "creature.run",
    "UserError": "creature.errors",
    "load": "creature.inference.classifier",
    "load_recipe": "creature.train_api",
    "train": "creature.train_api",
}


if not TYPE_CHECKING:  # or every misspelt name would have a type

    def __getattr__(name: str) -> Any:
        """Import a public name from its home."""
        if name not in _HOMES:
            raise AttributeError(f"module 'creature' has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
