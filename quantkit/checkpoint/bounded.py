"""Answers of a hub that do not end, or that hardly come, are cut off.

The clients of the hubs read an answer to its end, however long and slow it is. So a hook in the HTTP client of
huggingface_hub counts the bytes and the time. It acts only while `bounded_answers` is entered.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub.utils import get_session

from quantkit.errors import HubError

MOST_ANSWER = 64 << 20
"""Bytes of a list of files; one of 100,000 files takes 30 MB."""
_MOST_REFUSAL = 1 << 20
"""Bytes of the text of an error or of a redirection."""
_EXPANSION = 256
"""An answer that is compressed although it should not be may have fewer bytes by this factor."""
_WINDOW, _LEAST = 60.0, 6000
"""Fewer bytes than `_LEAST` in so many seconds of waiting are not a download."""
_lock = threading.Lock()
_entered = 0


class Pace:
    """Counts what a server sends, and for how long it was waited for."""

    def __init__(self, host: str) -> None:
        self._host, self._waited, self._received = host, 0.0, 0

    def count(self, seconds: float, nbytes: int) -> None:
        """Add a wait of `seconds` that gave `nbytes`. Raises HubError if the server hardly sends anything."""
        self._waited += seconds
        self._received += nbytes
        if self._waited < _WINDOW:
            return
        if self._received < _LEAST:
            raise HubError(
                f"{self._host} sent only {self._received} bytes in {self._waited:.0f} seconds; run the same command"
                " again later, finished bytes are kept"
            )
        self._waited, self._received = 0.0, 0


@contextmanager
def bounded_answers() -> Iterator[None]:
    """Bound what the client of huggingface_hub receives: the size of answers that are not files, and the slowness.

    A request made meanwhile raises HubError for an answer beyond the bounds.
    """
    global _entered
    client = get_session()
    with _lock:
        hooks = client.event_hooks
        if _bound not in hooks["response"]:
            client.event_hooks = {
                "request": [*hooks["request"], _ask_plain],
                "response": [*hooks["response"], _bound],
            }
        _entered += 1
    try:
        yield
    finally:
        with _lock:
            _entered -= 1


def _ask_plain(request: Any) -> None:
    """Ask for an uncompressed list, whose bytes on the way are its size."""
    if _entered and _is_list(str(request.url)):
        request.headers["Accept-Encoding"] = "identity"


def _bound(response: Any) -> None:
    if not _entered:
        return
    url = str(response.url)
    most = _MOST_REFUSAL if response.status_code >= 300 else MOST_ANSWER if _is_list(url) else None
    if most is not None and response.headers.get("Content-Encoding", "identity") != "identity":
        most //= _EXPANSION
    stream = response.stream
    response.stream = _stream_class(stream.__class__)(stream, urlsplit(url).hostname or url, most)


def _is_list(url: str) -> bool:
    """Whether an address is one of a hub's interface; ModelScope's for files ends in /repo."""
    path = urlsplit(url).path
    return "/api/" in path and "/resolve/" not in path and not path.endswith("/repo")


@cache
def _stream_class(kind: type[Any]) -> type[Any]:
    """A stream of bytes of the same HTTP library as `kind`, which counts."""
    base: Any = next(ancestor for ancestor in kind.__mro__ if ancestor.__name__ == "SyncByteStream")

    class Counted(base):  # type: ignore[misc]
        def __init__(self, stream: Any, host: str, most: int | None) -> None:
            self._stream, self._host, self._most = stream, host, most

        def __iter__(self) -> Iterator[bytes]:
            pace, total, chunks = Pace(self._host), 0, iter(self._stream)
            while True:
                start = time.monotonic()
                chunk = next(chunks, None)
                if chunk is None:
                    return
                pace.count(time.monotonic() - start, len(chunk))
                total += len(chunk)
                if self._most is not None and total > self._most:
                    raise HubError(
                        f"{self._host} answers with more than {self._most} bytes, which is not the answer of a hub;"
                        " check the address of the hub"
                    )
                yield chunk

        def close(self) -> None:
            self._stream.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._stream, name)

    return Counted
