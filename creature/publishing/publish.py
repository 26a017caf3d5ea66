"""Publish a run on the Hugging Face Hub: one model on main, every member on a branch of its own.

creature publish runs/all USER/NAME --dry-run
creature publish runs/all USER/NAME --private
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from creature.console import say, show_table, warn
from creature.errors import UserError, check_installed
from creature.publishing.hub import check_access, check_repo, publish
from creature.publishing.terms import FILE, Terms, add_terms, find_terms
from creature.storage import files_of, write_json, write_manifest, write_refusal


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="creature publish", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run's folder: runs/NAME")
    parser.add_argument("repo", help="the repository: USER/NAME")
    visible = parser.add_mutually_exclusive_group()
    visible.add_argument("--private", action="store_true", help="only you see a new repository (so it is anyway)")
    visible.add_argument("--public", action="store_true", help="everyone sees a new repository")
    parser.add_argument("--dry-run", action="store_true", help="build and verify the folders, and upload nothing")
    parser.add_argument("--onnx", action="store_true", help="add model.onnx (pip install -e '.[export]')")
    parser.add_argument("--reviewed", action="store_true", help="you have looked at the places that the check names")
    add_terms(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Build, verify and publish."""
    args = parse(argv)
    if not (args.run / "recipe.yaml").exists():
        raise UserError(f"{args.run} is no run; give a folder that train.py made, such as runs/all")
    terms = prepare_push(args.repo, args.run, args.license, data=args.data, upload=not args.dry_run)
    branches = build(args.run, args.repo, terms, onnx=args.onnx, reviewed=args.reviewed)
    if args.dry_run:
        say(f"nothing was uploaded; read {branches['main'] / 'README.md'}, the page that others would see")
        say(f"next: creature publish {args.run} {args.repo} --private")
        return 0
    url = publish(args.repo, branches, args.public)
    say(f"{url} is published; next: creature predict hf-hub:{args.repo} PHOTO")
    return 0


def prepare_push(repo: str, folder: Path, license: str | None, *, data: str | None, upload: bool = True) -> Terms:
    """The terms of a publication; raises UserError for what would stop it, or with `upload` the upload."""
    check_repo(repo)
    terms = find_terms(folder, license, data)
    if upload:
        check_access(repo)
    check_installed("report", "the card", "jinja2", "matplotlib")
    return terms


def _keep_terms(folder: Path, terms: Terms) -> Path:
    """Keep the terms in a run's folder, and give it; a temporary folder where the run may not be written to."""
    if reason := write_refusal(folder):
        out = Path(tempfile.mkdtemp(prefix="creature-"))
        warn(f"{folder}: {reason}; --license and --data are not kept there, and what is published lies in {out}")
        return out
    write_json(folder / FILE, asdict(terms))
    return folder


def build(folder: Path, repo: str, terms: Terms, *, onnx: bool = False, reviewed: bool = False) -> dict[str, Path]:
    """Write and verify the folder of each branch, and say what is in them."""
    from creature.publishing.card import write_cards
    from creature.publishing.export import as_published, export
    from creature.publishing.verify import verify
    from creature.reporting.study import read_runs

    run = as_published(*read_runs([str(folder)], None))
    branches = export(run, _keep_terms(folder, terms) / "export")
    if onnx:
        from creature.publishing.onnx_export import export_onnx

        export_onnx(branches["main"], branches["main"] / "model.onnx")
    write_cards(run, branches, repo, terms=terms, onnx=onnx)
    public = [repo, terms.license, terms.data, *run.held.class_names]
    checks = {branch: verify(path, public, reviewed=reviewed) for branch, path in branches.items()}
    for path in branches.values():
        write_manifest(path)
    show_table(f"{folder}, verified: {', '.join(branches)}", ("check", "outcome"), checks["main"])
    for branch, path in branches.items():
        files = files_of(path)
        size = sum(file.stat().st_size for file in files.values()) / 2**20
        say(f"{branch}: {len(files)} files, {size:.1f} MiB: {', '.join(files)}")
    return branches
