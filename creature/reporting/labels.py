"""Labels to look at: the rows whose out-of-fold prediction contradicts their label, the least likely label first.

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
    "Each row: what never saw the image puts it into another class than its label says. The model is "
    "wrong or the label; only a look at the image tells which. surely: as sure as of that class's own images on "
    "average."
)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="creature labels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    from creature.metrics.label_errors import CLASS_COLUMNS, by_class
    from creature.reporting.study import read_runs
    from creature.reporting.tables import harmless

    (studied,) = read_runs([args.run], None)
    if not studied.folds:
        raise UserError(f"{args.run}: no finished fold, and so no prediction of an image that it never saw")
    warn_of_unjudged(studied)
    lines, unseen = contradicted_labels(studied), studied.unseen
    if lines:
        classes = by_class(unseen.probabilities, unseen.rows.labels, unseen.rows.class_names)
        show_table("Labels that the members contradict, by class", CLASS_COLUMNS, classes)
        cells = [
            (line.image, f"{line.label} {line.probability}", f"{line.predicted} {line.its_probability}", line.surely)
            for line in lines[: args.top]
        ]
        judges = "member says" if unseen.models == 1 else f"{unseen.models} members say"
        title = f"The least likely labels of {len(unseen.rows.ids)} images"
        show_table(title, ("image", "label", judges, "surely"), cells)
        say(NOTE, style="dim")
    out = args.out or studied.folder / "labels.csv"
    with table_writer(out) as table:
        table.writerow(COLUMNS)
        table.writerows(map(harmless, line) for line in lines)
    if lines:
        say(f"{out} lists all {len(lines)}; next: look at them from the top, correct the wrong labels, and train again")
    else:
        say("no label is contradicted; there is nothing to look at")
    return 0


def warn_of_unjudged(studied: "StudyRun") -> None:
    """Say how many images no finished fold held out, and what would judge them."""
    folds = studied.run.fold_table.partitions[0]
    always = int((folds < 0).sum())
    if pending := len(folds) - always - len(studied.unseen.rows.ids):
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


def contradicted_labels(studied: "StudyRun") -> list[ContradictedLabel]:
    """All of a run, the least likely label first."""
    from creature.metrics.label_errors import confident, suspects

    rows, probabilities = studied.unseen.rows, studied.unseen.probabilities
    sure, lines = confident(probabilities, rows.labels), []
    for row in suspects(probabilities, rows.labels).tolist():
        label, predicted = rows.labels[row], rows.predicted[row]
        lines.append(
            ContradictedLabel(
                image=rows.ids[row],
                label=rows.class_names[label],
                probability=f"{probabilities[row, label]:.4f}",
                predicted=rows.class_names[predicted],
                its_probability=f"{probabilities[row, predicted]:.4f}",
                surely="yes" if sure[row] else "no",
            )
        )
    return lines
