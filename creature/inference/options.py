"""The options of a prediction file, which predict.py and ensemble.py share, and what they do."""

import argparse
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from creature.console import BROKEN_IMAGES, say
from creature.errors import UserError

if TYPE_CHECKING:
    from creature.inference.inputs import InputPath
    from creature.inference.prediction import Prediction


def add_options(parser: argparse.ArgumentParser, default_format: str, parts: bool = False) -> None:
    """Add the options to a script's command line; with `parts`, --out may be a folder."""
    parser.add_argument(
        "--out", metavar="FILE", help=f"write a .csv, .jsonl or .parquet file{', or parts into a DIR/' * parts}"
    )
    parser.add_argument(
        "--format", choices=("full", "submission"), default=default_format, help="columns of --out (%(default)s)"
    )
    parser.add_argument("--template", metavar="FILE.csv", help="a submission with this file's columns and order")
    parser.add_argument("--zip", action="store_true", help="pack the submission as prediction.csv into a zip, too")
    parser.add_argument("--top", type=int, default=1, help="labels for each image (%(default)s)")
    parser.add_argument(
        "--batch-size",
        type=int,
        default=32,
        help="images at once, fewer where memory is short (%(default)s)",
    )
    parser.add_argument("--mirror", action="store_true", help="ask about mirror images, too; twice the computing")
    parser.add_argument("--device", default="auto", help="cuda, mps or cpu; auto takes the first that is there")


def add_promises(parser: argparse.ArgumentParser) -> None:
    """Add --coverage and --min-precision to a command line."""
    parser.add_argument(
        "--coverage",
        type=_proportion,
        metavar="SHARE",
        help="a set of labels for each image, which contains the right one for this share of images",
    )
    parser.add_argument(
        "--min-precision",
        type=_proportion,
        metavar="SHARE",
        help="no label where fewer than this share of predictions would be right",
    )
    parser.add_argument("--set", type=_refuse_set, help=argparse.SUPPRESS)


def _refuse_set(text: str) -> NoReturn:
    """Name the option that `--set SHARE` once was."""
    raise argparse.ArgumentTypeError(
        f"sets a recipe's setting, and a prediction has no recipe, got {text}; --coverage 0.95 gives sets of labels"
    )


def _proportion(text: str) -> float:
    """A number above 0 and below 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and below 1, got {text}")
    return value


def check_options(args: argparse.Namespace, reads: Iterable[str | None] = ()) -> None:
    """Paths for what was typed; raises UserError for options that do not go together, or --out among what it reads."""
    args.parts = bool(args.out) and (args.out.endswith(("/", os.sep)) or os.path.isdir(args.out))
    args.out = Path(args.out) if args.out else None
    given = [path for path in (*reads, args.template) if path and os.path.exists(path)]
    if args.out and args.out.is_file() and any(map(args.out.samefile, given)):
        raise UserError(f"--out: {args.out} is one of the files that this reads, and would be replaced; name another")
    if args.template:
        args.format = "submission"
    if (args.zip or args.template) and not args.out:
        raise UserError("--zip and --template need --out FILE.csv")
    if args.zip and args.format != "submission":
        raise UserError("--zip needs --format submission")
    if args.zip and args.out and args.out.suffix.lower() == ".zip":
        raise UserError(f"--zip writes beside --out, which must not end in .zip, got {args.out}")
    if args.parts and args.format == "submission":
        raise UserError(f"--out: a submission is one file, such as prediction.csv, got the folder {args.out}")
    kinds = (".csv", ".jsonl", ".parquet", "")
    if args.out and args.out.suffix not in kinds and args.format == "full" and not args.parts:
        raise UserError(f"--out: must end in .csv, .jsonl or .parquet, got {args.out}")
    if args.out and args.out.suffix not in (".csv", "") and args.format == "submission":
        raise UserError(
            f"--out: a submission must end in .csv, got {args.out}; --format full writes .jsonl and .parquet"
        )
    if args.top < 1 or args.batch_size < 1:
        raise UserError("--top and --batch-size must be 1 or more")


def arrange(args: argparse.Namespace, inputs: list["InputPath"]) -> tuple[list["InputPath"], tuple[str, str]]:
    """Inputs in the order of the wanted format, and a submission's column names."""
    from creature.inference.prediction_files import order_for_submission

    if args.format == "submission":
        return order_for_submission(inputs, args.template)
    return inputs, ("", "")


def write(
    args: argparse.Namespace,
    columns: tuple[str, str],
    rows: Iterable["Prediction"],
    *,
    top: int,
    fallback: str,
    features: int | None = None,
    sets: bool = False,
) -> int:
    """Write the rows as they come, as the options say; the exit code tells of images that could not be read."""
    from creature.inference import prediction_files

    broken: list[Prediction] = []

    def noted() -> Iterator["Prediction"]:
        for row in rows:
            if row.broken:
                broken.append(row)
            yield row

    if args.format == "submission":
        prediction_files.write_submission(args.out, columns, noted(), fallback)
        if args.zip:
            say(f"{prediction_files.write_zip(args.out)} holds exactly prediction.csv")
    else:
        prediction_files.write_full(args.out, noted(), top, features, sets)
    if broken:
        prediction_files.warn_of_broken(broken, fallback if args.format == "submission" else "")
    return BROKEN_IMAGES if broken else 0
