"""A GGUF that lies on a web server: its size, its sha256 where the server tells it, and its header, nothing more.

The header is put at the start of a file of the true size whose rest is a hole, so that all that reads headers reads it.
"""

import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from quantkit.errors import CheckpointError, HubError, UsageError
from quantkit.gguf.reader import read_header

_PARTS = (1 << 20, 16 << 20, 64 << 20, 256 << 20)
"""Bytes fetched until the header is whole: a vocabulary takes up to some 20 MB."""
_TIMEOUT = 60
_RANGE = re.compile(r"bytes \d+-\d+/(\d+)")
_ETAG = re.compile(r'"?([0-9a-f]{64})"?')


@dataclass(frozen=True)
class RemoteGguf:
    """`path`: a local file with the true header and size. `sha256`: as the hub tells it, else None."""

    path: Path
    size: int
    sha256: str | None


def check_url(url: str) -> str:
    """The address itself; raises UsageError if it has what an address cannot have, or is of another kind."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"the address {url!r} is malformed: {error}") from error
    del port
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"the address {url!r} is not http:// or https:// and a host")
    if parts.username or parts.password:
        raise UsageError("the address has a password in it, which the script would show to anyone; leave it out")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise UsageError(f"the address {url!r} has characters that need % and their code")
    return url


def file_name(url: str) -> str:
    """The last part of the path, without what a file name cannot have."""
    name = unquote(urlsplit(url).path).rpartition("/")[2]
    return re.sub(r"[^\w.+-]", "_", name, flags=re.ASCII).lstrip(".") or "model.gguf"


def look_at(url: str, folder: Path) -> RemoteGguf:
    """Fetch the header of the GGUF at `url` into `folder`.

    Raises:
        HubError: nobody answers, or the server refuses.
        CheckpointError: what is there is no sound GGUF.
    """
    path = folder / file_name(url)
    for part in _PARTS:
        size, sha256, fetched = _fetch(url, part, path)
        try:
            if read_header(path).header_bytes <= fetched:
                return RemoteGguf(path, size, sha256)
        except CheckpointError:
            if fetched >= size or part == _PARTS[-1]:
                raise
    raise CheckpointError(f"the header of {url} is longer than {_PARTS[-1] >> 20} MiB, which no sound GGUF's is")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects and keeps what the hub says of a file on the way."""

    def __init__(self) -> None:
        self.etag: str | None = None

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Any:
        self.etag = self.etag or headers.get("X-Linked-Etag")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch(url: str, part: int, path: Path) -> tuple[int, str | None, int]:
    """Write the first `part` bytes; returns the whole size, the sha256 if told, and how many bytes came."""
    redirects = _Redirects()
    request = urllib.request.Request(url, headers={"Range": f"bytes=0-{part - 1}", "User-Agent": "quantkit"})
    host = urlsplit(url).hostname
    try:
        with urllib.request.build_opener(redirects).open(request, timeout=_TIMEOUT) as answer:
            told = _RANGE.match(answer.headers.get("Content-Range") or "")
            length = told[1] if told else answer.headers.get("Content-Length")
            data = answer.read(part)
            etag = redirects.etag or answer.headers.get("X-Linked-Etag")
    except urllib.error.HTTPError as error:
        raise HubError(f"{host} answers {error.code} {error.reason} for {url}; look at the address") from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise HubError(
            f"{host} cannot be reached ({reason}); look at the address, or give --offline with --size and --ram"
        ) from error
    if length is None or not length.isdigit():
        raise HubError(f"{host} does not tell the size of {url}; give it with --offline --size and --ram")
    size = int(length)
    with path.open("wb") as file:
        file.write(data)
        file.truncate(max(size, len(data)))
    match = _ETAG.fullmatch(etag or "")
    return size, match[1] if match else None, len(data)
