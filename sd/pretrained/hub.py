"""Single files from the Hugging Face hub. Every failure is a one-line UserError."""

from __future__ import annotations

import contextlib
import functools
import re
import sys
from collections.abc import Sequence
from pathlib import Path

# huggingface_hub is imported inside the functions: it is slow, and a local base does not need it.
from runtime import hub
from runtime.errors import UserError
from runtime.files import sha256


def fetch_first(repo: str, revision: str, filenames: Sequence[str]) -> Path | None:
    """The first of `filenames` in the local cache, else the first that the hub has, else None.

    A cached file is used without a request, as is the knowledge that the hub has no such file: a model that
    was fetched once works without a network. Raises UserError if the hub cannot be asked.
    """
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    cached = {name: try_to_load_from_cache(repo, name, revision=revision) for name in filenames}
    for path in cached.values():
        if isinstance(path, str):
            return Path(path)
    for filename in [name for name, path in cached.items() if path is not _CACHED_NO_EXIST]:
        try:
            return _download(repo, revision, filename)
        except UserError:
            raise
        except Exception as error:  # which ones depends on huggingface-hub's version and its HTTP client
            # LocalEntryNotFoundError is a subclass, but means that the hub did not answer.
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                continue
            if isinstance(error, OSError) and error.errno is not None:  # a full disk, a read-only folder
                raise
            raise UserError(f"{repo}: {filename} could not be fetched: {hub.reason(error, repo)}; then run "
                            "the same command again, or give a folder or file") from error
    return None


@functools.cache
def _announce(repo: str) -> None:
    """Print once that a model is downloaded: a checkpoint may have named it, not the user."""
    from huggingface_hub import constants
    print(f"{repo}: fetching it from {constants.ENDPOINT}, once", file=sys.stderr)


def _download(repo: str, revision: str, filename: str) -> Path:
    """One file into huggingface-hub's cache. huggingface-hub resumes a broken connection a few times."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import RemoteEntryNotFoundError

    etag = None
    with contextlib.suppress(RemoteEntryNotFoundError):  # hf_hub_download raises it too, and caches it
        # This fails at once without a network; hf_hub_download would try for half a minute.
        etag = get_hf_file_metadata(hf_hub_url(repo, filename, revision=revision)).etag
        _announce(repo)
    path = Path(hf_hub_download(repo, filename, revision=revision))
    # A large file's ETag is its SHA-256. huggingface-hub compares only sizes, and a resumed download is
    # assembled from pieces, so this check is worth its seconds.
    if re.fullmatch(r"[0-9a-f]{64}", etag or "") and sha256(path) != etag:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise UserError(f"{repo}: {filename} arrived damaged (its SHA-256 is not the hub's) and was deleted; "
                        "run the same command again")
    return path
