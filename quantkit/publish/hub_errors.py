"""Errors of a push to the hub, in one sentence with the next step."""

import re

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

from quantkit.errors import PublishError

LOGIN = "run `hf auth login` with a token that can write, or set HF_TOKEN"
# The client's classes by name: httpx in some releases of huggingface_hub, httpx2 in others.
_UNREACHABLE = {"ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol"}
_DROPPED = {"TransportError", "ReadTimeout", "WriteTimeout", "PoolTimeout", "ConnectionError", "TimeoutError"}
_QUOTA = re.compile(r"storage|quota|limit reached|too large|upgrade|payment", re.IGNORECASE)
_MAX_CHARACTERS = 200


def explain(error: Exception, repo_id: str) -> PublishError:
    """The error of a push to `repo_id` as one sentence."""
    error = _root(error)
    if isinstance(error, OfflineModeIsEnabled):
        return PublishError(f"{repo_id} cannot be pushed: offline mode is on; unset HF_HUB_OFFLINE")
    if isinstance(error, LocalTokenNotFoundError):
        return PublishError(f"not logged in to the hub; {LOGIN}")
    if isinstance(error, HFValidationError):
        return PublishError(f"{repo_id!r} is not the name of a hub repository ({_reason(error)}); write ORG/NAME")
    if isinstance(error, HfHubHTTPError):
        return PublishError(_http_sentence(error, repo_id))
    if _named(error, _UNREACHABLE):
        return PublishError(
            f"the hub at {constants.ENDPOINT} cannot be reached for {repo_id} ({_reason(error)}); check the network"
        )
    if _named(error, _DROPPED):
        return PublishError(
            f"the connection dropped while pushing to {repo_id} ({_reason(error)}); run the same command again,"
            " files that arrived are not sent again"
        )
    if isinstance(error, OSError) and error.filename is not None:
        return PublishError(
            f"{error.filename} cannot be read for {repo_id} ({error.strerror or error}); check the file"
        )
    if _QUOTA.search(str(error)):
        return PublishError(_full(repo_id, _reason(error)))
    return PublishError(f"pushing to {repo_id} failed ({_reason(error)}); run the same command again")


def _http_sentence(error: HfHubHTTPError, repo_id: str) -> str:
    status: int = error.response.status_code
    message = _one_line(error.server_message or "")
    owner = repo_id.partition("/")[0]
    if status in (402, 413, 507) or (status == 403 and _QUOTA.search(message)):
        return _full(repo_id, message or str(status))
    if status == 401:
        return f"the hub refused the token for {repo_id} (401); {LOGIN}"
    if status == 403:
        return (
            f"the token cannot write to {repo_id} (403{f': {message}' if message else ''}); use one with write access"
            f" to {owner}, or another name"
        )
    if status == 404:
        return f"{repo_id} not found on the hub (404) with this token; {LOGIN}"
    if status == 429:
        return (
            f"the hub asks to slow down (429) while pushing to {repo_id}; wait a few minutes, then repeat the command"
        )
    if status >= 500:
        return f"the hub answered {status} for {repo_id}; repeat the command later, files that arrived are kept"
    return (
        f"the hub refused the push to {repo_id} ({status}{f': {message}' if message else ''}); check the name and token"
    )


def _full(repo_id: str, message: str) -> str:
    return (
        f"the hub has no space for {repo_id} ({message}); free storage there or change the plan, then run the same"
        " command again"
    )


def _root(error: Exception) -> Exception:
    """The cause of the client's "error while uploading"."""
    if type(error) is RuntimeError and isinstance(error.__cause__, Exception):
        return _root(error.__cause__)
    return error


def _named(error: Exception, names: set[str]) -> bool:
    return any(kind.__name__ in names for kind in type(error).__mro__)


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
    return _one_line(lines[-1] if lines[0].endswith("errors:") else lines[0])


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_MAX_CHARACTERS].rstrip(".")
