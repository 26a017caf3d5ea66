"""Predict pictures with one trained fold: a table in the terminal, or a file.

python predict.py runs/all/fold-0 photo.jpg more/ --top 5
python predict.py runs/all/fold-0 data/test --out prediction.csv --format submission --zip
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from creature.judging import output
from creature.terminal import BROKEN_IMAGES, UserError, run

if TYPE_CHECKING:
    from creature.judging.tables import Row


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a fold's folder: runs/NAME/fold-0")
    parser.add_argument("images", nargs="+", help="pictures, and folders of pictures")
    output.add_options(parser, "full")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Predict, and show or write the answers."""
    args = parse(argv)
    output.check_options(args)

    from creature.judging import members, tables
    from creature.terminal import say, show_table

    folds = members.find_folds([args.model])
    if len(folds) > 1:
        raise UserError(f"{args.model} has {len(folds)} folds; name one ({folds[0]}), or use ensemble.py {args.model}")
    inputs, columns = output.arrange(args, tables.list_inputs(args.images))
    member = members.load_member(folds[0], members.choose_device(args.device))
    top = min(args.top, len(member.names))
    answers = members.ask([member], tables.image_of(inputs), len(inputs), args.batch_size, "predicting")
    found = tables.answer_rows(answers, inputs, member.names, top)
    if args.out:
        fallback = members.most_frequent(folds) if args.format == "submission" else ""
        code = output.write(args, columns, found, top, fallback)
        say(f"{len(inputs)} rows are in {args.out}; next: python predict.py {args.model} PHOTO --top 5")
        return code
    rows = list(found)
    show_table(
        f"{folds[0]}: labels and probabilities", ("image", *(f"{k}." for k in range(1, top + 1))), map(cells, rows)
    )
    say(f"{len(rows)} pictures; next: --out FILE.csv writes them to a file")
    return BROKEN_IMAGES if any(row.status != "ok" for row in rows) else 0


def cells(row: "Row") -> list[str]:
    """A row of the terminal's table."""
    return [row.id, *(f"{label} {p:.3f}" for label, p in zip(row.labels, row.probabilities, strict=True))] + (
        [] if row.labels else [f"not read: {row.status}"]
    )


if __name__ == "__main__":
    run(main)
