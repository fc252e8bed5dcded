"""A small hub on the loopback interface, as far as a client that reads models and datasets can tell.

Serves GET /api/models/ORG/NAME[/revision/REV] and HEAD and GET /ORG/NAME/resolve/REV/FILE with ranges, ETag,
X-Repo-Commit and the hub's X-Error-Code values, and the same for datasets, whose names here begin with `datasets/`.
Weight files are redirected, as the hub does, to a store on another host name, which must not be shown the token. The
address is signed: it serves `signed_uses` requests, then the store refuses it. Connections can be made to drop in the
middle of a file, answers to fail, bodies to be slow.
"""

import hashlib
import json
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.helpers.ports import free_port

WEIGHTS = (".safetensors", ".bin")


@dataclass
class Repo:
    """One repository with one commit; `tokens` (where given) may read it, `gated` decides how others are refused."""

    files: dict[str, bytes]
    revisions: tuple[str, ...] = ("main",)
    tokens: tuple[str, ...] = ()
    gated: bool = False
    stated_sizes: dict[str, int] = field(default_factory=dict)
    """Sizes the listing gives in place of the true ones."""
    stated_hashes: dict[str, str] = field(default_factory=dict)
    """sha256 that ModelScope's listing gives in place of the true ones."""
    linked_hashes: dict[str, str] = field(default_factory=dict)
    """sha256 that ModelScope states with the redirection to a file, in place of the true ones."""
    names_commit: bool = True
    """Whether ModelScope's listing names the commit."""

    @property
    def commit(self) -> str:
        return hashlib.sha1(b"".join(sorted(name.encode() for name in self.files))).hexdigest()


@dataclass
class Drop:
    """Close the connection after `after` bytes of the body, `times` times; `reset` sends RST instead of FIN."""

    after: int
    times: int = 1
    reset: bool = False


@dataclass(frozen=True)
class Served:
    """One request as it was answered; `sent` counts the body's bytes."""

    method: str
    path: str
    range: str | None
    authorization: str | None
    status: int
    sent: int
    host: str


@dataclass
class Hub:
    """The hub's state: what the test sets before, and reads after, the client's visit."""

    repos: dict[str, Repo] = field(default_factory=dict)
    drops: dict[str, Drop] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    """File name -> how many times it is answered with 503."""
    answers: dict[str, list[tuple[int, dict[str, str]]]] = field(default_factory=dict)
    """File name -> statuses and headers that come first, one a request, in place of the file."""
    etags: dict[str, list[str]] = field(default_factory=dict)
    """File name -> ETags that the store states, one an answer; the last one stays."""
    answers_left: int | None = None
    """How many more ranges of weight files the store sends before it refuses all of them with 409."""
    ignore_ranges: bool = False
    signed_uses: int | None = None
    slow: float = 0.0
    """Seconds before each eighth of a body."""
    signatures: dict[str, int] = field(default_factory=dict)
    """Signature -> its requests so far."""
    ranges: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    """File name -> first and last byte plus one of the bytes that the store sent, in order."""
    requests: list[Served] = field(default_factory=list)
    endpoint: str = ""
    busy: int = 0
    idle: threading.Condition = field(default_factory=threading.Condition, repr=False)

    def settle(self) -> None:
        """Wait until every answer is written down: a client may have its last byte before that."""
        with self.idle:
            self.idle.wait_for(lambda: self.busy == 0, timeout=60)

    def stored(self, name: str) -> list[tuple[int, int]]:
        """First byte and end of each range of a weight file that the store sent, in order."""
        self.settle()
        return self.ranges.get(name, [])

    def sent(self, ending: str) -> int:
        """Body bytes sent for paths that end so."""
        self.settle()
        return sum(served.sent for served in self.requests if served.path.endswith(ending))


class QuietServer(ThreadingHTTPServer):
    """A server that is silent about a client that goes away: the client's stderr is tested in the same process."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(*_)  # type: ignore[arg-type]


@contextmanager
def running_hub(handler_of: "Callable[[Hub], type[BaseHTTPRequestHandler]] | None" = None) -> Iterator[Hub]:
    hub = Hub()
    server = QuietServer(("127.0.0.1", 0), (handler_of or hub_handler)(hub))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def closed_port() -> str:
    """An endpoint nobody listens on."""
    return f"http://127.0.0.1:{free_port()}"


def hub_handler(hub: Hub) -> Any:
    """The handler class of a hub."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._one()

        def do_GET(self) -> None:
            self._one()

        def _one(self) -> None:
            with hub.idle:
                hub.busy += 1
            try:
                self._route()
            finally:
                with hub.idle:
                    hub.busy -= 1
                    hub.idle.notify_all()

        def _route(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if match := re.fullmatch(
                r"/api/(?:models/|(?=datasets/))([^/]+/[^/]+|datasets/[^/]+/[^/]+)(?:/revision/(.+))?", path
            ):
                self._model_info(match[1], match[2] or "main")
            elif match := re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self._resolve(match[1], match[2], match[3])
            elif match := re.fullmatch(r"/store/((?:datasets/)?[^/]+/[^/]+)/(.+)", path):
                self._store(match[1], match[2])
            else:
                self._answer(404, b"")

        def _refused(self, repo_id: str, revision: str, *, content: bool) -> bool:
            repo = hub.repos.get(repo_id)
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if token == "hf_invalid":
                self._answer(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"})
            elif repo is None or (repo.tokens and token not in repo.tokens and not repo.gated):
                self._answer(401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            elif repo.gated and content and token not in repo.tokens:
                self._answer(403 if token else 401, b"", {"X-Error-Code": "GatedRepo"})
            elif revision not in (*repo.revisions, repo.commit):
                self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
            else:
                return False
            return True

        def _model_info(self, repo_id: str, revision: str) -> None:
            if self._refused(repo_id, revision, content=False):
                return
            repo = hub.repos[repo_id]
            sizes = {name: len(data) for name, data in repo.files.items()} | repo.stated_sizes
            siblings = [{"rfilename": name, "size": size} for name, size in sizes.items()]
            repo_id = repo_id.removeprefix("datasets/")
            info = {"_id": "0", "id": repo_id, "modelId": repo_id, "sha": repo.commit, "siblings": siblings}
            self._answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

        def _resolve(self, repo_id: str, revision: str, name: str) -> None:
            if self._refused(repo_id, revision, content=True):
                return
            repo = hub.repos[repo_id]
            commit = {"X-Repo-Commit": repo.commit}
            if name not in repo.files:
                self._answer(404, b"", {**commit, "X-Error-Code": "EntryNotFound"})
                return
            data = repo.files[name]
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            if name.endswith(WEIGHTS):
                linked = {"X-Linked-Etag": etag, "X-Linked-Size": str(len(data))}
                self._answer(302, b"", {**commit, **linked, "Location": self._signed(repo_id, name)})
            else:
                self._content(data, name, {**commit, "ETag": etag})

        def _signed(self, repo_id: str, name: str) -> str:
            """A new address of a weight file in the store."""
            signature = str(len(hub.signatures))
            hub.signatures[signature] = 0
            port = urlsplit(hub.endpoint).port
            return f"http://localhost:{port}/store/{repo_id}/{name}?signature={signature}"

        def _store(self, repo_id: str, name: str) -> None:
            signature = urlsplit(self.path).query.removeprefix("signature=")
            if self.headers.get("Authorization") or self.headers.get("Cookie"):
                self._answer(400, b"the store must not be shown the token")
            elif signature not in hub.signatures or hub.signatures[signature] == hub.signed_uses:
                self._answer(403, b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>")
            elif hub.answers_left == 0:
                self._answer(409, b"")
            else:
                hub.answers_left = None if hub.answers_left is None else hub.answers_left - 1
                hub.signatures[signature] += 1
                data = hub.repos[repo_id].files[name]
                etags = hub.etags.get(name)
                etag = (etags.pop(0) if len(etags) > 1 else etags[0]) if etags else hashlib.md5(data).hexdigest()
                self._content(data, name, {"ETag": f'"{etag}"'})

        def _fails(self, name: str) -> bool:
            """Whether this request for a file was answered with an error."""
            if hub.failures.get(name, 0) > 0:
                hub.failures[name] -= 1
                self._answer(503, b"")
                return True
            if waiting := hub.answers.get(name):
                status, more = waiting.pop(0)
                self._answer(status, b"", more)
                return True
            return False

        def _content(self, data: bytes, name: str, headers: dict[str, str]) -> None:
            if self._fails(name):
                return
            byte_range = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if byte_range is None or hub.ignore_ranges:
                self._answer(200, data, headers, name)
                return
            start = int(byte_range[1])
            if start >= len(data):
                self._answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            stop = min(int(byte_range[2]) + 1 if byte_range[2] else len(data), len(data))
            headers = {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
            self._answer(206, data[start:stop], headers, name)
            hub.ranges.setdefault(name, []).append((start, start + self._last_sent))

        def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, name: str = "") -> None:
            self.send_response(status)
            for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            sent = self._last_sent = 0 if self.command == "HEAD" else self._send(body, name)
            hub.requests.append(
                Served(
                    self.command,
                    urlsplit(self.path).path,
                    self.headers.get("Range"),
                    self.headers.get("Authorization"),
                    status,
                    sent,
                    (self.headers.get("Host") or "").partition(":")[0],
                )
            )

        def _send(self, body: bytes, name: str) -> int:
            drop = hub.drops.get(name)
            if drop is None or drop.times <= 0 or len(body) <= drop.after:
                try:
                    step = max(1, -(-len(body) // 8)) if hub.slow else len(body) or 1
                    for start in range(0, len(body), step):
                        time.sleep(hub.slow)
                        self.wfile.write(body[start : start + step])
                except OSError:  # the client had enough of it
                    self.close_connection = True
                return len(body)
            drop.times -= 1
            self.wfile.write(body[: drop.after])
            self.wfile.flush()
            self.close_connection = True
            if drop.reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            else:
                self.connection.shutdown(socket.SHUT_RDWR)
            return drop.after

    return Handler
