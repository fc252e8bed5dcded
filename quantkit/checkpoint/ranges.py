"""Byte ranges of files on a server, resumed at the byte where a connection broke.

A hub redirects a weight file to a store by a signed address, which expires. The address is kept and used for the next
range. Tokens go to the hub only, never to the store. A file that changes between two ranges is an error.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urljoin, urlsplit

from huggingface_hub.utils import get_session

from quantkit.checkpoint.bounded import bounded_answers
from quantkit.checkpoint.hub_errors import DroppedError, is_transient, is_unreachable
from quantkit.errors import CheckpointError, HubError, ReadError
from quantkit.system.python import UTC

TIMEOUT = 20.0
"""Seconds without an answer before a request counts as failed."""
_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before each further try of a range that gave hardly a byte."""
_LONGEST_WAIT = 120.0
_PROGRESS = 1 << 16
"""Bytes of a range after which a broken connection is the first one again."""
_REDIRECTS = 5
_SKIPPED = 1 << 20
"""Bytes of a file's start that are read and dropped, if the server ignores ranges."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository. `headers` are for the hub alone; `size` in bytes and `sha256` as the hub lists them."""

    name: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    size: int | None = None
    sha256: str | None = None


class StatusError(Exception):
    """An answer of a store with an error status."""

    def __init__(self, response: Any) -> None:
        super().__init__(f"{urlsplit(str(response.url)).hostname} answered {response.status_code}")
        self.response = response


class Ranges:
    """Reads ranges of files of one repository; many threads can read at once.

    `where` names the repository in messages. `check` raises for an error status of the hub itself. `bytes` and
    `requests` count what was received.
    """

    def __init__(self, where: str, check: Callable[[Any], object]) -> None:
        self.where, self._check = where, check
        self.bytes = self.requests = 0
        self._addresses: dict[str, str] = {}
        self._etags: dict[tuple[str, str], str] = {}
        self._sizes: dict[str, int] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End every read that is under way, with an error: nobody waits for its bytes."""
        self._stopped.set()

    def size(self, file: RemoteFile) -> int | None:
        """The size of a file in bytes: as the server stated it with a range, or as the hub lists it."""
        return self._sizes.get(file.name, file.size)

    def read(self, file: RemoteFile, start: int, length: int) -> bytes:
        """Bytes start..start+length of a file. Raises as `pieces` does."""
        return b"".join(self.pieces(file, start, start + length))

    def pieces(self, file: RemoteFile, start: int, stop: int) -> Iterator[bytes]:
        """Bytes start..stop of a file, as they come. After a broken connection the next byte is asked for.

        Raises:
            ReadError: the file changed on the server.
            HubError: the server ignores ranges.
            Exception: whatever the HTTP client raises, after several tries.
        """
        failures = 0
        while start < stop:
            before = start
            try:
                for chunk in self._chunks(file, start, stop):
                    start += len(chunk)
                    yield chunk
                if start < stop:
                    raise DroppedError(f"the connection ended {stop - start} bytes early")
            except CheckpointError:
                raise
            except Exception as error:  # the client and its libraries raise errors of many classes
                failures = 0 if start - before >= _PROGRESS else failures + 1
                if failures > len(_PAUSES) or not self._is_passing(error) or self._stopped.is_set():
                    raise
                self._stopped.wait(_pause(error, failures))

    def _is_passing(self, error: Exception) -> bool:
        """Whether a further try may succeed; without a network only if the hub has answered before."""
        if isinstance(error, StatusError):
            return error.response.status_code >= 500 or error.response.status_code in (408, 429)
        return is_transient(error) or _status(error) == 429 or (is_unreachable(error) and self.requests > 0)

    def _chunks(self, file: RemoteFile, start: int, stop: int) -> Iterator[bytes]:
        """Pieces of bytes start..stop, as they come; fewer if the connection ends."""
        with self._answer(file, start, stop) as response:
            # a server may ignore the range and send the file from its start
            skip = 0 if response.status_code == 206 else start
            if skip > _SKIPPED:
                raise HubError(
                    f"the server of {self.where} ignores range requests, so {file.name} cannot be read in pieces;"
                    " leave out --stream to download it"
                )
            remaining = stop - start
            for chunk in response.iter_bytes():
                self._count(len(chunk))
                if self._stopped.is_set():
                    raise DroppedError("the reader was closed")
                dropped = min(skip, len(chunk))
                skip -= dropped
                chunk = chunk[dropped : dropped + remaining]
                remaining -= len(chunk)
                yield chunk
                if remaining == 0:
                    return

    @contextmanager
    def _answer(self, file: RemoteFile, start: int, stop: int) -> Iterator[Any]:
        """The answer with the bytes, after redirects. A signed address that has expired is asked for again."""
        address = self._addresses.get(file.name)
        if address is not None:
            with self._get(file, address, start, stop) as response:
                if response.status_code < 300:
                    self._check_same(file, response, start)
                    yield response
                    return
                if response.status_code not in (400, 401, 403, 404, 410):
                    self._refuse(file, response)
            self._addresses.pop(file.name, None)
        address = file.url
        for _ in range(_REDIRECTS + 1):
            with self._get(file, address, start, stop) as response:
                if 300 <= response.status_code < 400 and "Location" in response.headers:
                    linked = response.headers.get("X-Linked-Etag", "").strip('"')
                    if file.sha256 and len(linked) == len(file.sha256) and linked.lower() != file.sha256:
                        raise self._changed(file)
                    address = urljoin(address, response.headers["Location"])
                    continue
                if response.status_code >= 300:
                    self._refuse(file, response)
                self._check_same(file, response, start)
                if address != file.url:
                    self._addresses[file.name] = address
                yield response
                return
        raise HubError(f"{file.name} of {self.where} is redirected more than {_REDIRECTS} times; try again later")

    @contextmanager
    def _get(self, file: RemoteFile, address: str, start: int, stop: int) -> Iterator[Any]:
        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        if _origin(address) == _origin(file.url):
            headers = {**file.headers, **headers}
        with (
            bounded_answers(),
            get_session().stream("GET", address, headers=headers, follow_redirects=False, timeout=TIMEOUT) as response,
        ):
            self._count(0)
            yield response

    def _refuse(self, file: RemoteFile, response: Any) -> None:
        """Raise the error of an error status."""
        if response.status_code == 416:
            raise self._changed(file)
        if _origin(str(response.url)) == _origin(file.url):
            response.read()
            self._check(response)
        raise StatusError(response)

    def _check_same(self, file: RemoteFile, response: Any, start: int) -> None:
        """Raise ReadError if the answer is of another file than before, or of another range."""
        first, stated = _content_range(response)
        known = self.size(file)
        if response.status_code == 206 and first != start:
            raise DroppedError(f"bytes from {first} came in place of those from {start}")
        if stated is not None:
            if known is not None and stated != known and file.name in self._sizes:
                raise self._changed(file)
            self._sizes[file.name] = stated
        etag = response.headers.get("ETag", "")
        if etag and not etag.startswith("W/"):
            key = (file.name, _origin(str(response.url)))
            if self._etags.setdefault(key, etag) != etag:
                raise self._changed(file)

    def _changed(self, file: RemoteFile) -> ReadError:
        return ReadError(
            f"{file.name} of {self.where} changed on the server since it was opened; run the same command again with"
            " --force to start over, or name a fixed revision with @REVISION"
        )

    def _count(self, received: int) -> None:
        with self._lock:
            self.bytes += received
            self.requests += received == 0


def _content_range(response: Any) -> tuple[int | None, int | None]:
    """(first byte, size of the whole file) that an answer states; None for what it does not state."""
    unit, _, text = response.headers.get("Content-Range", "").partition(" ")
    span, _, size = text.partition("/")
    first = span.partition("-")[0]
    if unit != "bytes":
        length = response.headers.get("Content-Length", "")
        return None, int(length) if response.status_code == 200 and length.isdigit() else None
    return int(first) if first.isdigit() else None, int(size) if size.isdigit() else None


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _pause(error: Exception, failures: int) -> float:
    """Seconds to wait before the next try: as the server asks for in Retry-After, or longer each time."""
    response = getattr(error, "response", None)
    retry_after = response.headers.get("Retry-After", "") if response is not None else ""
    if retry_after.strip().isdigit():
        return min(float(retry_after), _LONGEST_WAIT)
    try:
        wait = (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds()
        return min(max(wait, 0.0), _LONGEST_WAIT)
    except (TypeError, ValueError):
        return _PAUSES[failures - 1] if failures else 0.0
