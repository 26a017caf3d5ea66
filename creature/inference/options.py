"""The options of a prediction file, which predict.py and ensemble.py share."""

import argparse
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from creature.errors import UserError


@dataclass(frozen=True)
class OutputOptions:
    """Where predictions are written, and in which format."""

    path: Path | None  # None: to the terminal
    sharded: bool  # the path is a folder of shards
    submission: bool  # else a full table
    template: str | None = None  # of a submission
    zip: bool = False  # a submission, too


def add_options(parser: argparse.ArgumentParser, default_format: str, shards: bool = False) -> None:
    """Add the options to a script's command line; with `shards`, --out may be a folder."""
    parser.add_argument(
        "--out", metavar="FILE", help=f"write a .csv, .jsonl or .parquet file{', or shards into a DIR/' * shards}"
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
    parser.add_argument("--mirror", action="store_true", help="predict mirror images, too; twice the computing")
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


def check_options(args: argparse.Namespace, inputs: Iterable[str | None] = ()) -> OutputOptions:
    """The output that a command line asks for.

    Raises UserError for options that do not go together, or where the output would replace one of the `inputs`.
    """
    path = Path(args.out) if args.out else None
    output = OutputOptions(
        path=path,
        sharded=bool(args.out) and (args.out.endswith(("/", os.sep)) or os.path.isdir(args.out)),
        submission=args.format == "submission" or bool(args.template),
        template=args.template,
        zip=args.zip,
    )
    existing = [name for name in (*inputs, args.template) if name and os.path.exists(name)]
    if path and path.is_file() and any(map(path.samefile, existing)):
        raise UserError(f"--out: {path} is one of the files that this reads, and would be replaced; name another")
    if (output.zip or output.template) and not path:
        raise UserError("--zip and --template need --out FILE.csv")
    if output.zip and not output.submission:
        raise UserError("--zip needs --format submission")
    if path and output.zip and path.suffix.lower() == ".zip":
        raise UserError(f"--zip writes beside --out, which must not end in .zip, got {path}")
    if output.submission and output.sharded:
        raise UserError(f"--out: a submission is one file, such as prediction.csv, got the folder {path}")
    if path and output.submission and path.suffix not in (".csv", ""):
        raise UserError(f"--out: a submission must end in .csv, got {path}; --format full writes .jsonl and .parquet")
    if path and not (output.submission or output.sharded) and path.suffix not in (".csv", ".jsonl", ".parquet", ""):
        raise UserError(f"--out: must end in .csv, .jsonl or .parquet, got {path}")
    if args.top < 1 or args.batch_size < 1:
        raise UserError("--top and --batch-size must be 1 or more")
    return output


def check_prediction(args: argparse.Namespace) -> OutputOptions:
    """The output of predict.py.

    Raises UserError for options that do not go together, or that its model has no answer to.
    """
    output = check_options(args, args.images)
    if args.embed and not (output.sharded or (output.path and output.path.suffix in (".jsonl", ".parquet"))):
        raise UserError("--embed needs --out FILE.parquet, FILE.jsonl or DIR/")
    if args.explain and (args.members or args.embed or args.mirror):
        raise UserError("--explain shows what one prediction rests on; leave out --members, --embed and --mirror")
    if args.model.endswith(".onnx") and (args.members or args.embed or args.explain):
        raise UserError(
            f"{args.model} is one model without features; --members, --embed and --explain need the trained folder"
        )
    if args.embed and args.members:
        raise UserError("--embed needs one model, and --members are several; leave one of them out")
    promised = args.coverage or args.min_precision
    if promised and (output.sharded or output.submission):
        raise UserError(
            "--coverage and --min-precision are for a full file or the terminal, not for submissions or shards"
        )
    if promised and args.model.endswith(".onnx"):
        raise UserError(f"--coverage and --min-precision need the trained fold, and {args.model} is an ONNX file")
    return output
