"""Labels that may be wrong: those that the out-of-fold predictions contradict, the least likely label first.

creature labels runs/laptop
creature labels runs/laptop --top 50 --out suspects.csv
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from creature.console import say, show_table, warn
from creature.errors import UserError

if TYPE_CHECKING:
    from creature.reporting.study import StudyRun

COLUMNS = ("image", "label", "probability", "member_says", "its_probability", "surely")
NOTE = (
    "Each row: members that never saw the image put it into another class than its label says. The model is wrong or "
    "the label is; only a look at the image tells which. surely: as sure as of that class's images on average."
)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="creature labels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a run folder, whose folds have held out its images")
    parser.add_argument("--top", type=int, default=20, metavar="N", help="rows that are shown (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="all of them; RUN/labels.csv if not given")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Show and write the labels that a run's members contradict."""
    args = parse(argv)
    if args.top < 1:
        raise UserError(f"--top must be 1 or more, got {args.top}")
    from creature.inference.prediction_files import table_writer
    from creature.reporting.study import read_runs
    from creature.reporting.tables import harmless
    from creature.run import no_finished_fold

    (run,) = read_runs([args.run], None)
    if not run.folds:
        raise no_finished_fold(run.folder)
    warn_of_unjudged(run)
    contradicted = contradicted_labels(run)
    if contradicted:
        _show(run, contradicted[: args.top])
    out = args.out or run.folder / "labels.csv"
    with table_writer(out) as table:
        table.writerow(COLUMNS)
        table.writerows(map(harmless, row) for row in contradicted)
    if contradicted:
        next_step = "look at them from the top, correct the wrong labels, and train again"
        say(f"{out} lists all {len(contradicted)}; next: {next_step}")
    else:
        say("no label is contradicted; there is nothing to look at")
    return 0


def _show(run: "StudyRun", contradicted: "Sequence[ContradictedLabel]") -> None:
    from creature.metrics.label_errors import CLASS_COLUMNS, by_class

    rows, models = run.unseen.rows, run.unseen.models
    classes = by_class(run.unseen.probabilities, rows.labels, rows.class_names)
    show_table("Labels that the members contradict, by class", CLASS_COLUMNS, classes)
    columns = ("image", "label", "member says" if models == 1 else f"{models} members say", "surely")
    cells = [
        (row.image, f"{row.label} {row.probability}", f"{row.predicted} {row.its_probability}", row.surely)
        for row in contradicted
    ]
    show_table(f"The least likely labels of {len(rows.ids)} images", columns, cells)
    say(NOTE, style="dim")


def warn_of_unjudged(run: "StudyRun") -> None:
    """Warn of images that no finished fold held out, and say how they would be judged."""
    folds = run.run.fold_table.partitions[0]
    always = int((folds < 0).sum())
    if pending := len(folds) - always - len(run.unseen.rows.ids):
        warn(f"{pending} images are not judged, for no finished fold holds them out; creature train --resume goes on")
    if always:
        warn(f"{always} images are not judged, for the one model was trained on them; with folds.count=5 all would be")


class ContradictedLabel(NamedTuple):
    """A row of labels.csv: an image whose label the members that never saw it contradict."""

    image: str
    label: str
    probability: str  # of the label
    predicted: str
    its_probability: str
    surely: str  # yes or no


def contradicted_labels(run: "StudyRun") -> list[ContradictedLabel]:
    """All contradicted labels of a run, the least likely first."""
    from creature.metrics.label_errors import confident, suspects

    rows, probabilities = run.unseen.rows, run.unseen.probabilities
    sure = confident(probabilities, rows.labels)
    return [
        ContradictedLabel(
            image=rows.ids[row],
            label=rows.class_names[rows.labels[row]],
            probability=f"{probabilities[row, rows.labels[row]]:.4f}",
            predicted=rows.class_names[rows.predicted[row]],
            its_probability=f"{probabilities[row, rows.predicted[row]]:.4f}",
            surely="yes" if sure[row] else "no",
        )
        for row in suspects(probabilities, rows.labels).tolist()
    ]
