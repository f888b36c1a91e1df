"""Upload an exported adapter to the Hugging Face hub."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runtime import hub
from runtime.errors import UserError

# Flags that are paths.
PLACES = ("out", "class_ckpt", "init", "init_lora", "features_weights", "judge_weights")


def without_folders(about: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's header that names no folder of the user: of data and base the last names remain."""
    settings = {name: value for name, value in about["config"].items() if name not in PLACES}
    base = str(about["base"])
    name = Path(base).name if Path(base).expanduser().exists() else base  # a hub id stays
    data = {"data": [Path(folder).name for folder in settings["data"]]}
    return {**about, "base": name, "config": {**settings, **data, "base": name}}


def log_in(repo: str) -> None:
    """Check the login and the name `repo` before anything is written. Raises UserError."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id
    with _one_line(repo):
        validate_repo_id(repo if "/" in repo else "")  # huggingface-hub allows a name without an owner
        HfApi().whoami()


def push(folder: Path, repo: str, *, public: bool) -> str:
    """Upload `folder` to the model `repo`, created if missing; return its address. Raises UserError."""
    from huggingface_hub import HfApi
    again = f"hf upload {repo} {shlex.quote(str(folder))} ." + ("" if public else " --private")
    with _one_line(repo, f". The files are in {folder}; to send them later: {again}"):
        api = HfApi()
        url = api.create_repo(repo, private=not public, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="An adapter and its card")
    return str(url)


@contextlib.contextmanager
def _one_line(repo: str, left: str = "") -> Iterator[None]:
    """Turn any error of huggingface-hub in the block into one line that ends in `left`."""
    try:
        yield
    except Exception as error:  # its HTTP client raises errors of its own
        raise UserError(f"--push-to-hub {repo}: {hub.reason(error, repo)}{left}") from error
