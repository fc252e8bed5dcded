"""HTTP to an Ollama server: one request a connection, answers of bounded size, one kind of error when it breaks."""

import http.client
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from quantkit.errors import PublishError
from quantkit.progress import Progress

_CHUNK = 1 << 20
_CONNECT_SECONDS = 10.0
# The server is silent while it copies or hashes a large file.
_ANSWER_SECONDS = 3600.0
_MAX_LINE = 1 << 20
_MAX_BODY = 1 << 26
# A push of days at Ollama's pace, a line every 60 ms, has fewer.
_MAX_LINES = 5_000_000


class ConnectionBroken(PublishError):
    """The connection broke; `why` is the reason. A caller that knows the work at that time names it instead."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the Ollama server went away ({why}); start it again and repeat the command")
        self.why = why


class Response:
    """An HTTP response that closes its connection. Reading from a broken connection raises ConnectionBroken."""

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        self._connection, self._response, self.status = connection, response, response.status

    def __enter__(self) -> "Response":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def read(self) -> bytes:
        """The whole body; raises PublishError for one of more than 64 MiB."""
        body = self._reading(self._response.read, _MAX_BODY + 1)
        if len(body) > _MAX_BODY:
            raise PublishError(f"the Ollama server answered with more than {_MAX_BODY >> 20} MiB; check --host")
        return body

    def lines(self) -> Iterator[dict[str, Any]]:
        """The JSON objects of a streamed answer, one a line; raises PublishError for one that does not end."""
        count = 0
        while line := self._reading(self._response.readline, _MAX_LINE):
            count += 1
            if count > _MAX_LINES:
                raise PublishError(f"the server answered with more than {_MAX_LINES} lines; check --host")
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                if not line.endswith(b"\n") and len(line) < _MAX_LINE:
                    raise ConnectionBroken("its answer broke off") from None
                value = None
            if not isinstance(value, dict):
                raise PublishError(
                    f"the server answered with a line that Ollama does not write, {line[:200]!r}; check --host"
                )
            yield value

    def error_text(self) -> str:
        """The server's message, or the HTTP status if the body has none."""
        text = self.read().decode("utf-8", "replace")
        try:
            return str(json.loads(text)["error"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return text.strip()[:300] or f"HTTP status {self.status}"

    def _reading(self, read: Any, size: int) -> bytes:
        try:
            return bytes(read(size))
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionBroken(_reason(error)) from error


class Upload:
    """A file that http.client reads and sends. `sent` counts the bytes read so far."""

    def __init__(self, path: Path, progress: Progress) -> None:
        self._file, self._name, self._progress, self.sent = path.open("rb"), path.name, progress, 0

    def __enter__(self) -> "Upload":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, size: int = -1) -> bytes:
        """The next bytes, at least a chunk; reports them to the progress."""
        chunk = self._file.read(max(size, _CHUNK))
        self.sent += len(chunk)
        self._progress.advance(len(chunk), self._name)
        return chunk


def json_body(value: Mapping[str, Any]) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of a JSON request."""
    return json.dumps(value, ensure_ascii=False).encode(), {"Content-Type": "application/json"}


def send_request(
    url: str, method: str, path: str, body: bytes | Upload | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """The response of the server at `url` to one request.

    Raises:
        PublishError: no server answers, or what answers does not speak HTTP.
        ConnectionBroken: the connection broke before the response began.
    """
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=_CONNECT_SECONDS)
    try:
        connection.connect()
        connection.sock.settimeout(_ANSWER_SECONDS)
    except OSError as error:
        connection.close()
        raise PublishError(
            f"no Ollama server answers at {url} ({error.strerror or error}); start one with `ollama serve`, or pass"
            " its address with --host or OLLAMA_HOST"
        ) from error
    try:
        try:
            connection.request(method, f"{parts.path}{path}", body, dict(headers or {}))
        except (BrokenPipeError, ConnectionResetError):
            # A server that refuses an upload halfway may have sent its reason before it closed the connection.
            return Response(connection, connection.getresponse())
        return Response(connection, connection.getresponse())
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        if isinstance(error, http.client.BadStatusLine) and not isinstance(error, OSError):
            raise PublishError(f"the server at {url} is not an Ollama server; name one with --host") from error
        raise ConnectionBroken(_reason(error)) from error


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return {"RemoteDisconnected": "it closed the connection", "IncompleteRead": "its answer broke off"}.get(
        type(error).__name__, str(error) or type(error).__name__
    )
