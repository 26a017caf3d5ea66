"""One model in an ensemble's place: scored beside it, and accepted or not. N images that no member was trained on."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from creature.console import say, show_table
from creature.ensembling.recorded import PredictedImages
from creature.errors import UserError
from creature.inference.members import Member, predictor
from creature.inference.predictor import predict_batches
from creature.inference.prepare import ImageInput
from creature.member_folds import member_names
from creature.metrics.accuracy import Count, count_correct
from creature.metrics.blend import Blending
from creature.metrics.significance import PairedComparison, compare_paired, difference_interval, holm, shown_p
from creature.results import Accuracy, ComparedScore, Difference, Ingredient, ScoredImages, StandIn
from creature.run import Fold

MARGIN = 0.01  # by how much of accuracy one model may be worse


@dataclass(frozen=True)
class Candidate:
    """A model or ensemble, the number of its parameters, and the classes (N,) that it predicts."""

    name: str
    parameters: int
    predicted: np.ndarray
    doubt: str = ""  # the reason to give where it is worse than every member


@dataclass(frozen=True)
class UnseenImages:
    """Labelled images that no member was trained on; the ensemble and its members, and what they predict of them."""

    title: str
    content_hashes: np.ndarray  # (N,)
    labels: np.ndarray  # (N,)
    ensemble: Candidate
    members: tuple[Candidate, ...]
    images: Callable[[], Iterable[ImageInput]]
    strategy: str
    mirror: bool

    def predict(self, member: Member, batch_size: int, title: str) -> np.ndarray:
        """The classes (N,) that another model predicts, with mirror images where the ensemble did."""
        alone = predictor([member], Blending(np.ones(1), mirror=self.mirror))
        batches = predict_batches(alone, self.images(), batch_size, title=title, total=len(self.labels))
        return np.concatenate([batch.logits[0].argmax(1) for batch in batches])


def find_unseen(table: PredictedImages, members: Sequence[Fold]) -> UnseenImages:
    """Those of the predicted images that may score a model; raises UserError where there are not two of them."""
    recorded, rows = table.recorded, np.flatnonzero(table.exposed == "unseen")
    hashes = np.array(recorded.content_hashes)[rows]
    if len(set(hashes)) < 2:
        kinds, n = np.unique(table.exposed, return_counts=True)
        listed = ", ".join(f"{count} {kind}" for kind, count in zip(kinds.tolist(), n.tolist(), strict=True))
        raise UserError(
            f"{table.title}: one model is scored on labelled images that no member was trained on, two at the least, "
            f"and these are: {listed}; give others with --images DIR --labels FILE.csv"
        )
    sizes = [member.result.parameters for member in members]
    return UnseenImages(
        title=table.title,
        content_hashes=hashes,
        labels=recorded.labels[rows],
        ensemble=Candidate(f"ensemble of {len(members)}", sum(sizes), recorded.predicted[recorded.strategy][rows]),
        members=tuple(
            Candidate(name, size, recorded.predicted[name][rows])
            for name, size in zip(member_names(members), sizes, strict=True)
        ),
        images=lambda: table.images(rows),
        strategy=recorded.strategy,
        mirror=recorded.mirror,
    )


@dataclass(frozen=True)
class Comparison:
    """A model beside the ensemble, on the same images."""

    model: Candidate
    count: Count
    against: PairedComparison
    low: float  # 95 % interval of the difference of accuracies
    high: float

    @property
    def accepted(self) -> bool:
        """Whether it is, with 95 % confidence, less than a point worse."""
        return self.low > -MARGIN

    @property
    def size(self) -> str:
        """Its parameters, for people."""
        return f"{self.model.parameters / 1e6:.1f} M"

    @property
    def result(self) -> ComparedScore:
        """The comparison, for a result.json."""
        against = self.against
        return ComparedScore(
            **dict(Accuracy.of(self.count)),
            parameters=self.model.parameters,
            against_ensemble=Difference(difference=against.difference, low=self.low, high=self.high, p=against.p),
        )


def compare_with_ensemble(unseen: UnseenImages, model: Candidate) -> Comparison:
    """Score a model, and compare it with the ensemble."""
    right, right_by_ensemble = model.predicted == unseen.labels, unseen.ensemble.predicted == unseen.labels
    low, high = difference_interval(right, right_by_ensemble)
    against = compare_paired(right, right_by_ensemble)
    return Comparison(model, count_correct(model.predicted, unseen.labels), against, low=low, high=high)


def score_stand_in(
    unseen: UnseenImages | None, models: Sequence[Candidate], chosen: str, *, members: Sequence[Fold]
) -> StandIn:
    """Scores of ensemble, members and models, and whether the chosen model, made of the members, is accepted."""
    made_of = tuple(Ingredient(fold=member.name, sha256=member.result.sha256.weights) for member in members)
    if unseen is None:
        return StandIn(members=made_of)
    scores = {model.name: compare_with_ensemble(unseen, model) for model in (unseen.ensemble, *unseen.members, *models)}
    return StandIn(
        members=made_of,
        images=ScoredImages(source=Path(unseen.title).name, n=len(unseen.labels)),
        strategy=unseen.strategy,
        mirror=unseen.mirror,
        scores={name: comparison.result for name, comparison in scores.items()},
        accepted=scores[chosen].accepted,
    )


def show_scores(unseen: UnseenImages, models: Sequence[Candidate]) -> None:
    """Print ensemble, members and models in one table, and below it whether each model is accepted."""
    lines = [compare_with_ensemble(unseen, model) for model in (*unseen.members, *models)]
    p = holm([line.against.p for line in lines])
    rows = [
        (
            line.model.name,
            line.size,
            str(line.count),
            f"{100 * line.against.difference:+.2f} [{100 * line.low:+.2f}, {100 * line.high:+.2f}]",
            f"{line.against.first} : {line.against.second}",
            shown_p(corrected),
        )
        for line, corrected in zip(lines, p, strict=True)
    ]
    ensemble = compare_with_ensemble(unseen, unseen.ensemble)
    rows.insert(0, (ensemble.model.name, ensemble.size, str(ensemble.count), "", "", ""))
    heads = ("model", "parameters", "accuracy [95 %]", "points above the ensemble [95 %]", "right alone", "p")
    show_table(f"One model in the ensemble's place, on {unseen.title}", heads, rows)
    say("right alone : the ensemble alone; intervals: Newcombe 1998; p: McNemar's, Holm-corrected", style="dim")
    worst = min(lines[: len(unseen.members)], key=lambda line: line.count.correct)
    for line in lines[len(unseen.members) :]:
        say(f"{line.model.name}: {verdict(line, worst.count, np.bincount(unseen.labels).max())}")


def verdict(line: Comparison, worst: Count, frequent: int) -> str:
    """Whether a model is accepted and why, given the worst member's count and the size of the most frequent class."""
    bound = f"the 95 % lower bound is {100 * line.low:+.2f} points"
    if line.low > 0:
        return f"accepted, for it is better than the ensemble: {bound}"
    if line.accepted and line.against.difference >= 0:
        return f"accepted, for it is as good as the ensemble on these images, and not a point worse: {bound}"
    if line.accepted:
        return f"accepted, for it is less than a point worse than the ensemble: {bound}"
    if line.count.interval[0] <= frequent / line.count.n:
        return f"not accepted: at chance, no better than always the most frequent class; {line.model.doubt}"
    if line.count.correct < worst.correct:
        return f"not accepted: worse than every member; {line.model.doubt}"
    if line.against.difference <= -MARGIN:
        return f"not accepted: a point worse than the ensemble, or more, on these images; {bound}"
    needed = line.count.n * ((line.against.difference - line.low) / (line.against.difference + MARGIN)) ** 2
    digit = 10 ** math.floor(math.log10(needed))
    return (
        f"not accepted: it may be a point worse than the ensemble, for {bound}; were all else equal, some "
        f"{digit * math.ceil(needed / digit):,} labelled images could tell"
    )


def advise(folder: Path, run: Path, accepted: bool | None) -> None:
    """Say what to do with a model that was made of a run's members."""
    if accepted is None:
        say(f"{folder} has no score; to get one, name labelled images: --images DIR --labels FILE.csv")
    elif accepted:
        say(f"{folder} may stand for the ensemble; next: creature predict {folder} PHOTO --top 5")
    else:
        say(f"{folder} is kept, and is no stand-in for the ensemble: creature predict {run} PHOTO --members")
