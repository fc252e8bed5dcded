"""A small hub on the loopback interface, as far as a client that reads models and datasets can tell.

Serves GET /api/models/ORG/NAME[/revision/REV] and HEAD and GET /ORG/NAME/resolve/REV/FILE with ranges, ETag,
X-Repo-Commit and the hub's X-Error-Code values, and the same for datasets, whose names here begin with `datasets/`.
Weight files are redirected, as the hub does, to a store on another host name, which must not be shown the token.
Connections can be made to drop in the middle of a file.
"""

import hashlib
import json
import re
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

_WEIGHTS = (".safetensors", ".bin")


@dataclass
class Repo:
    """One repository with one commit; `tokens` (where given) may read it, `gated` decides how others are refused."""

    files: dict[str, bytes]
    revisions: tuple[str, ...] = ("main",)
    tokens: tuple[str, ...] = ()
    gated: bool = False
    stated_sizes: dict[str, int] = field(default_factory=dict)
    """Sizes the listing gives in place of the true ones."""

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
    ignore_ranges: bool = False
    requests: list[Served] = field(default_factory=list)
    endpoint: str = ""

    def sent(self, ending: str) -> int:
        """Body bytes sent for paths that end so."""
        return sum(served.sent for served in self.requests if served.path.endswith(ending))


class QuietServer(ThreadingHTTPServer):
    """A server that is silent about a client that goes away: the client's stderr is tested in the same process."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*_)  # type: ignore[arg-type]


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    server = QuietServer(("127.0.0.1", 0), _handler(hub))
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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._route()

        def do_GET(self) -> None:
            self._route()

        def _route(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if match := re.fullmatch(
                r"/api/(?:models/|(?=datasets/))([^/]+/[^/]+|datasets/[^/]+/[^/]+)(?:/revision/(.+))?", path
            ):
                self._model_info(match[1], match[2] or "main")
            elif match := re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self._resolve(match[1], match[2], match[3])
            elif match := re.fullmatch(r"/store/((?:datasets/)?[^/]+/[^/]+)/(.+)", path):
                self._content(hub.repos[match[1]].files[match[2]], match[2], {})
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
            if name.endswith(_WEIGHTS):
                port = urlsplit(hub.endpoint).port
                linked = {"X-Linked-Etag": etag, "X-Linked-Size": str(len(data))}
                self._answer(
                    302, b"", {**commit, **linked, "Location": f"http://localhost:{port}/store/{repo_id}/{name}"}
                )
            else:
                self._content(data, name, {**commit, "ETag": etag})

        def _content(self, data: bytes, name: str, headers: dict[str, str]) -> None:
            if hub.failures.get(name, 0) > 0:
                hub.failures[name] -= 1
                self._answer(503, b"")
                return
            byte_range = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if byte_range is None or hub.ignore_ranges:
                self._answer(200, data, headers, name)
                return
            start = int(byte_range[1])
            stop = min(int(byte_range[2]) + 1 if byte_range[2] else len(data), len(data))
            headers = {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
            self._answer(206, data[start:stop], headers, name)

        def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, name: str = "") -> None:
            self.send_response(status)
            for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            sent = 0 if self.command == "HEAD" else self._send(body, name)
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
                    self.wfile.write(body)
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
