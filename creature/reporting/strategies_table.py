"""Table 3: strategies and single members of every run with two members or more, on labelled new images."""

from collections.abc import Sequence

from creature.ensembling.compare import compare_members
from creature.reporting.reference import Reference, show_accuracies
from creature.reporting.study import StudyRun
from creature.reporting.tables import RECORDED, Cell, Record, Table, comparison_cell, name_cell

NOTE = (
    "logits, softmax, vote: mean of all members' logits, mean of their probabilities, majority. Against logits: "
    "points, on the same images; McNemar's p, corrected by Holm within a run's images."
)


def strategies_table(runs: Sequence[StudyRun], reference: Reference | None = None) -> Table | None:
    """The table; None where no run has labelled new images and two members."""
    rows: list[tuple[Cell, ...]] = []
    records: list[Record] = []
    for run in runs:
        result = reference.find(run.recipe.name) if reference else None
        for split, table in run.recorded.items():
            for scored in compare_members(table, run.exposed[split]) if len(table.members) > 1 else ():
                cells = [name_cell(run), Cell(RECORDED[split]), Cell(scored.name), Cell(str(scored.count))]
                record: Record = {"run": run.name, "rows": RECORDED[split], "who": scored.name}
                record |= scored.count.figures()
                if scored.against is None or scored.p is None:
                    cells.append(Cell(""))
                else:
                    cells.append(comparison_cell(scored.against, scored.p))
                    record |= {"difference": scored.against.difference, "p": scored.against.p, "p_holm": scored.p}
                if reference:
                    strategy = "member" if scored.name == table.members[0] else scored.name
                    accuracy = result.strategies.get(strategy) if result else None
                    cells.append(Cell(show_accuracies(accuracy, reference.compared) if accuracy else "", "weak"))
                rows.append(tuple(cells))
                records.append(record)
    if not rows:
        return None
    columns, note = ["run", "images", "who", "accuracy", "against logits"], NOTE
    if reference:
        columns.append(f"{reference.name}: {', '.join(reference.compared)}")
        note += f" {reference.name}: {reference.source}; its one member stands beside the first."
    title = "Table 3. Ensemble strategies"
    return Table("strategies", title, note, columns=tuple(columns), rows=rows, records=records)
