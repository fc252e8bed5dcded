"""Servers that never come to an end: every one is cut off with one sentence, in seconds, with little on the disk."""

import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quantkit.checkpoint import bounded, ranges, repository
from tests.checkpoint.hub_client import opened
from tests.checkpoint.test_hub import FILES, REPO, SHARDS
from tests.helpers.environment import environment
from tests.helpers.hub_server import Hub, Repo, hub_handler, running_hub
from tests.helpers.modelscope_server import modelscope_handler

SHARD = SHARDS[0]
LIMIT = 200_000
HEAD = "HTTP/1.1 200 OK\r\nConnection: close\r\n"


@dataclass
class Endless:
    """What the hub does for paths that contain `path`: `way` names one of the methods below."""

    path: str = ""
    way: str = ""
    sent: int = 0
    requests: int = 0


def endless_handler(base: type[Any], endless: Endless) -> type[Any]:
    class Handler(base):
        def _route(self) -> None:
            if endless.path and endless.path in self.path and (self.command != "HEAD" or endless.way == "redirects"):
                endless.requests += 1
                self.close_connection = True
                getattr(self, f"_endless_{endless.way}")()
            else:
                super()._route()

        def _write(self, text: bytes) -> None:
            self.wfile.write(text)
            endless.sent += len(text)

        def _until_the_client_leaves(self, text: bytes | Callable[[], bytes], pause: float = 0.0) -> None:
            try:
                while endless.sent < 1 << 30:
                    self._write(text if isinstance(text, bytes) else text())
                    time.sleep(pause)
            except OSError:
                pass

        def _endless_body(self) -> None:
            self._write(HEAD.encode() + b"\r\n")
            self._until_the_client_leaves(b'{"siblings": [' * 5000)

        def _endless_files(self) -> None:
            """A list of files that goes on."""
            self._write(HEAD.encode() + b'Content-Type: application/json\r\n\r\n{"id": "a/b", "siblings": [')
            self._until_the_client_leaves(b'{"rfilename": "a.txt", "size": 1}, ' * 2000)

        def _endless_compressed(self) -> None:
            """A megabyte of zeros in a thousand bytes, again and again."""
            packer = zlib.compressobj(wbits=31)
            self._write(HEAD.encode() + b"Content-Encoding: gzip\r\n\r\n")
            self._until_the_client_leaves(lambda: packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_SYNC_FLUSH))

        def _endless_chunks(self) -> None:
            self._write(HEAD.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
            self._until_the_client_leaves(b"2710\r\n" + b"x" * 10000 + b"\r\n")

        def _endless_error(self) -> None:
            self._write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
            self._until_the_client_leaves(b"no " * 5000)

        def _endless_headers(self) -> None:
            self._write(HEAD.encode())
            self._until_the_client_leaves(b"X-More: " + b"x" * 5000 + b"\r\n")

        def _endless_redirects(self) -> None:
            self._write(
                b"HTTP/1.1 302 Found\r\nConnection: close\r\nContent-Length: 0\r\n"
                + f"Location: {self.path.partition('?')[0]}?{endless.requests}\r\n\r\n".encode()
            )

        def _endless_drip(self) -> None:
            self._write(HEAD.encode() + b"\r\n")
            self._until_the_client_leaves(b" ", 0.02)

        def _endless_bytes(self) -> None:
            """A byte of the range, then the end of the connection."""
            start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
            data = next(data for name, data in FILES.items() if name in self.path)
            self._write(
                b"HTTP/1.1 206 Partial Content\r\nConnection: close\r\n"
                + f"Content-Range: bytes {start}-{len(data) - 1}/{len(data)}\r\n".encode()
                + f"Content-Length: {len(data) - start}\r\n\r\n".encode()
                + data[start : start + 1]
            )

    return Handler


@pytest.fixture(params=["hub", "modelscope"])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[str, Hub, Endless]]:
    endless = Endless()
    base = {"hub": hub_handler, "modelscope": modelscope_handler}[request.param]
    with running_hub(lambda hub: endless_handler(base(hub), endless)) as hub:
        hub.repos[REPO] = Repo(dict(FILES), revisions=("main", "master"))
        yield request.param, hub, endless


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "MOST_ANSWER", LIMIT)
    monkeypatch.setattr(bounded, "_WINDOW", 0.2)
    monkeypatch.setattr(ranges, "_PAUSES", (0.0, 0.0))
    monkeypatch.setattr("quantkit.checkpoint.hub._PAUSES", (0.0,))
    monkeypatch.setattr(repository, "SMALL_FILE", LIMIT)
    monkeypatch.setattr("quantkit.checkpoint.huggingface.SMALL_FILE", LIMIT)
    hasty = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr("huggingface_hub.file_download.time", hasty)


def refusal(server: tuple[str, Hub, Endless], home: Path, **arguments: Any) -> str:
    kind, hub, _ = server
    prefix = "modelscope:" if kind == "modelscope" else ""
    variables = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    variables |= {"MODELSCOPE_ENDPOINT": hub.endpoint, "MODELSCOPE_CACHE": str(home)}
    results: list[dict[str, Any]] = []
    with environment(variables):
        thread = threading.Thread(
            target=lambda: results.append(opened({"source": prefix + REPO, **arguments})), daemon=True
        )
        thread.start()
        thread.join(20)
    assert results, "the client still reads"
    assert "message" in results[0], results[0]["files"]
    message: str = results[0]["message"]
    assert "\n" not in message and message.count(". ") == 0, message
    assert sum(path.stat().st_size for path in home.rglob("*") if path.is_file()) < 20 << 20
    return message


LISTS = {"hub": "/api/models/", "modelscope": "/repo/files"}
SMALL = {"hub": "/chat_template.jinja", "modelscope": "FilePath=chat_template.jinja"}


@pytest.mark.parametrize(
    ("way", "why"),
    [
        ("body", "bytes"),
        ("files", "answers with more than"),
        ("compressed", "answers with more than"),
        ("chunks", "answers with more than"),
        ("error", "answers with more than"),
        ("headers", ""),
        ("redirects", "redirect"),
        ("drip", "bytes in 0 seconds"),
    ],
)
def test_a_list_of_files_without_an_end_is_cut_off(
    server: tuple[str, Hub, Endless], way: str, why: str, tmp_path: Path
) -> None:
    endless = server[2]
    endless.path, endless.way = LISTS[server[0]], way
    assert why in refusal(server, tmp_path)
    assert 0 < endless.requests < 60
    assert endless.sent < 64 << 20


@pytest.mark.parametrize("way", ["body", "compressed", "chunks", "error", "headers", "redirects", "drip"])
def test_a_small_file_without_an_end_is_cut_off(server: tuple[str, Hub, Endless], way: str, tmp_path: Path) -> None:
    endless = server[2]
    endless.path, endless.way = SMALL[server[0]], way
    message = refusal(server, tmp_path)
    if way in ("body", "compressed", "chunks") and server[0] == "hub":
        assert f"sends more than the 14 bytes that chat_template.jinja of {REPO} can have" in message
    assert 0 < endless.requests < 60
    assert endless.sent < 64 << 20


@pytest.mark.parametrize("way", ["body", "compressed", "chunks", "error", "headers", "redirects", "drip"])
def test_a_weight_file_without_an_end_is_cut_off(server: tuple[str, Hub, Endless], way: str, tmp_path: Path) -> None:
    endless = server[2]
    endless.path, endless.way = "/store/", way
    refusal(server, tmp_path)
    assert 0 < endless.requests < 120
    assert endless.sent < 128 << 20


@pytest.mark.parametrize("way", ["bytes", "error", "redirects", "drip"])
def test_a_streamed_header_without_an_end_is_cut_off(
    server: tuple[str, Hub, Endless], way: str, tmp_path: Path
) -> None:
    endless = server[2]
    endless.path, endless.way = "/store/", way
    refusal(server, tmp_path, headers_only=True)
    assert 0 < endless.requests < 120


def test_a_list_with_an_absurd_small_file_is_refused_before_its_bytes(
    server: tuple[str, Hub, Endless], tmp_path: Path
) -> None:
    server[1].repos[REPO].stated_sizes["chat_template.jinja"] = 10**13
    assert "10 TB for chat_template.jinja" in refusal(server, tmp_path)
