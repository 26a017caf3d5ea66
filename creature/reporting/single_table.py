"""Table 4: soups and students beside the ensemble in whose place they may stand, on images that no member has seen."""

from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import AliasPath, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from creature.console import warn
from creature.ensembling.acceptance import MARGIN
from creature.errors import first_problem
from creature.metrics.accuracy import Count
from creature.metrics.significance import holm
from creature.reporting.study import StudyRun
from creature.reporting.tables import Cell, Record, Table, difference_cell

COLUMNS = ("model, parameters", "accuracy", "points above the ensemble", "accepted", "run, images")
NOTE = (
    "Soups and students as creature ensemble made and scored them, on images that no member was trained on. "
    "Differences: Newcombe's interval, and McNemar's p, corrected by Holm. Accepted: surely less than a point "
    "worse than the ensemble. The greedy soup's score is cross-fitted: of the soups that each half of the images "
    "chose for the other. RUN/soup holds the kind that was asked for last."
)


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True)


class Score(_Entry):
    """What the file of a soup or student says of a model's score, and of its difference to the ensemble's accuracy."""

    parameters: int
    correct: int = Field(ge=0)
    n: int = Field(ge=1)
    difference: float = Field(validation_alias=AliasPath("against_ensemble", "difference"))
    low: float = Field(validation_alias=AliasPath("against_ensemble", "low"))  # 95 % interval of the difference
    high: float = Field(validation_alias=AliasPath("against_ensemble", "high"))
    p: float = Field(validation_alias=AliasPath("against_ensemble", "p"))

    @property
    def count(self) -> Count:
        """Its accuracy."""
        return Count(self.correct, self.n)


class Member(_Entry):
    """A model that a soup or student was made of."""

    sha256: str  # of its weights


class StandIn(_Entry):
    """The result.json of a soup or student, which has more; `scores` is by model, the ensemble first."""

    members: tuple[Member, ...]
    scores: Annotated[dict[str, Score], BeforeValidator(lambda scores: scores or {})]
    images: str = Field(default="", validation_alias=AliasPath("images", "source"))
    strategy: str = "logits"
    mirror: bool = False

    @property
    def source(self) -> str:
        """The images, and how the ensemble predicted them."""
        strategy = f" by {self.strategy}" if self.strategy != "logits" else ""
        return f"{self.images}{strategy}{', with mirror images' * self.mirror}"


def single_table(runs: Sequence[StudyRun]) -> Table | None:
    """The table; None where no run has a scored soup or student."""
    rows: list[tuple[Cell, ...]] = []
    records: list[Record] = []
    for run in runs:
        for result in scored_together(run):
            ensemble, *others = result.scores
            p = dict(zip(others, holm([result.scores[name].p for name in others]), strict=True))
            for name, score in result.scores.items():
                difference, accepted = Cell(""), ""
                record: Record = {"run": run.name, "rows": result.source, "who": name}
                record |= {"parameters": score.parameters, **score.count.figures()}
                if name != ensemble:
                    text = f"{100 * score.difference:+.2f} [{100 * score.low:+.2f}, {100 * score.high:+.2f}], Holm"
                    difference = difference_cell(score.difference, text, p[name])
                    if not name.startswith("fold-"):  # a member is no stand-in
                        accepted = "yes" if score.low > -MARGIN else "no"
                    record |= {"difference": score.difference, "difference_low": score.low}
                    record |= {"difference_high": score.high, "p": score.p, "p_holm": p[name], "accepted": accepted}
                model, source = f"{name}, {score.parameters / 1e6:.1f} M", f"{run.name}, {result.source}"
                rows.append((Cell(model), Cell(str(score.count)), difference, Cell(accepted), Cell(source)))
                records.append(record)
    if not rows:
        return None
    title = "Table 4. One model in the ensemble's place"
    return Table("single", title, NOTE, columns=COLUMNS, rows=rows, records=records)


def scored_together(run: StudyRun) -> list[StandIn]:
    """The scores of the run's soup and student; in one result where their images and ensemble are the same."""
    results: list[StandIn] = []
    for result in _read_results(run):
        last = results[-1] if results else None
        if last and last.source == result.source and (last.scores | result.scores) == (result.scores | last.scores):
            last.scores.update(result.scores)
        else:
            results.append(result)
    return results


def _read_results(run: StudyRun) -> Iterator[StandIn]:
    """Results of the run's soup and student that are scored, and made of the members that there are."""
    weights = {result.sha256.weights for result in run.results}
    for folder in (run.folder / "soup", run.folder / "student"):
        path = folder / "result.json"
        if not path.exists():
            continue
        try:
            result = StandIn.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            problem = first_problem(error) if isinstance(error, ValidationError) else error.strerror
            warn(f"{path} cannot be read ({problem}), and is left out; make {folder} again")
            continue
        if result.scores and {member.sha256 for member in result.members} == weights:
            yield result
        elif result.scores:
            warn(f"{folder} was made of other members than there are, and is left out; make it again")
