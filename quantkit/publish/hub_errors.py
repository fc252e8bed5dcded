"""What went wrong while pushing to the hub, in one sentence with the next step."""

import re

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

from quantkit.errors import PublishError

LOGIN = "run `hf auth login` with a token that may write, or set HF_TOKEN"
# The client's classes by name: httpx in some releases of huggingface_hub, httpx2 in others.
_UNREACHABLE = {"ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol"}
_DROPPED = {"TransportError", "ReadTimeout", "WriteTimeout", "PoolTimeout", "ConnectionError", "TimeoutError"}
_QUOTA = re.compile(r"storage|quota|limit reached|too large|upgrade|payment", re.IGNORECASE)
_MOST = 200


def explain(error: Exception, repo_id: str) -> PublishError:
    """The sentence for an error met while pushing to `repo_id`."""
    error = _root(error)
    if isinstance(error, OfflineModeIsEnabled):
        return PublishError(f"{repo_id} cannot be pushed: offline mode is on; unset HF_HUB_OFFLINE")
    if isinstance(error, LocalTokenNotFoundError):
        return PublishError(f"not logged in to the hub; {LOGIN}")
    if isinstance(error, HFValidationError):
        return PublishError(f"{repo_id!r} is not a repository of the hub ({_reason(error)}); write ORG/NAME")
    if isinstance(error, HfHubHTTPError):
        return PublishError(_http_sentence(error, repo_id))
    if _named(error, _UNREACHABLE):
        return PublishError(
            f"the hub at {constants.ENDPOINT} cannot be reached for {repo_id} ({_reason(error)}); check the network"
        )
    if _named(error, _DROPPED):
        return PublishError(
            f"the connection dropped while pushing to {repo_id} ({_reason(error)}); run the same command once more,"
            " what arrived is not sent again"
        )
    if isinstance(error, OSError) and error.filename is not None:
        return PublishError(f"{error.filename} cannot be read for {repo_id}: {error.strerror or error}")
    if _QUOTA.search(str(error)):
        return PublishError(_full(repo_id, _reason(error)))
    return PublishError(f"pushing to {repo_id} failed ({_reason(error)}); run the same command once more")


def _http_sentence(error: HfHubHTTPError, repo_id: str) -> str:
    status: int = error.response.status_code
    said = _one_line(error.server_message or "")
    owner = repo_id.partition("/")[0]
    if status in (402, 413, 507) or (status == 403 and _QUOTA.search(said)):
        return _full(repo_id, said or str(status))
    if status == 401:
        return f"the hub refused the token for {repo_id} (401); {LOGIN}"
    if status == 403:
        return (
            f"the token may not write to {repo_id} (403{f': {said}' if said else ''}); take one with write access to"
            f" {owner}, or another name"
        )
    if status == 404:
        return f"{repo_id} is not to be found on the hub (404) with this token; {LOGIN}"
    if status == 429:
        return f"the hub asks to slow down (429) while pushing to {repo_id}; wait a few minutes and try again"
    if status >= 500:
        return f"the hub answered {status} for {repo_id}; run the same command later, what arrived is not sent again"
    return f"the hub refused to take {repo_id} ({status}{f': {said}' if said else ''})"


def _full(repo_id: str, said: str) -> str:
    return f"the hub has no room for {repo_id} ({said}); free some storage there or take another plan, then run again"


def _root(error: Exception) -> Exception:
    """The error behind the client's "error while uploading"."""
    if type(error) is RuntimeError and isinstance(error.__cause__, Exception):
        return _root(error.__cause__)
    return error


def _named(error: Exception, names: set[str]) -> bool:
    return any(kind.__name__ in names for kind in type(error).__mro__)


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
    return _one_line(lines[-1] if lines[0].endswith("errors:") else lines[0])


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_MOST].rstrip(".")
