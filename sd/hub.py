"""Single files from the Hugging Face hub, with every failure as one line."""

from __future__ import annotations

import contextlib
import functools
import re
import sys
from collections.abc import Sequence
from pathlib import Path

# huggingface_hub is imported inside the functions: a run on a local base should not wait for it.
from errors import UserError
from files import sha256


def fetch_first(repo: str, revision: str, filenames: Sequence[str]) -> Path | None:
    """The first of `filenames` that is in the local cache, else the first that the hub has, else None.

    What is cached is used without a request, so a model that was fetched once works without a network.
    Raises UserError for whatever else keeps a file from being fetched.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for filename in filenames:
        cached = try_to_load_from_cache(repo, filename, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
    for filename in filenames:
        try:
            return _download(repo, revision, filename)
        except UserError:
            raise
        except Exception as error:  # which ones depends on huggingface-hub's version and its HTTP client
            # The local one is a kind of EntryNotFoundError, but means that there was no answer.
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                continue
            if isinstance(error, OSError) and error.errno is not None:  # a full disk, a folder not writable
                raise
            raise _explained(repo, revision, filename, error) from error
    return None


@functools.cache
def _announce(repo: str) -> None:
    """Say once that a model comes from the hub: a checkpoint may have named it, not the user."""
    from huggingface_hub import constants
    print(f"{repo}: fetching it from {constants.ENDPOINT}, once", file=sys.stderr)


def _download(repo: str, revision: str, filename: str) -> Path:
    """One file into huggingface-hub's cache. A connection that breaks is resumed there, a few times."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import RemoteEntryNotFoundError

    etag = None
    with contextlib.suppress(RemoteEntryNotFoundError):  # left to hf_hub_download, which remembers it
        # Fails at once where there is no network; hf_hub_download would try for half a minute.
        etag = get_hf_file_metadata(hf_hub_url(repo, filename, revision=revision)).etag
        _announce(repo)
    path = Path(hf_hub_download(repo, filename, revision=revision))
    # A large file's ETag is its SHA-256. huggingface-hub compares sizes only, and a resumed download is put
    # together from pieces: seconds spent once, against weights that are wrong somewhere in the middle.
    if re.fullmatch(r"[0-9a-f]{64}", etag or "") and sha256(path) != etag:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise UserError(f"{repo}: {filename} arrived damaged (another SHA-256 than the hub's) and was "
                        "deleted; run the same command again")
    return path


def _explained(repo: str, revision: str, filename: str, error: Exception) -> UserError:
    """The one line for what huggingface-hub raised."""
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    if isinstance(error, hub.GatedRepoError):  # a kind of RepositoryNotFoundError
        text = (f"access is restricted; accept its terms on {constants.ENDPOINT}/{repo}, then log in with "
                "`hf auth login`")
    elif isinstance(error, hub.RepositoryNotFoundError):
        text = ("neither a folder here nor a model on the hub, unless a private one (log in with "
                "`hf auth login`); check the spelling")
    elif isinstance(error, hub.RevisionNotFoundError):
        text = f"the hub has no revision {revision} of it; check what follows the @"
    elif isinstance(error, hub.OfflineModeIsEnabled):
        text = (f"{filename} is not in the cache ({constants.HF_HUB_CACHE}) and HF_HUB_OFFLINE forbids to "
                "fetch it; unset that for one run, or give a folder or file")
    else:
        response = getattr(error, "response", None)
        reason = f"{type(error).__name__}: {error}" if response is None else f"HTTP {response.status_code}"
        text = (f"{filename} could not be fetched from {constants.ENDPOINT} ({reason[:200]}); check the "
                "network and run the same command again, or give a folder or file")
    return UserError(f"{repo}: {text}")
