"""The tables of a study, and how they are written: terminal, Markdown, CSV. The page shows the same cells."""

import csv
import io
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from creature.console import printable
from creature.ensembling.acceptance import MARGIN
from creature.ensembling.compare import compare_members
from creature.metrics.accuracy import Count
from creature.metrics.significance import PairedComparison, holm, shown_p
from creature.reporting.reference import Reference, Result, show_accuracies
from creature.reporting.study import Scored, ScoredRows, StudyRun, changes, same_rows, seed_groups

SCORED = ("run", "split", "status", "accuracy", "correct", "n", "low", "high")
COMPARED = ("run", "baseline", "rows", "status", "n", "run_alone_right", "baseline_alone_right", "difference")
COMPARED += ("p", "p_holm")
SPLITS = ("holdout", "images")
CALLED = {"holdout": "holdout", "images": "test"}


@dataclass(frozen=True)
class Cell:
    """What a cell says; `tone` is up, down or weak, and `up sure` or `down sure` below p = 0.05."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """One table: what people read in cells, what programs read in records."""

    name: str
    title: str
    note: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]
    records: list[dict[str, Any]] = field(default_factory=list)


def choose_baseline(runs: Sequence[StudyRun], reference: Reference | None = None) -> StudyRun:
    """The run that repeats the reference's baseline, or the first one."""
    if reference:
        base = reference.find(reference.baseline)
        return next((run for run in runs if reference.find(run.recipe.name) is base), runs[0])
    return runs[0]


def order_runs(runs: Sequence[StudyRun], reference: Reference) -> list[StudyRun]:
    """Runs in the order of the reference's results, then all others as they were given."""
    rank = {name: at for at, result in enumerate(reference.results) for name in result.recipes}
    return sorted(runs, key=lambda run: rank.get(run.recipe.name, len(rank)))


def scores_table(runs: Sequence[StudyRun], reference: Reference | None = None) -> Table:
    """Table 1: what each run scores on images that it was not trained on, beside a reference's accuracies."""
    splits = [split for split in SPLITS if any(split in run.recorded for run in runs)]
    selected = any(run.folds and run.selected for run in runs)
    ensembles = any(run.folds and run.unseen.models > 1 for run in runs)
    columns = [
        "run",
        "held out",
        *(["held out, last epoch"] if selected else []),
        *(["held out, ensemble of repeats"] if ensembles else []),
        *(CALLED[split] for split in splits),
        "cost",
        *([f"{reference.name}: {', '.join(reference.splits)}"] if reference else []),
    ]
    rows, records = [], []
    for run in runs:
        cells, scored = [_name(run)], []
        if not run.folds:
            cells += [Cell("no finished fold", "weak")] + [Cell("")] * (len(columns) - 2 - bool(reference))
        else:
            cells.append(Cell(f"{run.held.count}{' selected' * run.selected}"))
            scored.append(_record(run, "held_out", run.held.count, "selected" if run.selected else "scored"))
            if selected:
                cells.append(Cell(str(run.last)))
                scored.append(_record(run, "held_out_last_epoch", run.last, "scored"))
            if ensembles:
                cells.append(_ensemble_score(run))
                if run.unseen.models > 1:
                    split, status = (
                        f"held_out_ensemble_of_{run.unseen.models}",
                        "selected" if run.selected else "scored",
                    )
                    scored.append(_record(run, split, run.unseen.rows.count, status))
            for split in splits:
                cell, record = _split_score(run, split)
                cells.append(cell)
                scored.append(record)
            cells.append(Cell(_cost(run)))
        result = reference.find(run.recipe.name) if reference else None
        if reference:
            cells.append(Cell(show_accuracies(result.accuracy, reference.splits) if result else "", "weak"))
        rows.append(tuple(cells))
        records += [record | _reference_columns(result) for record in scored]
    note = (
        "Held out: rows that the answering member never saw, pooled over its folds. Intervals: Wilson, 95 %. "
        "selected: the epoch was chosen on these rows. seen: a member was trained on the image, which is no "
        "accuracy. Cost: members, parameters and minutes of training steps, without reading, features and answers."
    )
    if ensembles:
        note += (
            " Of a run whose folds were drawn several times, held out is one repeat, for each row counts once; its "
            "ensemble is the mean of the logits of members, one of each repeat, that never saw the row. The ensemble "
            "of all members is larger and cannot be scored on these rows: some of them were trained on each."
        )
    if reference:
        for result in reference.missing(run.recipe.name for run in runs):
            accuracies = Cell(show_accuracies(result.accuracy, reference.splits), "weak")
            rows.append((*_missing_cells(result, len(columns) - 1), accuracies))
            record = dict.fromkeys(SCORED) | {"run": result.name, "split": "held_out", "status": "missing"}
            records.append(record | _reference_columns(result))
        counts = ", ".join(f"{name} n = {split.n}" for name, split in reference.splits.items())
        note += f" {reference.name}: {reference.source}; {counts}."
    return Table("scores", "Table 1. Scores", note, tuple(columns), rows, records)


def tricks_table(runs: Sequence[StudyRun], baseline: StudyRun, reference: Reference | None = None) -> Table:
    """Table 2: each run against the baseline, on the same images, beside a reference's differences."""
    others = [run for run in runs if run is not baseline]
    splits = ["held", *(split for split in SPLITS if any(split in run.recorded for run in runs))]
    pairs = {(run.name, split): _pair(run, baseline, split) for run in others for split in splits}
    measured = [key for key, value in pairs.items() if isinstance(value, PairedComparison)]
    p = dict(zip(measured, holm([pairs[key].p for key in measured]), strict=True))  # type: ignore[union-attr]
    called = {"held": "held out", **CALLED}
    columns = ["run", "differs in", *(called[split] for split in splits)]
    columns += [f"{reference.name}: {', '.join(reference.compared)}"] if reference else []
    rows, records = [], []
    for run in others:
        differs = changes(baseline, run)
        cells = [_name(run), Cell(", ".join(differs).replace(" -> ", " → ") or "nothing")]
        for split in splits:
            found = pairs[run.name, split]
            record = dict.fromkeys(COMPARED) | {"run": run.name, "baseline": baseline.name, "rows": called[split]}
            if isinstance(found, PairedComparison):
                corrected = p[run.name, split]
                mark = " selected" * (split == "held" and (run.selected or baseline.selected))
                cells.append(_difference(found, corrected, mark))
                record |= {"n": found.n, "run_alone_right": found.first, "baseline_alone_right": found.second}
                record |= {"difference": found.difference, "p": found.p, "p_holm": corrected, "status": "compared"}
            else:
                cells.append(Cell(found, "weak"))
                record["status"] = found
            records.append(record)
        if reference:
            result = reference.find(run.recipe.name)
            cells.append(Cell(reference.differences(result) if result else "", "weak"))
        rows.append(tuple(cells))
    better = [f"{run} ({called[split]})" for (run, split), value in p.items() if value < 0.05]
    note = (
        f"Difference to {baseline.name} in points of accuracy (right where {baseline.name} is wrong : the reverse), on "
        "the n images that neither was trained on. p: McNemar's exact test, of two trained models, not two recipes: "
        f"another seed gives other models. Holm: corrected for the {len(p)} comparisons of this table. "
        f"Below 0.05 after the correction: {', '.join(better) or 'none'}."
    )
    if reference:
        for result in reference.missing(run.recipe.name for run in runs):
            differences = Cell(reference.differences(result), "weak")
            rows.append((*_missing_cells(result, len(columns) - 1), differences))
            record = {"run": result.name, "baseline": baseline.name, "status": "missing"}
            records.append(dict.fromkeys(COMPARED) | record)
        note += f" {reference.name}: differences to its own {reference.baseline}; {reference.source}."
    return Table("tricks", f"Table 2. Each run against {baseline.name}", note, tuple(columns), rows, records)


def strategies_table(runs: Sequence[StudyRun], reference: Reference | None = None) -> Table | None:
    """Table 3: strategies and single members of every run with two members or more, on labelled new images."""
    columns = ["run", "images", "who", "accuracy", "against logits"]
    columns += [f"{reference.name}: {', '.join(reference.compared)}"] if reference else []
    rows, records = [], []
    for run in runs:
        result = reference.find(run.recipe.name) if reference else None
        for split, table in run.recorded.items():
            found = compare_members(table, run.exposed[split]) if len(table.members) > 1 else []
            for each in found:
                against = Cell("") if each.against is None or each.p is None else _difference(each.against, each.p)
                cells = [_name(run), Cell(CALLED[split]), Cell(each.name), Cell(str(each.count)), against]
                if reference:
                    strategy = "member" if each.name == table.members[0] else each.name
                    accuracy = result.strategies.get(strategy) if result else None
                    cells.append(Cell(show_accuracies(accuracy, reference.compared) if accuracy else "", "weak"))
                rows.append(tuple(cells))
                record = {"run": run.name, "rows": CALLED[split], "who": each.name, **each.count.figures()}
                if each.against:
                    record |= {"difference": each.against.difference, "p": each.against.p, "p_holm": each.p}
                records.append(record)
    if not rows:
        return None
    note = (
        "logits, softmax, vote: mean of all members' logits, mean of their probabilities, majority. Against logits: "
        "points, on the same images; McNemar's p, corrected by Holm within a run's images."
    )
    if reference:
        note += f" {reference.name}: {reference.source}; its one member stands beside the first."
    return Table("strategies", "Table 3. Ensemble strategies", note, tuple(columns), rows, records)


def single_table(runs: Sequence[StudyRun]) -> Table | None:
    """Table 4: what may stand in an ensemble's place, beside it and its members, on images that none of them saw."""
    rows, records = [], []
    for run in runs:
        for source, scores in _scored_together(run):
            whole, *names = scores
            p = dict(zip(names, holm([scores[name].p for name in names]), strict=True))
            for name, said in scores.items():
                above, accepted, record = Cell(""), "", {"run": run.name, "rows": source, "who": name}
                record |= {"parameters": said.parameters, **said.count.figures()}
                if name != whole:
                    text = f"{100 * said.difference:+.2f} [{100 * said.low:+.2f}, {100 * said.high:+.2f}], Holm"
                    above = _toned(said.difference, text, p[name])
                    accepted = "" if name.startswith("fold-") else "yes" if said.low > -MARGIN else "no"
                    record |= {"difference": said.difference, "difference_low": said.low, "difference_high": said.high}
                    record |= {"p": said.p, "p_holm": p[name], "accepted": accepted}
                model, of = Cell(f"{name}, {said.parameters / 1e6:.1f} M"), Cell(f"{run.name}, {source}")
                rows.append((model, Cell(str(said.count)), above, Cell(accepted), of))
                records.append(record)
    if not rows:
        return None
    columns = ("model, parameters", "accuracy", "points above the ensemble", "accepted", "run, images")
    note = (
        "Soups and students as ensemble.py made and scored them, on images that no member was trained on. "
        "Differences: Newcombe's interval, and McNemar's p, corrected by Holm. Accepted: surely less than a point "
        "worse than the ensemble. The greedy soup's score is cross-fitted: of the soups that each half of the images "
        "chose for the other. RUN/soup holds the kind that was asked for last."
    )
    return Table("single", "Table 4. One model in the ensemble's place", note, columns, rows, records)


def _scored_together(run: StudyRun) -> list[tuple[str, dict[str, Scored]]]:
    """Models that were scored on the same images, beside an ensemble with the same answers; where these are from."""
    found: list[tuple[str, dict[str, Scored]]] = []
    for source, scores in run.made:
        if found and found[-1][0] == source and all(found[-1][1].get(name, new) == new for name, new in scores.items()):
            found[-1][1].update(scores)
        else:
            found.append((source, dict(scores)))
    return found


def seeds_table(runs: Sequence[StudyRun], baseline: StudyRun) -> Table | None:
    """Runs that differ in the seed alone: mean and spread of their scores, which is what a recipe gives."""
    groups = seed_groups(runs)
    if not groups:
        return None
    splits = [split for split in SPLITS if any(split in run.recorded for run in runs)]
    base = next((group for group in groups if baseline in group), [])
    rows, records = [], []
    for group in groups:
        cells = [Cell(", ".join(run.name for run in group)), Cell(", ".join(str(run.recipe.seed) for run in group))]
        for split in ("held", *splits):
            scores = [found.count.accuracy for run in group if (found := _rows(run, split))]
            bases = [found.count.accuracy for run in base if (found := _rows(run, split))]
            if len(scores) < 2:
                cells.append(Cell("fewer than two scores", "weak"))
                continue
            asked = [run.recorded[split] for run in (*group, *base) if split in run.recorded]
            if not all(one.comparable_with(other) for one, other in combinations(asked, 2)):
                ways = sorted({each.how for each in asked})
                cells.append(Cell(f"asked in different ways: {', '.join(ways)}", "weak"))
                continue
            mean, spread = statistics.mean(scores), statistics.stdev(scores)
            mark = " selected" if split == "held" and any(run.selected for run in (*group, *base)) else ""
            beside = f", {100 * (mean - statistics.mean(bases)):+.2f} points" if bases and group is not base else ""
            cells.append(Cell(f"{mean:.4f} ± {spread:.4f} (n = {len(scores)} runs){beside}{mark}"))
            records.append({"runs": cells[0].text, "rows": split, "mean": mean, "deviation": spread, "n": len(scores)})
        rows.append(tuple(cells))
    columns = ("runs", "seeds", "held out", *(CALLED[split] for split in splits))
    note = "Mean and standard deviation of accuracy over runs that differ in the seed alone; points: to the baseline's."
    return Table("seeds", "Seeds", note, columns, rows, records)


def _name(run: StudyRun) -> Cell:
    folds, of = len(run.folds), run.recipe.folds.members
    return Cell(run.name if of == 1 else f"{run.name} ({folds} of {of} folds)")


def _cost(run: StudyRun) -> str:
    parameters = {result.parameters for result in run.results}
    minutes = sum(result.seconds for result in run.results) / 60
    size = " and ".join(f"{number / 1e6:.1f} M" for number in sorted(parameters))
    return f"{len(run.folds)} x {size}, {minutes:.1f} min"


def _ensemble_score(run: StudyRun) -> Cell:
    models = run.unseen.models
    return Cell(f"{run.unseen.rows.count} by {models} members{' selected' * run.selected}") if models > 1 else Cell("")


def _split_score(run: StudyRun, split: str) -> tuple[Cell, dict[str, Any]]:
    record = dict.fromkeys(SCORED) | {"run": run.name, "split": CALLED[split]}
    if split not in run.recorded:
        return Cell("not predicted", "weak"), record | {"status": "not predicted"}
    if rows := run.new(split):
        known = int((run.exposed[split] == "seen").sum())
        more = f"; {known} more seen" if known else ""
        mirror = ", with mirror images" * run.recorded[split].mirror
        return Cell(f"{rows.count}{mirror}{more}"), _record(run, CALLED[split], rows.count, "scored")
    for status in ("seen", "selected"):
        if (run.exposed[split] == status).any():
            return Cell(status, "weak"), record | {"status": status}
    return Cell("no labels", "weak"), record | {"status": "no labels"}


def _record(run: StudyRun, split: str, count: Count, status: str) -> dict[str, Any]:
    return dict.fromkeys(SCORED) | {"run": run.name, "split": split, "status": status, **count.figures()}


def _rows(run: StudyRun, split: str) -> ScoredRows | None:
    if not run.folds:
        return None
    return run.held if split == "held" else run.new(split)


def _pair(run: StudyRun, baseline: StudyRun, split: str) -> PairedComparison | str:
    first, second = _rows(run, split), _rows(baseline, split)
    if first is None or second is None:
        return "not scored" if first is None else f"{baseline.name} is not scored"
    if split != "held" and not run.recorded[split].comparable_with(baseline.recorded[split]):
        return f"{baseline.name} was asked in another way: {baseline.recorded[split].how}"
    return same_rows(first, second) or "the rows differ"


def _difference(found: PairedComparison, p: float, mark: str = "") -> Cell:
    return _toned(found.difference, f"{found}{mark}, n = {found.n}, p {shown_p(found.p)}, Holm", p)


def _toned(difference: float, text: str, p: float) -> Cell:
    """What is said of a difference, and p after the correction; with its direction, and whether that is sure."""
    tone, mark = ("", "") if not difference else ("up", "▲ ") if difference > 0 else ("down", "▼ ")
    return Cell(f"{mark}{text} {shown_p(p)}", f"{tone} sure" if tone and p < 0.05 else tone)


def _missing_cells(result: Result, columns: int) -> list[Cell]:
    """The row of a reference's result that no run repeats, but for the reference's own cell."""
    return [Cell(result.name, "weak"), Cell("missing", "weak"), *[Cell("")] * (columns - 2)]


def _reference_columns(result: Result | None) -> dict[str, float | None]:
    return {f"reference_{split}": accuracy for split, accuracy in result.accuracy.items()} if result else {}


def to_markdown(table: Table) -> str:
    """The table for a README or a model card."""
    head = [table.columns, ("---",) * len(table.columns)]
    lines = [
        f"| {' | '.join(map(escape_markdown, row))} |"
        for row in (*head, *([c.text for c in row] for row in table.rows))
    ]
    return f"**{escape_markdown(table.title)}**\n\n" + "\n".join(lines) + f"\n\n{escape_markdown(table.note)}\n"


def escape_markdown(text: str) -> str:
    """Nothing in a name is markup."""
    escaped = re.sub(r"([\\`*_{}\[\]<>#|~!$])", r"\\\1", printable(text))
    return escaped.replace("&", "&amp;")


def to_csv(records: Iterable[dict[str, Any]]) -> str:
    """Records as CSV, with a column for every key in the order of its first record."""
    every = list(records)
    keys = list(dict.fromkeys(key for record in every for key in record))
    out = io.StringIO()
    writer = csv.DictWriter(out, keys, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: harmless(value) for key, value in record.items()} for record in every)
    return out.getvalue()


def harmless(value: Any) -> Any:
    """A name that a spreadsheet would compute is led by an apostrophe, as spreadsheets do themselves."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text
