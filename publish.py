"""An exported adapter on the Hugging Face hub."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path

from errors import UserError

NAME = "not a name that the hub takes; give OWNER/NAME"
ADVICE = {401: "log in with `hf auth login`",
          403: "this login may not write there: check OWNER, and the token's rights"}


def log_in(repo: str) -> None:
    """Ask the hub who is there. Raises UserError, before anything is made, for nobody, or where `repo` is no
    name of a model.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id
    if "/" not in repo:  # which huggingface-hub allows, and then uploads to nobody's
        raise UserError(f"--push-to-hub {repo}: {NAME}")
    with _one_line(repo):
        validate_repo_id(repo)
        HfApi().whoami()


def push(folder: Path, repo: str, *, public: bool) -> str:
    """Upload `folder` to the model `repo`, made if it is not there; returns its address. Raises UserError."""
    from huggingface_hub import HfApi
    again = f"hf upload {repo} {shlex.quote(str(folder))} ." + ("" if public else " --private")
    with _one_line(repo, f". The files are in {folder}; to send them later: {again}"):
        api = HfApi()
        url = api.create_repo(repo, private=not public, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="An adapter and its card")
    return str(url)


@contextlib.contextmanager
def _one_line(repo: str, left: str = "") -> Iterator[None]:
    """Whatever huggingface-hub raises in the block as one line, with what stands and how to go on."""
    try:
        yield
    except Exception as error:  # the client's transport has errors of its own
        raise UserError(f"--push-to-hub {repo}: {_reason(error)}{left}") from error


def _reason(error: Exception) -> str:
    from huggingface_hub import constants
    from huggingface_hub import errors as hub
    if isinstance(error, hub.HFValidationError):
        return NAME
    if isinstance(error, hub.LocalTokenNotFoundError):
        return "nobody is logged in; do that with `hf auth login`"
    if isinstance(error, hub.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids it; unset that"
    if isinstance(error, hub.HfHubHTTPError):
        status = error.response.status_code
        return f"{constants.ENDPOINT} answered HTTP {status}; {ADVICE.get(status, 'try again')}"
    return f"{constants.ENDPOINT} could not be reached ({type(error).__name__}: {error})"[:300]
