"""Publish a run on the Hugging Face Hub: one model on main, every member on a branch of its own.

creature publish runs/all USER/NAME --dry-run
creature publish runs/all USER/NAME --private
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from creature.console import say, show_table
from creature.errors import UserError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from creature.publishing.card import Terms

TERMS = "sharing.json"  # of a run: what was said of it once
LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token with the right to write"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="creature publish",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="a run's folder: runs/NAME")
    parser.add_argument("repo", help="the repository: USER/NAME")
    visible = parser.add_mutually_exclusive_group()
    visible.add_argument("--private", action="store_true", help="only you see a new repository (so it is anyway)")
    visible.add_argument("--public", action="store_true", help="everyone sees a new repository")
    parser.add_argument("--dry-run", action="store_true", help="build and verify the folders, and upload nothing")
    parser.add_argument("--onnx", action="store_true", help="add model.onnx (pip install 'creature[export]')")
    add_terms(parser)
    return parser.parse_args(argv)


def add_terms(parser: argparse.ArgumentParser) -> None:
    """Add the options for what only a person can say."""
    parser.add_argument("--license", metavar="NAME", help="of the weights, as the Hub writes it: apache-2.0, cc-by-4.0")
    parser.add_argument("--data", metavar="TEXT", help="where the images come from, and under which terms")


def main(argv: Sequence[str] | None = None) -> int:
    """Build, verify and publish."""
    args = parse(argv)
    if not (args.run / "recipe.yaml").exists():
        raise UserError(f"{args.run} is no run; give a folder that train.py made, such as runs/all")
    check_repo(args.repo)
    terms = find_terms(args.run, args.license, args.data)
    if not args.dry_run:
        check_access(args.repo)
    branches = build(args.run, args.repo, terms, args.onnx)
    if args.dry_run:
        say(f"nothing was uploaded; read {branches['main'] / 'README.md'}, the page that others would see")
        say(f"next: creature publish {args.run} {args.repo} --private")
        return 0
    url = publish(args.repo, branches, args.public)
    say(f"{url} is published; next: creature predict hf-hub:{args.repo} PHOTO")
    return 0


def check_repo(repo: str) -> None:
    """Raises UserError for a name that no repository can have."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{repo}: a repository is written USER/NAME: {str(error).splitlines()[0]}") from error
    if repo.count("/") != 1:
        raise UserError(f"{repo}: a repository is written USER/NAME, with your name or your organization's")


def check_access(repo: str) -> None:
    """Raises UserError for a token that is missing or wrong, or may not write there: before hours of training."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage] - of httpx, in the version that the client uses
        LocalTokenNotFoundError,
    )

    owner = repo.partition("/")[0]
    try:
        known = HfApi().whoami()
    except LocalTokenNotFoundError as error:
        raise UserError(f"{repo} cannot be published: no token for the Hub is here: {LOGIN}") from error
    except HfHubHTTPError as error:
        _explain(repo, error)
    except (HTTPError, OSError) as error:
        raise UserError(_cut(repo, error)) from error
    names = [known["name"], *(each["name"] for each in known.get("orgs", []))]
    if owner not in names:
        raise UserError(f"{repo}: {owner} is neither you nor an organization of yours, which are: {', '.join(names)}")
    if known.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise UserError(f"{repo} cannot be published: your token may only read: {LOGIN}")


def find_terms(folder: Path, license: str | None, data: str | None) -> "Terms":
    """License and provenance as given, as said before for this run, or as answered now; never a guess.

    Raises UserError where there is no one to ask, or for an answer that says nothing.
    """
    from creature.publishing.card import Terms

    path = folder / TERMS
    before: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    license, data = license or before.get("license"), data or before.get("data")
    if not (license and data) and not sys.stdin.isatty():
        missing = " and ".join(name for name, value in (("--license", license), ("--data", data)) if not value)
        raise UserError(
            f"{missing}: needed for the model card, and never guessed: --license apache-2.0 (of the weights; "
            "mind the terms of your images and of the pretrained weights) --data 'where the images come from'"
        )
    from rich.prompt import Prompt

    license = license or Prompt.ask("License of the weights, as the Hub writes it (apache-2.0, cc-by-4.0, other)")
    data = data or Prompt.ask("Where do the images come from, and under which terms? A sentence for the card")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", license):
        raise UserError(f"--license: must be a name such as apache-2.0, cc-by-4.0 or other, got {license!r}")
    if not data.strip():
        raise UserError("--data: say in a sentence where the images come from, got nothing")
    return Terms(license, data.strip())


def prepare_push(repo: str, folder: Path, license: str | None, data: str | None) -> "Terms":
    """All that can be found wrong before a training that is to be published; what was answered."""
    check_repo(repo)
    terms = find_terms(folder, license, data)
    check_access(repo)
    _need_report()
    return terms


def build(folder: Path, repo: str, terms: "Terms", onnx: bool = False) -> dict[str, Path]:
    """Write and verify the folders of all branches; says what is in them."""
    _need_report()
    from creature.publishing.card import write_cards
    from creature.publishing.export import as_published, export
    from creature.publishing.verify import verify
    from creature.reporting.study import read_runs
    from creature.storage import write_json, write_manifest

    read = as_published(*read_runs([str(folder)], None))
    write_json(folder / TERMS, terms._asdict())
    branches = export(read, folder / "export")
    if onnx:
        from creature.publishing.onnx_export import export_onnx

        export_onnx(branches["main"], branches["main"] / "model.onnx")
    write_cards(read, branches, repo, terms, onnx)
    public = [repo, terms.license, terms.data, *read.held.class_names]
    checked = {branch: verify(path, public) for branch, path in branches.items()}
    for path in branches.values():
        write_manifest(path)
    show_table(f"{folder}, verified: {', '.join(branches)}", ("check", "outcome"), checked["main"])
    for branch, path in branches.items():
        files = files_of(path)
        size = sum(file.stat().st_size for file in files.values()) / 2**20
        say(f"{branch}: {len(files)} files, {size:.1f} MiB: {', '.join(files)}")
    return branches


def _need_report() -> None:
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the card needs {error.name}, which is not installed: pip install 'creature[report]'"
        ) from error


def files_of(folder: Path) -> dict[str, Path]:
    """The files of a folder by their path in the repository."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def publish(repo: str, branches: Mapping[str, Path], public: bool) -> str:
    """Upload every branch in one commit, members first and main, which names them, last; the repository's address.

    What is there already is not uploaded again, so it may be run again after any failure. Raises UserError.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # pyright: ignore[reportPrivateImportUsage]
    from huggingface_hub.utils import disable_progress_bars, logging

    if not sys.stderr.isatty():
        disable_progress_bars()
    logging.set_verbosity_error()  # it would warn of commits without a change, which are none of the user's business
    api = HfApi()
    try:
        _refuse_other_visibility(api, repo, public)
        url = api.create_repo(repo, private=not public, exist_ok=True)
        for branch in [*(name for name in branches if name != "main"), "main"]:
            if branch != "main":
                api.create_branch(repo, branch=branch, exist_ok=True)
            _commit(api, repo, branch, branches[branch])
    except UserError:
        raise
    except HfHubHTTPError as error:
        _explain(repo, error)
    except (HTTPError, OSError, RuntimeError) as error:  # no network, a cut connection, or an upload with its cause
        if isinstance(error.__cause__, HfHubHTTPError):
            _explain(repo, error.__cause__)
        raise UserError(_cut(repo, error)) from error
    except ValueError as error:  # the Hub checks the card before anything else
        raise UserError(f"{repo} was not published: {' '.join(str(error).split())}") from error
    return str(url)


def _refuse_other_visibility(api: "HfApi", repo: str, public: bool) -> None:
    if api.repo_exists(repo) and public == bool(api.model_info(repo).private):
        raise UserError(
            f"{repo} exists and is {'private' if public else 'public'}: "
            + ("change it in its settings, or leave --public out" if public else "say --public to add to it")
        )


def _commit(api: "HfApi", repo: str, branch: str, folder: Path) -> None:
    """One commit of a folder; files that an earlier publication brought, and this one has not, are deleted."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    before = api.model_info(repo, revision=branch)
    there = {sibling.rfilename for sibling in before.siblings or ()}
    files = files_of(folder)
    operations: list[Any] = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
    operations += [CommitOperationDelete(name) for name in sorted(_published(api, repo, branch, there) - set(files))]
    done = api.create_commit(
        repo, operations, commit_message=f"Publish {branch}", revision=branch, parent_commit=before.sha
    )
    say(f"{branch}: {'as it was' if done.oid == before.sha else done.oid[:8]}")


def _published(api: "HfApi", repo: str, branch: str, there: set[str]) -> set[str]:
    """Files that the last publication of a branch brought, and that are still there."""
    if "manifest.json" not in there:
        return set()
    path = api.hf_hub_download(repo, "manifest.json", revision=branch)
    return set(json.loads(Path(path).read_text(encoding="utf-8"))) & there


def _explain(repo: str, error: Any) -> NoReturn:
    """Raises UserError with what a status of the Hub means here, and what to do."""
    status = error.response.status_code if error.response is not None else 0
    said = " ".join(str(getattr(error, "server_message", None) or error).split())[:300]
    reasons = {
        401: f"the Hub does not know you: {LOGIN}",
        403: f"your token may not write to {repo}: {LOGIN}, or take your own name in USER/NAME",
        404: f"there is no such repository, or your token may not see it: {LOGIN}",
        409: "the repository is being changed by someone else; wait, and run this again",
        412: "the repository was changed in between; look at it, and run this again",
        413: "a file is too large for the Hub",
        429: "the Hub has had too many requests from you; wait a few minutes, and run this again",
    }
    reason = reasons.get(status, "the Hub failed; nothing is lost, run this again later" if status >= 500 else said)
    raise UserError(f"{repo} was not published: {reason} (status {status})") from None


def _cut(repo: str, error: BaseException) -> str:
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"{repo} was not published: no connection to {endpoint} ({first}); nothing is lost, run this again"
