"""The Hugging Face Hub: who may write where, one commit a branch, and its refusals in a sentence."""

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from creature.console import only_errors_of, say
from creature.errors import UserError, first_line, network_reason
from creature.storage import files_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token with the right to write"
REASONS = {
    401: "the Hub does not know you: {login}",
    403: "your token may not write to {repo}: {login}, or take your own name in USER/NAME",
    404: "there is no such repository, or your token may not see it: {login}",
    409: "the repository is being changed by someone else; wait, and run this again",
    412: "the repository was changed in between; look at it, and run this again",
    413: "a file is too large for the Hub",
    429: "the Hub has had too many requests from you; wait a few minutes, and run this again",
}


def check_repo(repo: str) -> None:
    """Raises UserError for a name that no repository can have."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{repo}: a repository is written USER/NAME: {first_line(error)}") from error
    if repo.count("/") != 1:
        raise UserError(f"{repo}: a repository is written USER/NAME, with your name or your organization's")


def check_access(repo: str) -> None:
    """Raises UserError for a token that is missing or wrong, or may not write there: before hours of training."""
    from huggingface_hub import HfApi

    owner = repo.partition("/")[0]
    with _naming_hub_errors(repo):
        user = HfApi().whoami()
    names = [user["name"], *(organization["name"] for organization in user.get("orgs", []))]
    if owner not in names:
        raise UserError(f"{repo}: {owner} is neither you nor an organization of yours, which are: {', '.join(names)}")
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise UserError(f"{repo} cannot be published: your token may only read: {LOGIN}")


def publish(repo: str, branches: Mapping[str, Path], public: bool) -> str:
    """Upload each branch's folder in one commit, main last, for it names the members; the repository's address.

    Files that are already there are not uploaded again, so it may be run again after any failure. Raises UserError.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    # The client would warn of commits without a change, which `_commit` tells of itself.
    with _naming_hub_errors(repo), only_errors_of("huggingface_hub"):
        _refuse_other_visibility(api, repo, public)
        url = api.create_repo(repo, private=not public, exist_ok=True)
        for branch in [*(name for name in branches if name != "main"), "main"]:
            if branch != "main":
                api.create_branch(repo, branch=branch, exist_ok=True)
            _commit(api, repo, branch, folder=branches[branch])
    return str(url)


def _refuse_other_visibility(api: "HfApi", repo: str, public: bool) -> None:
    if api.repo_exists(repo) and public == bool(api.model_info(repo).private):
        raise UserError(
            f"{repo} exists and is {'private' if public else 'public'}: "
            + ("change it in its settings, or leave --public out" if public else "say --public to add to it")
        )


def _commit(api: "HfApi", repo: str, branch: str, *, folder: Path) -> None:
    """Upload a folder, and delete what the branch's last publication brought and this one has not.

    `upload_folder` would do so, too, but in several commits where hf_xet is installed.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    before = api.model_info(repo, revision=branch)
    present = {sibling.rfilename for sibling in before.siblings or ()}
    files = files_of(folder)
    gone = _published(api, repo, branch, present=present) - set(files)
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationAdd(name, str(path)) for name, path in files.items()),
        *(CommitOperationDelete(name) for name in sorted(gone)),
    ]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "It seems that you are about to commit a data file")  # folds.arrow
        commit = api.create_commit(
            repo, operations, commit_message=f"Publish {branch}", revision=branch, parent_commit=before.sha
        )
    say(f"{branch}: {'as it was' if commit.oid == before.sha else commit.oid[:8]}")


def _published(api: "HfApi", repo: str, branch: str, *, present: set[str]) -> set[str]:
    """The files that the last publication of a branch brought, and that are still present."""
    if "manifest.json" not in present:
        return set()
    path = api.hf_hub_download(repo, "manifest.json", revision=branch)
    return set(json.loads(Path(path).read_text(encoding="utf-8"))) & present


@contextmanager
def _naming_hub_errors(repo: str) -> Iterator[None]:
    """Raises UserError for what the Hub or the network refuses within the block."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage] - of httpx, in the version that the client uses
        LocalTokenNotFoundError,
    )

    try:
        yield
    except LocalTokenNotFoundError as error:
        raise UserError(f"{repo} cannot be published: no token for the Hub is here: {LOGIN}") from error
    except HfHubHTTPError as error:
        raise UserError(_refusal(repo, error)) from error
    except (HTTPError, ImportError, OSError, RuntimeError, UnicodeEncodeError) as error:
        if isinstance(error.__cause__, HfHubHTTPError):  # of an upload
            raise UserError(_refusal(repo, error.__cause__)) from error
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        raise UserError(
            f"{repo} was not published: no connection to {endpoint} ({network_reason(error)}); nothing is lost, run "
            "this again"
        ) from error
    except ValueError as error:  # the Hub checks the card before anything else
        raise UserError(f"{repo} was not published: {' '.join(str(error).split())}") from error


def _refusal(repo: str, error: "HfHubHTTPError") -> str:
    """What a status of the Hub means here, and what to do."""
    status = error.response.status_code if error.response is not None else 0
    if status >= 500:
        reason = "the Hub failed; nothing is lost, run this again later"
    elif status in REASONS:
        reason = REASONS[status].format(repo=repo, login=LOGIN)
    else:
        reason = " ".join(str(error.server_message or error).split())[:300]
    return f"{repo} was not published: {reason} (status {status})"
