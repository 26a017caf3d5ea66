"""Table 4: soups and students beside the ensemble in whose place they may stand, on images that no member has seen."""

from collections.abc import Iterator, Sequence

from creature.console import warn
from creature.ensembling.acceptance import MARGIN
from creature.errors import CreatureError
from creature.metrics.significance import holm
from creature.reporting.study import StudyRun
from creature.reporting.tables import Cell, Record, Table, difference_cell
from creature.results import StandIn, read_result

COLUMNS = ("model, parameters", "accuracy", "points above the ensemble", "accepted", "run, images")
NOTE = (
    "Soups and students as creature ensemble made and scored them, on images that no member was trained on. "
    "Differences: Newcombe's interval, and McNemar's p, corrected by Holm. Accepted: surely less than a point "
    "worse than the ensemble. The greedy soup's score is cross-fitted: of the soups that each half of the images "
    "chose for the other. RUN/soup holds the kind that was asked for last."
)


def single_table(runs: Sequence[StudyRun]) -> Table | None:
    """The table; None where no run has a scored soup or student."""
    rows: list[tuple[Cell, ...]] = []
    records: list[Record] = []
    for run in runs:
        for result in scored_together(run):
            ensemble, *others = result.scores
            p = dict(zip(others, holm([result.scores[name].against_ensemble.p for name in others]), strict=True))
            for name, score in result.scores.items():
                against, difference, accepted = score.against_ensemble, Cell(""), ""
                record: Record = {"run": run.name, "rows": result.source, "who": name}
                record |= {"parameters": score.parameters, **score.count.figures()}
                if name != ensemble:
                    points = [100 * value for value in (against.difference, against.low, against.high)]
                    text = "{:+.2f} [{:+.2f}, {:+.2f}], Holm".format(*points)
                    difference = difference_cell(against.difference, text, p[name])
                    if not name.startswith("fold-"):  # a member is no stand-in
                        accepted = "yes" if against.low > -MARGIN else "no"
                    record |= {"difference": against.difference, "difference_low": against.low}
                    record |= {"difference_high": against.high, "p": against.p, "p_holm": p[name], "accepted": accepted}
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
            result = read_result(path, StandIn, f"it is left out; make {folder} again")
        except CreatureError as error:
            warn(str(error))
            continue
        if result.scores and {member.sha256 for member in result.members} == weights:
            yield result
        elif result.scores:
            warn(f"{folder} was made of other members than there are, and is left out; make it again")
