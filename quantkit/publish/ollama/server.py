"""Ollama's HTTP API, as far as publishing needs it: blobs, create, show, copy, push.

The standard library is enough. The PyPI client `ollama` (0.6) cannot ask whether a blob is on the server. It does not
report the progress of an upload, and drops the `requires` of a model. Source: docs/api.md and server/routes.go of
ollama/ollama.
"""

import hashlib
import http.client
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from quantkit.errors import PublishError, UsageError
from quantkit.progress import SILENT, Progress
from quantkit.publish.ollama.connection import ConnectionBroken, Response, Upload, json_body, send_request
from quantkit.publish.ollama.modelfile import Modelfile

DEFAULT_HOST = "http://127.0.0.1:11434"
KEYS_PAGE = "https://ollama.com/settings/keys"

_CHUNK = 1 << 20
_PORTS = {"http": 80, "https": 443}
_UNAUTHORIZED = re.compile(
    r"unauthori[sz]ed|not authori[sz]ed|access denied|unknown key|not signed in|\b40[13]\b", re.I
)
# Two creates at once share blobs, and one may remove what the other still reads (0.33); a repeat works.
_BLOB_REMOVED = re.compile(r"no such file or directory|cannot find the file specified", re.I)
_DETECTED = re.compile(r"using autodetected template (\S+)")


@dataclass(frozen=True)
class StoredModel:
    """What the server reports of a model: the text it renders prompts with, and the system message."""

    template: str
    system: str


def parse_host(text: str | None) -> str:
    """The server's URL from --host or OLLAMA_HOST, by Ollama's own rules: `HOST`, `HOST:PORT`, `http(s)://...`.

    Raises:
        UsageError: another scheme, a port that is not a number, a space or a character that is not printable.
    """
    text = (text or "").strip().strip("\"'")
    if not text:
        return DEFAULT_HOST
    scheme, mark, address = text.partition("://")
    if not mark:
        scheme, address = "http", text
    try:
        if not address.isprintable() or " " in address:
            raise ValueError(address)
        parts = urlsplit(f"//{address}")
        port = parts.port or (_PORTS[scheme] if mark else 11434)
    except (ValueError, KeyError):
        raise UsageError(f"the Ollama host {text!r} is not an address; write HOST, HOST:PORT or https://HOST") from None
    host = parts.hostname or "127.0.0.1"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}{parts.path.rstrip('/')}"


def digest_of(path: Path, progress: Progress = SILENT) -> str:
    """The digest of a file as Ollama names its blobs: `sha256:` and hexadecimal digits. `progress` counts bytes."""
    sha256 = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                sha256.update(chunk)
                progress.advance(len(chunk), path.name)
    except OSError as error:
        raise PublishError(f"cannot read {path} ({error.strerror or error}); check the path") from error
    return f"sha256:{sha256.hexdigest()}"


def create_request(model: str, modelfile: Modelfile, files: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The body of POST /api/create with the content of the Modelfile.

    `files` are the GGUF's file names and their digests, that of ADAPTER too; without them the model's source is the
    name in its FROM.
    """
    body: dict[str, Any] = {"model": model}
    if files is not None:
        adapter = PurePosixPath(modelfile.adapter).name if modelfile.adapter else None
        body["files"] = {name: digest for name, digest in files.items() if name != adapter}
        if adapter is not None:
            body["adapters"] = {adapter: files[adapter]}
    else:
        (body["from"],) = modelfile.sources
    parameters: dict[str, Any] = {}
    for name, value in modelfile.parameters:
        if name == "stop":
            parameters.setdefault("stop", []).append(value)
        else:
            parameters[name] = value
    fields = {
        "template": modelfile.template,
        "system": modelfile.system,
        "license": list(modelfile.licenses),
        "parameters": parameters,
        "messages": [{"role": role, "content": content} for role, content in modelfile.messages],
        "requires": modelfile.requires,
    }
    return body | {key: value for key, value in fields.items() if value}


@dataclass(frozen=True)
class Server:
    """A running Ollama at `url` (see `parse_host`). Every method raises PublishError in one sentence."""

    url: str

    def version(self) -> str:
        """The server's version, such as "0.32.15"; this cheap request also shows whether a server answers."""
        return str(self._json("GET", "/api/version").get("version", ""))

    def has_blob(self, digest: str) -> bool:
        """Whether the server has the blob. Raises PublishError for another answer than 200 and 404."""
        with self._request("HEAD", f"/api/blobs/{digest}") as response:
            if response.status not in (200, 404):
                raise PublishError(
                    f"the Ollama server answered {response.status} to the question whether it has the blob {digest};"
                    " check --host and the server's log"
                )
            return response.status == 200

    def send_blob(self, path: Path, digest: str, progress: Progress = SILENT) -> None:
        """Upload a file under its digest. `progress` counts the bytes sent."""
        size = path.stat().st_size
        body = Upload(path, progress)
        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        try:
            with body, self._request("POST", f"/api/blobs/{digest}", body, headers) as response:
                if response.status not in (200, 201):
                    raise PublishError(f"the Ollama server did not take {path.name}: {response.error_text()}")
        except ConnectionBroken as broken:
            raise PublishError(
                f"the Ollama server at {self.url} went away after {body.sent} of {size} bytes of {path.name}"
                f" ({broken.why}); start it again and repeat the command, which sends only what is missing"
            ) from broken

    def create(self, request: Mapping[str, Any], status: Callable[[str], object] = lambda text: None) -> str | None:
        """POST /api/create with the body of `create_request`, repeated once if another create removed its blob.

        Returns the name of Ollama's built-in template if the server stored that one, else None.
        """
        name = request["model"]
        error = ""
        for _ in range(2):
            error, detected = "", None
            for line in self._stream("/api/create", request, f"making {name}"):
                if "error" in line:
                    error = str(line["error"])
                    break
                status(text := str(line.get("status", "")))
                if match := _DETECTED.fullmatch(text):
                    detected = match[1]
            if not error:
                return detected
            if not _BLOB_REMOVED.search(error):
                raise PublishError(f"the Ollama server could not create {name}: {error}")
        raise PublishError(
            f"the Ollama server could not create {name}, twice: {error}; another create may be running there, so repeat"
            " the command later"
        )

    def show(self, name: str) -> StoredModel:
        """What the server stored under `name`: POST /api/show."""
        value = self._json("POST", "/api/show", {"model": name})
        return StoredModel(str(value.get("template") or ""), str(value.get("system") or ""))

    def copy(self, source: str, destination: str) -> None:
        """Give a model another name: the same manifest."""
        body = {"source": source, "destination": destination}
        with self._request("POST", "/api/copy", *json_body(body)) as response:
            if response.status != 200:
                raise PublishError(
                    f"the Ollama server could not copy {source} to {destination}: {response.error_text()}"
                )

    def push(
        self, name: str, *, insecure: bool = False, progress: Callable[[str, str, int, int], object] | None = None
    ) -> None:
        """POST /api/push; `progress` gets the status, and the digest, bytes done and bytes in all of a layer."""
        body = {"model": name, "insecure": insecure}
        for line in self._stream("/api/push", body, f"pushing {name}"):
            if "error" in line:
                raise PublishError(_push_error(name, str(line["error"])))
            if progress is not None:
                amounts = [line.get(key) or 0 for key in ("completed", "total")]
                progress(str(line.get("status", "")), str(line.get("digest") or ""), *map(int, amounts))

    def _stream(self, path: str, body: Mapping[str, Any], action: str) -> Iterator[dict[str, Any]]:
        """The lines of an answer, up to `success`; a refusal before the first line is returned as a line too."""
        try:
            with self._request("POST", path, *json_body(body)) as response:
                if response.status != 200:
                    text = response.error_text()
                    yield {"error": text if str(response.status) in text else f"{response.status}: {text}"}
                    return
                for line in response.lines():
                    yield line
                    if line.get("status") == "success" or "error" in line:
                        return
        except ConnectionBroken as broken:
            raise PublishError(
                f"the Ollama server at {self.url} went away while {action} ({broken.why}); start it again and repeat"
                " the command"
            ) from broken
        raise PublishError(f"the Ollama server stopped while {action} and gave no reason; see its own log")

    def _json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        sent, headers = (None, None) if body is None else json_body(body)
        with self._request(method, path, sent, headers) as response:
            try:
                value = json.loads(response.read())
            except (ValueError, RecursionError, OSError, http.client.HTTPException):
                value = None
            if isinstance(value, dict) and "error" in value and body is not None:
                raise PublishError(f"the Ollama server could not show {body.get('model')}: {value['error']}")
            if response.status != 200 or not isinstance(value, dict):
                raise PublishError(f"the server at {self.url} is not an Ollama server; name one with --host")
            return value

    def _request(
        self, method: str, path: str, body: bytes | Upload | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        return send_request(self.url, method, path, body, headers)


def _push_error(name: str, error: str) -> str:
    if not _UNAUTHORIZED.search(error):
        return f"the Ollama server could not push {name}: {error}"
    namespace = name.rsplit("/", 1)[0] if "/" in name else name
    return (
        f"{name} was refused by the registry: this machine's key is not registered there, or not with {namespace};"
        f" run `ollama signin`, or add the public key beside the server (~/.ollama/id_ed25519.pub) at {KEYS_PAGE};"
        f" push only to your own name (the registry answered: {error})"
    )
