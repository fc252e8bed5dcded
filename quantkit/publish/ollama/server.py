"""Ollama's HTTP API, as far as publishing needs it: blobs, create, copy, push.

Spoken with the standard library alone: the PyPI client `ollama` (0.6) cannot ask whether a blob is there, shows no
progress of one, and drops the `requires` of a model. Source: docs/api.md and server/routes.go of ollama/ollama.
"""

import hashlib
import http.client
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from quantkit.errors import PublishError, UsageError
from quantkit.progress import SILENT, Progress
from quantkit.publish.ollama.modelfile import Modelfile

DEFAULT_HOST = "http://127.0.0.1:11434"
KEYS_PAGE = "https://ollama.com/settings/keys"

_CHUNK = 1 << 20
_CONNECT_SECONDS = 10.0
# The server is silent while it copies or hashes a large file.
_ANSWER_SECONDS = 3600.0
_PORTS = {"http": 80, "https": 443}
_UNAUTHORIZED = re.compile(
    r"unauthori[sz]ed|not authori[sz]ed|access denied|unknown key|not signed in|\b40[13]\b", re.I
)


def parse_host(text: str | None) -> str:
    """The server's URL from --host or OLLAMA_HOST, by Ollama's own rules: `HOST`, `HOST:PORT`, `http(s)://...`.

    Raises:
        UsageError: another scheme, or a port that is no number.
    """
    text = (text or "").strip().strip("\"'")
    if not text:
        return DEFAULT_HOST
    scheme, mark, rest = text.partition("://")
    if not mark:
        scheme, rest = "http", text
    try:
        parts = urlsplit(f"//{rest}")
        port = parts.port or (_PORTS[scheme] if mark else 11434)
    except (ValueError, KeyError):
        raise UsageError(f"the Ollama host {text!r} is not an address; write HOST, HOST:PORT or https://HOST") from None
    host = parts.hostname or "127.0.0.1"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}{parts.path.rstrip('/')}"


def digest_of(path: Path, progress: Progress = SILENT) -> str:
    """The digest of a file as Ollama names its blobs: `sha256:` and hexadecimal digits. `progress` counts bytes."""
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                found.update(chunk)
                progress.advance(len(chunk), path.name)
    except OSError as error:
        raise PublishError(f"cannot read {path}: {error.strerror or error}") from error
    return f"sha256:{found.hexdigest()}"


def create_request(model: str, modelfile: Modelfile, files: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The body of POST /api/create that says what the Modelfile says.

    `files` are the GGUF's file names and their digests; without them the model's source is the name in its FROM.
    """
    body: dict[str, Any] = {"model": model}
    if files is not None:
        body["files"] = dict(files)
    else:
        (body["from"],) = modelfile.sources
    parameters: dict[str, Any] = {}
    for name, value in modelfile.parameters:
        if name == "stop":
            parameters.setdefault("stop", []).append(value)
        else:
            parameters[name] = value
    said = {
        "template": modelfile.template,
        "system": modelfile.system,
        "license": list(modelfile.licenses),
        "parameters": parameters,
        "messages": [{"role": role, "content": content} for role, content in modelfile.messages],
        "requires": modelfile.requires,
    }
    return body | {key: value for key, value in said.items() if value}


@dataclass(frozen=True)
class Server:
    """A running Ollama at `url` (see `parse_host`). Every method raises PublishError in one sentence."""

    url: str

    def version(self) -> str:
        """The server's version, "0.32.15"; the cheapest question, so the one that finds out whether it is there."""
        return str(self._json("GET", "/api/version").get("version", ""))

    def has_blob(self, digest: str) -> bool:
        with self._request("HEAD", f"/api/blobs/{digest}") as response:
            if response.status not in (200, 404):
                raise PublishError(f"the Ollama server answered {response.status} when asked for the blob {digest}")
            return response.status == 200

    def send_blob(self, path: Path, digest: str, progress: Progress = SILENT) -> None:
        """Upload a file under its digest. `progress` counts the bytes sent."""
        size = path.stat().st_size
        body = _Upload(path, progress)
        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        try:
            with body, self._request("POST", f"/api/blobs/{digest}", body, headers) as response:
                if response.status not in (200, 201):
                    raise PublishError(f"the Ollama server did not take {path.name}: {_error_text(response)}")
        except _Gone as gone:
            raise PublishError(
                f"the Ollama server at {self.url} went away after {body.sent} of {size} bytes of {path.name}"
                f" ({gone.why}); start it again and repeat the command, which sends only what is missing"
            ) from gone

    def create(self, request: Mapping[str, Any], status: Callable[[str], object] = lambda text: None) -> None:
        """POST /api/create with the body of `create_request`."""
        name = request["model"]
        for line in self._stream("/api/create", request, f"making {name}"):
            if "error" in line:
                raise PublishError(f"the Ollama server could not make {name}: {line['error']}")
            status(str(line.get("status", "")))

    def copy(self, source: str, destination: str) -> None:
        """Another name for a model: the same manifest."""
        body = {"source": source, "destination": destination}
        with self._request("POST", "/api/copy", *_encoded(body)) as response:
            if response.status != 200:
                raise PublishError(
                    f"the Ollama server could not copy {source} to {destination}: {_error_text(response)}"
                )

    def push(
        self, name: str, *, insecure: bool = False, progress: Callable[[str, str, int, int], object] | None = None
    ) -> None:
        """POST /api/push; `progress` gets the status, and the digest, bytes done and bytes in all of a layer."""
        body = {"model": name, "insecure": insecure}
        for line in self._stream("/api/push", body, f"pushing {name}"):
            if "error" in line:
                raise PublishError(_push_sentence(name, str(line["error"])))
            if progress is not None:
                amounts = [line.get(key) or 0 for key in ("completed", "total")]
                progress(str(line.get("status", "")), str(line.get("digest") or ""), *map(int, amounts))

    def _stream(self, path: str, body: Mapping[str, Any], doing: str) -> Iterator[dict[str, Any]]:
        """The lines of an answer, up to `success`; a refusal before the first line comes as a line of its own."""
        try:
            with self._request("POST", path, *_encoded(body)) as response:
                if response.status != 200:
                    text = _error_text(response)
                    yield {"error": text if str(response.status) in text else f"{response.status}: {text}"}
                    return
                for line in _lines(response):
                    yield line
                    if line.get("status") == "success" or "error" in line:
                        return
        except _Gone as gone:
            raise PublishError(
                f"the Ollama server at {self.url} went away while {doing} ({gone.why}); start it again and repeat the"
                " command"
            ) from gone
        raise PublishError(f"the Ollama server stopped while {doing} and did not say why; see its own log")

    def _json(self, method: str, path: str) -> dict[str, Any]:
        with self._request(method, path) as response:
            try:
                found = json.loads(response.read())
            except (ValueError, OSError, http.client.HTTPException):
                found = None
            if response.status != 200 or not isinstance(found, dict):
                raise PublishError(f"the server at {self.url} is not an Ollama server; name one with --host")
            return found

    def _request(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> "_Answer":
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=_CONNECT_SECONDS)
        try:
            connection.connect()
            connection.sock.settimeout(_ANSWER_SECONDS)
        except OSError as error:
            connection.close()
            raise PublishError(
                f"no Ollama server answers at {self.url} ({error.strerror or error}); start one with `ollama serve`, or"
                " say where it is with --host or OLLAMA_HOST"
            ) from error
        try:
            try:
                connection.request(method, f"{parts.path}{path}", body, dict(headers or {}))
            except (BrokenPipeError, ConnectionResetError):
                # A server that refuses in the middle of an upload may have said why before it hung up.
                return _Answer(connection, connection.getresponse())
            return _Answer(connection, connection.getresponse())
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            if isinstance(error, http.client.BadStatusLine) and not isinstance(error, OSError):
                raise PublishError(f"the server at {self.url} is not an Ollama server; name one with --host") from error
            raise _Gone(_why(error)) from error


class _Gone(PublishError):
    """The connection broke; what was going on is said where it is known."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the Ollama server went away ({why}); start it again and repeat the command")
        self.why = why


class _Answer:
    """A response that closes its connection, and whose breaking off is a `_Gone`."""

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        self._connection, self._response, self.status = connection, response, response.status

    def __enter__(self) -> "_Answer":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def read(self) -> bytes:
        try:
            return self._response.read()
        except (OSError, http.client.HTTPException) as error:
            raise _Gone(_why(error)) from error

    def readline(self) -> bytes:
        try:
            return self._response.readline()
        except (OSError, http.client.HTTPException) as error:
            raise _Gone(_why(error)) from error


class _Upload:
    """A file that http.client reads and sends; counts the bytes sent."""

    def __init__(self, path: Path, progress: Progress) -> None:
        self._file, self._name, self._progress, self.sent = path.open("rb"), path.name, progress, 0

    def __enter__(self) -> "_Upload":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, size: int = -1) -> bytes:
        chunk = self._file.read(max(size, _CHUNK))
        self.sent += len(chunk)
        self._progress.advance(len(chunk), self._name)
        return chunk


def _encoded(body: Mapping[str, Any]) -> tuple[bytes, dict[str, str]]:
    return json.dumps(body, ensure_ascii=False).encode(), {"Content-Type": "application/json"}


def _lines(response: _Answer) -> Iterator[dict[str, Any]]:
    while line := response.readline():
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError:
            if not line.endswith(b"\n"):
                raise _Gone("its answer broke off") from None
            found = None
        if not isinstance(found, dict):
            raise PublishError(f"the Ollama server answered with a line that is not its own: {line[:200]!r}")
        yield found


def _error_text(response: _Answer) -> str:
    """The server's own words, or the status where it has none."""
    text = response.read().decode("utf-8", "replace")
    try:
        found = json.loads(text)
        return str(found["error"])
    except (ValueError, KeyError, TypeError):
        return text.strip()[:300] or f"HTTP status {response.status}"


def _push_sentence(name: str, error: str) -> str:
    if not _UNAUTHORIZED.search(error):
        return f"the Ollama server could not push {name}: {error}"
    namespace = name.rsplit("/", 1)[0] if "/" in name else name
    return (
        f"{name} was refused by the registry: this machine's key is not registered there, or not with {namespace};"
        f" run `ollama signin`, or add the public key beside the server (~/.ollama/id_ed25519.pub) at {KEYS_PAGE}, and"
        f" push only to your own name (it said: {error})"
    )


def _why(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return {"RemoteDisconnected": "it closed the connection", "IncompleteRead": "its answer broke off"}.get(
        type(error).__name__, str(error) or type(error).__name__
    )
