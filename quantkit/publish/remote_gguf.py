"""The header, size and sha256 of a GGUF on a web server.

The header is written into a sparse file of the full size, which every reader of headers can read.
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
"""Bytes to fetch until the header is complete; a vocabulary takes up to about 20 MB."""
_TIMEOUT = 60
_RANGE = re.compile(r"bytes \d+-\d+/(\d+)")
_ETAG = re.compile(r'"?([0-9a-f]{64})"?')


@dataclass(frozen=True)
class RemoteGguf:
    """A GGUF on a web server.

    Attributes:
        path: a local sparse file with the header and the size of the GGUF.
        size: bytes.
        sha256: of the file, if the server is a hub that reports it.
    """

    path: Path
    size: int
    sha256: str | None


def check_url(url: str) -> str:
    """Return `url`; raises UsageError if it is not a plain http or https address."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"the address {url!r} is malformed: {error}; check it") from error
    del port
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"the address {url!r} is not http://HOST or https://HOST; check it")
    if parts.username or parts.password:
        raise UsageError("the address contains a password, which every reader of the script would see; remove it")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise UsageError(
            f"the address {url!r} has characters that an address cannot contain; write them as % and their code"
        )
    return url


def file_name(url: str) -> str:
    """The last part of the path, with _ for each character that a file name cannot contain."""
    name = unquote(urlsplit(url).path).rpartition("/")[2]
    return re.sub(r"[^\w.+-]", "_", name, flags=re.ASCII).lstrip(".") or "model.gguf"


def fetch_header(url: str, folder: Path) -> RemoteGguf:
    """Fetch the header of the GGUF at `url` into `folder`.

    Raises:
        HubError: the server does not answer or refuses.
        CheckpointError: the file is not a sound GGUF.
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
    raise CheckpointError(
        f"the header of {url} is longer than {_PARTS[-1] >> 20} MiB, so it is not a sound GGUF; check the address"
    )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects and keeps the first X-Linked-Etag, with which a hub reports the sha256 of a file."""

    def __init__(self) -> None:
        self.etag: str | None = None

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Any:
        self.etag = self.etag or headers.get("X-Linked-Etag")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch(url: str, part: int, path: Path) -> tuple[int, str | None, int]:
    """Write the first `part` bytes to `path`; returns the full size, the sha256 or None, and the bytes received."""
    redirects = _Redirects()
    request = urllib.request.Request(url, headers={"Range": f"bytes=0-{part - 1}", "User-Agent": "quantkit"})
    host = urlsplit(url).hostname
    try:
        with urllib.request.build_opener(redirects).open(request, timeout=_TIMEOUT) as answer:
            content_range = _RANGE.match(answer.headers.get("Content-Range") or "")
            length = content_range[1] if content_range else answer.headers.get("Content-Length")
            data = answer.read(part)
            etag = redirects.etag or answer.headers.get("X-Linked-Etag")
    except urllib.error.HTTPError as error:
        raise HubError(f"{host} answers {error.code} {error.reason} for {url}; check the address") from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise HubError(
            f"{host} cannot be reached ({reason}); check the address, or pass --offline with --size and --ram"
        ) from error
    if length is None or not length.isdigit():
        raise HubError(f"{host} does not report the size of {url}; pass --offline with --size and --ram")
    size = int(length)
    with path.open("wb") as file:
        file.write(data)
        file.truncate(max(size, len(data)))
    match = _ETAG.fullmatch(etag or "")
    return size, match[1] if match else None, len(data)
