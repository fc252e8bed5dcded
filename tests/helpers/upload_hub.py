"""The hub's upload side on the loopback interface, as strict as the hub: tokens, repositories, LFS, commits.

Speaks POST /api/repos/create, GET /api/models/ID, POST .../paths-info, .../preupload and .../commit, POST
/api/validate-yaml, the LFS batch endpoint with basic and multipart transfers, their PUTs on another host name (which
must not be shown the token) and the verify call. A commit may name only what was uploaded, whole and with its SHA-256.
What the client of today sends otherwise (Xet, of which the protocol is not public in this form) is switched off by
HF_HUB_DISABLE_XET. huggingface.co's rules for metadata: of these only the ones its documentation names.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

import quantkit.publish.card
from tests.helpers.hub_server import QuietServer

LARGE = 20_000
"""Bytes from which on a file goes through LFS, as binary ones always do (the hub: 10 MB)."""
PART = 150_000
"""Bytes from which on a transfer is in parts, and of each of them (the hub: 5 GB and some 16 MB)."""
_BINARY = (".gguf", ".safetensors", ".png")
LICENSES = set((Path(quantkit.publish.card.__file__).parent / "licenses.txt").read_text().split())


@dataclass
class UploadRepo:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    """Names of those kept in LFS."""
    commits: list[list[str]] = field(default_factory=list)
    """The paths of each."""


@dataclass
class UploadHub:
    """`tokens`: token -> the namespaces it may write to. `refuse`: (part of a path, status, message) to answer with."""

    tokens: dict[str, set[str]] = field(default_factory=lambda: {"hf_writer": {"me"}})
    repos: dict[str, UploadRepo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    """SHA-256 -> what was uploaded and verified."""
    refuse: list[tuple[str, int, str]] = field(default_factory=list)
    hold: str | None = None
    """The SHA-256 of an object of which only the first bytes are read, then nothing more happens."""
    waiting: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    received: dict[str, int] = field(default_factory=dict)
    """SHA-256 -> bytes received of it, over all tries."""
    faults: list[str] = field(default_factory=list)
    """What a client did that the hub would not stand."""
    requests: list[str] = field(default_factory=list)
    endpoint: str = ""


@contextmanager
def running_upload_hub() -> Iterator[UploadHub]:
    hub = UploadHub()
    server = QuietServer(("127.0.0.1", 0), _handler(hub))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield hub
    finally:
        hub.release.set()
        server.shutdown()
        server.server_close()


class Refused(Exception):
    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or {}


def check_metadata(content: str) -> None:
    """The rules of the hub's documentation for a model card; raises Refused with 400."""
    match = re.match(r"\s*---\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", content, re.DOTALL)
    try:
        fields = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError as error:
        raise Refused(400, f"metadata is no YAML: {error}".splitlines()[0]) from error
    if not isinstance(fields, dict):
        raise Refused(400, "metadata is no mapping")
    texts = ("library_name", "pipeline_tag", "license", "license_name", "license_link", "base_model_relation")
    for name in texts:
        if name in fields and not isinstance(fields[name], str):
            raise Refused(400, f'"{name}" must be a string')
    if "license" in fields and fields["license"] not in LICENSES:
        raise Refused(400, '"license" must be one of the identifiers of the documentation')
    for name in ("tags", "language"):
        values = fields.get(name, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise Refused(400, f'"{name}" must be a list of strings')
    for code in fields.get("language", []):
        if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|code|multilingual", code):
            raise Refused(400, f'"language" has {code!r}, which is no ISO 639 code')
    base = fields.get("base_model")
    if base is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", str(base)):
        raise Refused(400, '"base_model" must be the id of a model')
    if fields.get("base_model_relation", "quantized") not in ("quantized", "finetune", "adapter", "merge"):
        raise Refused(400, '"base_model_relation" is not known')


def _handler(hub: UploadHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def do_PUT(self) -> None:
            self._serve()

        def _serve(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            try:
                # read even if it is refused: unread bytes make the system reset the connection, and the answer is lost
                body = b"" if self.command == "PUT" else self._body()
                for part, status, message in hub.refuse:
                    if part in path:
                        raise Refused(status, message)
                if self.command == "PUT":
                    self._put(path)
                else:
                    self._answer(200, self._route(path, body))
            except Refused as refused:
                body = json.dumps({"error": refused.message}).encode()
                if path == "/api/validate-yaml":
                    body = json.dumps({"errors": [{"message": refused.message}], "warnings": []}).encode()
                self._answer(refused.status, body, {"X-Error-Message": refused.message, **refused.headers})
                self.close_connection = True
            except ConnectionError:
                self.close_connection = True

        def _route(self, path: str, body: bytes) -> bytes:
            if path == "/api/validate-yaml":
                check_metadata(json.loads(body)["content"])
                return json.dumps({"errors": [], "warnings": []}).encode()
            if path == "/api/repos/create":
                return self._create(json.loads(body))
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)", path):
                repo = self._repo(match[1], write=False)
                info = {"_id": "0", "id": match[1], "modelId": match[1], "private": repo.private, "siblings": []}
                return json.dumps({**info, "sha": self._commit_id(repo)}).encode()
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(paths-info|preupload|commit)/main", path):
                repo = self._repo(match[1], write=match[2] != "paths-info")
                if match[2] == "paths-info":
                    request = parse_qs(body.decode())["paths"]
                    return json.dumps([self._entry(repo, name) for name in request if name in repo.files]).encode()
                return self._preupload(repo, body) if match[2] == "preupload" else self._commit(match[1], repo, body)
            if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
                self._repo(match[1], write=True)
                return self._batch(match[1], json.loads(body))
            if match := re.fullmatch(r"/verify/([^/]+/[^/]+)", path):
                self._repo(match[1], write=True)
                request = json.loads(body)
                stored = hub.objects.get(request["oid"])
                if stored is None or len(stored) != request["size"]:
                    raise Refused(404, "no such object")
                return b"{}"
            if match := re.fullmatch(r"/complete/([0-9a-f]{64})", path):
                return self._complete(match[1], json.loads(body))
            raise Refused(404, f"there is no {path}")

        def _writable(self) -> set[str]:
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if token not in hub.tokens:
                raise Refused(401, "Invalid credentials in Authorization header")
            return hub.tokens[token]

        def _create(self, request: dict[str, object]) -> bytes:
            owner, name = request["organization"], request["name"]
            if request.get("type", "model") != "model":
                raise Refused(400, "not a model")
            if owner not in self._writable():
                raise Refused(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
            repo_id = f"{owner}/{name}"
            url = json.dumps({"url": f"{hub.endpoint}/{repo_id}"})
            if repo_id in hub.repos:
                self._answer(409, url.encode())
                raise ConnectionError
            private = request.get("visibility") == "private" or request.get("private") is True
            hub.repos[repo_id] = UploadRepo(private)
            return url.encode()

        def _repo(self, repo_id: str, *, write: bool) -> UploadRepo:
            mine = self._writable()
            repo = hub.repos.get(repo_id)
            if repo is None or (repo.private and repo_id.partition("/")[0] not in mine):
                raise Refused(404, "Repository not found", {"X-Error-Code": "RepoNotFound"})
            if write and repo_id.partition("/")[0] not in mine:
                raise Refused(403, "Authorization error.")
            return repo

        def _entry(self, repo: UploadRepo, name: str) -> dict[str, object]:
            data = repo.files[name]
            entry: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": _git_id(data)}
            if name in repo.large:
                entry["oid"] = _git_id(b"a pointer")
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            return entry

        def _preupload(self, repo: UploadRepo, body: bytes) -> bytes:
            files = []
            for file in json.loads(body)["files"]:
                if len(base64.b64decode(file["sample"], validate=True)) != min(512, file["size"]):
                    raise Refused(400, "the sample is not the file's first 512 bytes")
                large = file["path"].endswith(_BINARY) or file["size"] >= LARGE
                mode = {"uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
                files.append({"path": file["path"], **mode})
            return json.dumps({"files": files}).encode()

        def _batch(self, repo_id: str, request: dict[str, object]) -> bytes:
            if request["operation"] != "upload" or request["hash_algo"] != "sha256":
                raise Refused(422, "not an upload by sha256")
            port = urlsplit(hub.endpoint).port
            answers = []
            for item in request["objects"]:  # type: ignore[attr-defined]
                oid, size = item["oid"], item["size"]
                answer = {"oid": oid, "size": size}
                if oid not in hub.objects:
                    href = f"http://localhost:{port}/lfs/{oid}/{size}"
                    upload: dict[str, object] = {"href": href}
                    if size > PART:
                        count = -(-size // PART)
                        parts = {str(n + 1): f"{href}/{n}" for n in range(count)}
                        upload = {"href": f"{hub.endpoint}/complete/{oid}"}
                        upload["header"] = {"chunk_size": str(PART), **parts}
                    verify = {"href": f"{hub.endpoint}/verify/{repo_id}"}
                    answer["actions"] = {"upload": upload, "verify": verify}
                answers.append(answer)
            return json.dumps({"transfer": "basic", "objects": answers}).encode()

        def _put(self, path: str) -> None:
            match = re.fullmatch(r"/lfs/([0-9a-f]{64})/(\d+)(?:/(\d+))?", path)
            if match is None:
                raise Refused(404, f"there is no {path}")
            if self.headers.get("Authorization"):
                hub.faults.append("the store was shown the token")
                raise Refused(400, "Only one auth mechanism allowed")
            oid, size, part = match[1], int(match[2]), match[3]
            length = int(self.headers.get("Content-Length") or -1)
            expected = size if part is None else min(PART, size - int(part) * PART)
            if length != expected:
                raise Refused(411, f"{length} bytes for {expected}")
            if hub.hold == oid:
                hub.received[oid] = hub.received.get(oid, 0) + len(self.rfile.read(1000))
                hub.waiting.set()
                hub.release.wait(60)
                raise ConnectionError
            data = self.rfile.read(length)
            hub.received[oid] = hub.received.get(oid, 0) + len(data)
            if part is None:
                if hashlib.sha256(data).hexdigest() != oid:
                    raise Refused(400, "the bytes have another sha256")
                hub.objects[oid] = data
            else:
                hub.objects[f"{oid}/{part}"] = data
            self._answer(200, b"", {"ETag": f'"{hashlib.md5(data).hexdigest()}"'})

        def _complete(self, oid: str, request: dict[str, object]) -> bytes:
            parts = [hub.objects[f"{oid}/{item['partNumber'] - 1}"] for item in request["parts"]]  # type: ignore
            tags = [item["etag"] for item in request["parts"]]  # type: ignore[attr-defined]
            if tags != [f'"{hashlib.md5(part).hexdigest()}"' for part in parts]:
                raise Refused(400, "the parts have other tags")
            whole = b"".join(parts)
            if hashlib.sha256(whole).hexdigest() != oid:
                raise Refused(400, "the parts make another sha256")
            hub.objects[oid] = whole
            return b"{}"

        def _commit(self, repo_id: str, repo: UploadRepo, body: bytes) -> bytes:
            header, *lines = [json.loads(line) for line in body.splitlines()]
            if header["key"] != "header" or not header["value"]["summary"]:
                raise Refused(400, "the commit has no summary")
            files, large = {}, set()
            for line in lines:
                value = line["value"]
                if line["key"] == "file" and value["encoding"] == "base64":
                    files[value["path"]] = base64.b64decode(value["content"], validate=True)
                    if len(files[value["path"]]) >= LARGE or value["path"].endswith(_BINARY):
                        raise Refused(400, f"{value['path']} must go through LFS")
                elif line["key"] == "lfsFile" and value["algo"] == "sha256":
                    data = hub.objects.get(value["oid"])
                    if data is None or len(data) != value["size"]:
                        raise Refused(400, f"{value['path']} was never uploaded")
                    files[value["path"]], _ = data, large.add(value["path"])
                else:
                    raise Refused(400, f"unknown operation {line['key']}")
            if "README.md" in files:
                check_metadata(files["README.md"].decode())
            repo.files.update(files)
            repo.large = (repo.large - set(files)) | large
            repo.commits.append(sorted(files))
            commit = self._commit_id(repo)
            return json.dumps({"commitUrl": f"{hub.endpoint}/{repo_id}/commit/{commit}", "commitOid": commit}).encode()

        def _commit_id(self, repo: UploadRepo) -> str:
            return hashlib.sha1(json.dumps(repo.commits).encode()).hexdigest()

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            kind = {"Content-Type": "application/json"}
            for key, value in {**kind, **(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

    return Handler


def _git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
