"""Sentences with the next step for failures of the hub.

The type identifies an error of huggingface_hub. The class name identifies an error of its HTTP client, which is httpx
in some releases and httpx2 in others.
"""

import errno
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from quantkit.errors import HubError

_UNREACHABLE = {"ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol"}
_DROPPED = {
    "ReadError",
    "WriteError",
    "CloseError",
    "RemoteProtocolError",
    "ReadTimeout",
    "WriteTimeout",
    "PoolTimeout",
}


class UnreachableError(HubError):
    """The hub could not be reached; a complete copy in the cache can replace it."""


class DroppedError(Exception):
    """A response ended before all requested bytes."""


def is_transient(error: Exception) -> bool:
    """Whether a repeated call may succeed: after a dropped connection, a download of wrong size, a server error."""
    error = _root(error)
    if isinstance(error, HfHubHTTPError):
        status: int = error.response.status_code
        return status >= 500 or status == 408
    return isinstance(error, DroppedError) or _named(error, _DROPPED) or "Consistency check failed" in str(error)


def is_unreachable(error: Exception) -> bool:
    """Whether no connection could be made."""
    return _named(_root(error), _UNREACHABLE)


def explain(error: Exception, repo_id: str, revision: str | None, item: str, cache: Path) -> HubError:
    """The sentence for an error of the download of `item` (a file name, "its list of files") of a repository."""
    error = _root(error)
    if isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError):
        return not_cached(repo_id, cache)
    if isinstance(error, HfHubHTTPError):
        return HubError(_http_sentence(error, repo_id, revision, item))
    if is_unreachable(error):
        return UnreachableError(
            f"the hub at {constants.ENDPOINT} cannot be reached for {repo_id} ({reason(error)}); "
            f"check the network, or give a local folder"
        )
    if is_transient(error):
        return HubError(
            f"the connection dropped while getting {item} of {repo_id} ({reason(error)}) and trying again did "
            f"not help; run the same command once more, finished files are kept"
        )
    if isinstance(error, HFValidationError):
        return HubError(f"{repo_id!r} is neither an existing folder nor a valid hub id; check the name")
    if isinstance(error, OSError) and (sentence := disk_sentence(error, cache, "HF_HUB_CACHE", f"{item} of {repo_id}")):
        return HubError(sentence)
    return HubError(f"{item} of {repo_id} could not be fetched from the hub ({reason(error)}); try again")


def disk_sentence(error: OSError, cache: Path, variable: str, item: str) -> str | None:
    """The sentence for a full or closed disk under a cache that the environment's `variable` moves; else None."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk of the hub cache {cache} is full and {item} does not fit; free space, or set {variable} to a"
            " larger disk"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"the hub cache {cache} cannot be written; check its permissions, or set {variable}"
    return None


def not_cached(repo_id: str, cache: Path) -> HubError:
    """The sentence for an offline run without the repository in the cache."""
    return HubError(
        f"{repo_id} is not in the hub cache {cache} and offline mode is on; "
        f"fetch it once online (without HF_HUB_OFFLINE), or give a local folder"
    )


def _http_sentence(error: HfHubHTTPError, repo_id: str, revision: str | None, item: str) -> str:
    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return (
            f"{repo_id} is gated; accept its terms at {constants.ENDPOINT}/{repo_id}, then run 'hf auth login' "
            f"with the account that was given access"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no revision {revision!r} on the hub; check the branch, tag or commit after the @"
    if isinstance(error, EntryNotFoundError):
        return f"{repo_id} has no {item} on the hub; check that it is a checkpoint in Hugging Face format"
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        return f"the hub refused the credentials for {repo_id} (401); run 'hf auth login', or correct HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return (
            f"{repo_id} is neither an existing folder nor a repository on the hub; check the name, "
            f"or run 'hf auth login' if it is private"
        )
    if status == 403:
        return (
            f"the hub denies access to {repo_id} (403); run 'hf auth login' with an account or token that may read it"
        )
    if status == 429:
        return f"the hub asks to slow down (429) while getting {item} of {repo_id}; wait a few minutes and try again"
    return f"the hub answered {status} for {item} of {repo_id}; try again later"


def _root(error: Exception) -> Exception:
    """The error behind huggingface_hub's "not found locally either", if there is one."""
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return _root(error.__cause__)
    return error


def _named(error: Exception, names: set[str]) -> bool:
    return any(kind.__name__ in names for kind in type(error).__mro__)


def reason(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:150].rstrip(".")
