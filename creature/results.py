"""The result.json files of a run: what is written of a fold, an ensemble and one model in its place, and read back.

A field with a default is one that older versions did not write, or that not every such file has.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Self, TypeVar

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from creature.errors import BrokenError, UserError, first_problem
from creature.metrics.accuracy import Count
from creature.metrics.blend import STRATEGIES, Blending
from creature.storage import file_hash, write_json


class Result(BaseModel):
    """A part of a result; a newer version may write more."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow", populate_by_name=True)


R = TypeVar("R", bound=Result)


class CorrectRows(Result):
    """How many of n rows are right."""

    n: int = Field(ge=1)
    correct: int = Field(ge=0)

    @model_validator(mode="after")
    def _no_more_than_all(self) -> Self:
        if self.correct > self.n:  # guard: possible-score
            raise ValueError(f"correct is {self.correct}, and n only {self.n}")
        return self

    @property
    def count(self) -> Count:
        """The same, with its interval."""
        return Count(self.correct, self.n)


class Accuracy(CorrectRows):
    """An accuracy with its 95 % interval."""

    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    models: int | None = None  # that predicted together, of the small ensembles of repeats

    @classmethod
    def of(cls, count: Count, models: int | None = None) -> Self:
        """That of a count."""
        (low, high), more = count.interval, {} if models is None else {"models": models}
        return cls(n=count.n, correct=count.correct, accuracy=count.accuracy, low=low, high=high, **more)


class EpochScore(CorrectRows):
    """How one epoch's weights predict the held-out rows: the epoch from 1, and `creature.metrics.scores.Scores`."""

    epoch: int = Field(default=1, ge=1)
    interval: tuple[float, float] | None = None
    accuracy: float | None = None
    macro_f1: float | None = None
    class_recall: list[float | None] = []
    classes_without_rows: list[int] = []


class Environment(Result):
    """What a result was computed with."""

    device: str = ""
    processes: int = 1
    threads: int = 1
    python: str = ""
    versions: dict[str, str] = {}
    commit: str | None = None


class FileHashes(Result):
    """SHA-256 of the files that a result was measured with."""

    weights: str = Field(alias="model.safetensors")


class ClassCounts(Result):
    """How many images of each class a model was trained on."""

    class_counts: list[int] = Field(min_length=1)


class Calibrated(Result):
    """The temperature of calibrated probabilities, where enough labelled images were predicted that it never saw."""

    temperature: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class FoldResult(EpochScore, ClassCounts, Calibrated, Environment):
    """A finished fold: the score of the epoch that is used, and what it was trained on."""

    fold: int = Field(ge=0)
    selected: bool  # the epoch was chosen on the rows that it is scored on
    epoch: int = Field(ge=1)
    last: EpochScore
    start: CorrectRows | None = None  # a linear probe, before the first step
    epochs: int = 0
    images_trained: int = 0
    parameters: int
    seconds: float  # of training steps
    saving_seconds: float = 0  # for which it waited for checkpoints
    recipe: str = ""  # hash of the settings that make the weights
    folds: str  # hash of the fold table
    sha256: FileHashes

    @property
    def shown_score(self) -> str:
        """The score for people, marked where its epoch was chosen on the rows that it is scored on."""
        return f"{self.count}{' selected' * self.selected}"


class EnsembleMember(Result):
    """A member, its share of the blend, and its score on the rows that it held out."""

    fold: str
    weight: float = Field(ge=0, allow_inf_nan=False)
    out_of_fold: Accuracy | None = None
    selected: bool = False
    sha256: str = ""  # of its weights
    name: str = Field(default="", pattern=r"^(fold-\d+)?$")  # of its branch, where it is published


class EnsembleResult(Calibrated):
    """RUN/ensemble/result.json, and the ensemble.json of a published run: how members are blended, and their scores."""

    strategy: str = Field(pattern=f"^({'|'.join(STRATEGIES)})$")
    mirror: bool = False
    members: tuple[EnsembleMember, ...] = Field(min_length=1)
    out_of_fold: Accuracy | None = None
    out_of_fold_last: Accuracy | None = None
    ensemble_of_repeats: Accuracy | None = None  # where the folds were drawn several times
    ensemble: dict[str, dict[str, Accuracy | int]] = {}  # tallies by the name of the images

    @property
    def blending(self) -> Blending:
        """How the members are blended."""
        return Blending(np.array([member.weight for member in self.members]), self.strategy, self.mirror)

    @model_validator(mode="after")
    def _not_all_without_weight(self) -> Self:
        if not any(member.weight for member in self.members):
            raise ValueError("the members' weights are all 0")
        return self


class Ingredient(Result):
    """A fold that one model was made of; of a greedy soup, whether the images and each half of them chose it."""

    fold: str = ""
    sha256: str  # of its weights
    chosen: bool = True
    chosen_by_halves: tuple[bool, ...] = ()


class Difference(Result):
    """Of a model's accuracy to that of the ensemble, with its 95 % interval and McNemar's p, not corrected."""

    difference: float
    low: float
    high: float
    p: float


class ComparedScore(Accuracy):
    """A model's score beside the ensemble's."""

    parameters: int
    against_ensemble: Difference


class ScoredImages(Result):
    """The images that scored a model."""

    source: str
    n: int = 0


class StandIn(Result):
    """One model in the ensemble's place, such as a student: its members, its score, and whether it is accepted."""

    members: tuple[Ingredient, ...]
    images: ScoredImages | None = None
    strategy: str = "logits"
    mirror: bool = False
    # By model, the ensemble first; none without images to score on, which older versions wrote as null.
    scores: Annotated[dict[str, ComparedScore], BeforeValidator(lambda scores: scores or {})] = {}
    accepted: bool | None = None

    @property
    def source(self) -> str:
        """The images, and how the ensemble predicted them."""
        strategy = f" by {self.strategy}" if self.strategy != "logits" else ""
        return f"{self.images.source if self.images else ''}{strategy}{', with mirror images' * self.mirror}"


class SoupResult(StandIn, ClassCounts, Environment):
    """The result.json of a soup, which is a model's folder."""

    soup: str
    parameters: int
    recipe: str
    folds: str
    sha256: FileHashes


def hash_files(folder: Path, names: Iterable[str]) -> FileHashes:
    """The hashes of files of a model's folder, its weights among them."""
    return FileHashes.model_validate({name: file_hash(folder / name) for name in names})


def read_result(path: Path, kind: type[R], way_out: str) -> R:
    """A result file.

    Raises UserError where there is none, BrokenError, with the way out, for one that says something else.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise BrokenError(f"{path}: {first_problem(error)}; {way_out}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; {way_out}") from error


def write_result(path: Path, result: Result) -> None:
    """Write a result so that a reader sees all of it or what was there before."""
    write_json(path, result.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True))
