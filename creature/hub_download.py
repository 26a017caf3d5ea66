"""Models of the Hub, fetched once and then from the cache."""

from collections.abc import Sequence
from pathlib import Path

from creature.errors import UserError, network_reason

HUB = "hf-hub:"


def download(model: str, files: Sequence[str]) -> Path:
    """The local folder of `hf-hub:USER/NAME` or `hf-hub:USER/NAME@REVISION`, with those of the files that it has.

    Raises UserError for a repository that cannot be reached and is not cached, or is no model.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage] - of httpx, in the version that the client uses
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo, _, revision = model.removeprefix(HUB).partition("@")
    try:
        folder = Path(snapshot_download(repo, revision=revision or None, allow_patterns=list(files)))
    except (HTTPError, ImportError, OSError, ValueError) as error:
        match error:
            case GatedRepoError():
                reason = "access has to be requested; do so on its page, then log in with `hf auth login`"
            case RevisionNotFoundError():
                reason = f"the repository has no branch {revision!r}"
            case RepositoryNotFoundError():
                reason = "no such repository, or a private one of others; log in with `hf auth login`, or set HF_TOKEN"
            case HFValidationError():
                reason = "a model of the Hub is written hf-hub:USER/NAME or hf-hub:USER/NAME@BRANCH"
            case LocalEntryNotFoundError():
                cause = network_reason(error.__cause__ or error)
                reason = f"not in the local cache, and the Hub cannot be reached ({cause})"
            case _:
                reason = f"cannot be downloaded: {network_reason(error)}; what is there is kept"
        raise UserError(f"{model}: {reason}") from error
    if not (folder / "config.json").exists():
        raise UserError(f"{model}: the repository has no config.json; it is no timm model")
    return folder
