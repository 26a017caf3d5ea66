"""Tables, figures and one page of a study.

creature report runs/*
creature report runs/* --labels test_labels.csv
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from creature.console import say, show_cells
from creature.errors import UserError, check_installed

if TYPE_CHECKING:
    from creature.reporting.study import StudyRun


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="creature report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="run folders")
    parser.add_argument(
        "--labels",
        metavar="FILE.csv",
        help="labels (image_name,label) of the images that creature ensemble has predicted",
    )
    parser.add_argument("--baseline", metavar="RUN", help="compare with this run; else the reference's, or the first")
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="FILE.json",
        help="accuracies that others reported, to show beside the runs, such as recipes/paper/reference.json",
    )
    parser.add_argument(
        "--explain", action="store_true", help="beside each image of the gallery, what in it speaks for its prediction"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="else RUN/report; for several runs, report beside them")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report of all runs, and show its tables."""
    args = parse(argv)
    check_installed("report", "the report", "jinja2", "matplotlib")
    from creature.reporting.comparison_table import comparison_table
    from creature.reporting.page import write_report
    from creature.reporting.reference import find_baseline, load_reference, order_runs
    from creature.reporting.scores_table import scores_table
    from creature.reporting.seeds_table import seeds_table
    from creature.reporting.single_table import single_table
    from creature.reporting.strategies_table import strategies_table
    from creature.reporting.study import read_runs

    runs = read_runs(args.runs, args.labels)
    reference = load_reference(args.reference, runs) if args.reference else None
    baseline = find_baseline(runs, args.baseline, reference)
    out = args.out or default_folder(runs)
    runs = order_runs(runs, reference)
    made = (
        scores_table(runs, reference),
        comparison_table(runs, baseline, reference) if len(runs) > 1 else None,
        strategies_table(runs, reference),
        single_table(runs),
        seeds_table(runs, baseline),
    )
    tables = [table for table in made if table]
    for table in tables:
        show_cells(table.title, table.note, table.columns, rows=table.rows)
    try:
        write_report(runs, baseline, tables, out=out, explain=args.explain)
    except OSError as error:
        raise UserError(f"--out: cannot write to {out}: {error.strerror or error}; name another folder") from error
    say(f"{out} holds the tables (.md, .csv), the figures (.png, .svg) and the page; next: open {out / 'index.html'}")
    return 0


def default_folder(runs: "Sequence[StudyRun]") -> Path:
    """Within a run, or beside several."""
    folders = [os.path.abspath(run.folder) for run in runs]
    within = Path(folders[0] if len(folders) == 1 else os.path.commonpath(map(os.path.dirname, folders))) / "report"
    return within.relative_to(Path.cwd()) if within.is_relative_to(Path.cwd()) else within
