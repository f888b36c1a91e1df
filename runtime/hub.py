"""Failures of the Hugging Face hub in plain words."""

from __future__ import annotations

LOGIN = "log in with `hf auth login`"
ADVICE = {401: LOGIN, 403: "this login may not do that: check OWNER, and the token's rights"}


def reason(error: Exception, repo: str) -> str:
    """Why huggingface-hub failed on `repo`, and the way out: part of a one-line message.

    huggingface-hub is imported here, not above: it is slow to import.
    """
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    if isinstance(error, hub.GatedRepoError):  # a subclass of RepositoryNotFoundError
        return f"access is restricted; accept its terms on {constants.ENDPOINT}/{repo}, then {LOGIN}"
    known = {hub.RepositoryNotFoundError: f"it is not on the hub, or private ({LOGIN}); check the spelling",
             hub.RevisionNotFoundError: "the hub has no such revision; check what follows the @",
             hub.OfflineModeIsEnabled: "HF_HUB_OFFLINE forbids it; unset that for one run",
             hub.HFValidationError: "not a name that the hub takes; give OWNER/NAME",
             hub.LocalTokenNotFoundError: f"nobody is logged in; {LOGIN}"}
    for kind, text in known.items():
        if isinstance(error, kind):
            return text
    if isinstance(error, OSError) and error.errno is not None:  # such as a full disk
        return str(error)
    response = getattr(error, "response", None)
    if response is not None:
        return (f"{constants.ENDPOINT} answered HTTP {response.status_code}; "
                f"{ADVICE.get(response.status_code, 'try again')}")
    return f"{constants.ENDPOINT} could not be reached ({type(error).__name__}: {error})"[:300]
