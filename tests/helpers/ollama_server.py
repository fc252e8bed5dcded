"""A stand-in for an Ollama server on the loopback interface, with a registry behind it.

It answers as docs/api.md and server/ of github.com/ollama/ollama have it, and is stricter than they are: a field it
does not know, a parameter of the wrong kind, a malformed digest or name is refused, so that a slip of the client shows.
Models are manifests of layers, as Ollama stores them: what a push sends are the layers that the registry lacks. It
loads models and renders prompts (ollama_runner.py), and generates nothing.

docs/dev/testing.md has the table of what was seen on real servers and where it is here.
"""

import hashlib
import json
import re
import socket
import struct
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import gguf

from tests.helpers.ollama_runner import CHATML as RUNNERS_CHATML
from tests.helpers.ollama_runner import Host, LoadError, Runner, load, rendered_go, rendered_jinja

VERSION = "0.32.15"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAItest"

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NAME = re.compile(r"(?:[\w.:-]+/)?(?:\w[\w-]{0,79}/)?\w[\w.-]{0,79}(?::\w[\w.-]{0,79})?")
_FIELDS = {
    *("model", "from", "files", "template", "system", "license", "parameters", "messages", "requires", "stream"),
    *("quantize", "adapters", "renderer", "parser", "info"),
}
_INTEGERS = {
    *("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "seed", "num_predict", "top_k"),
    *("repeat_last_n", "draft_num_predict"),
}
_FLOATS = {
    *("top_p", "min_p", "temperature", "repeat_penalty", "presence_penalty", "frequency_penalty"),
}
_DEPRECATED = {
    *("mirostat", "mirostat_tau", "mirostat_eta", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock"),
    *("penalize_newline",),
}
_QUANTIZATIONS = {"F32", "F16", "BF16", "Q8_0", "Q4_K_S", "Q4_K_M"}
_NO_TEMPLATE = "{{ .Prompt }}"


class BuiltIn(NamedTuple):
    """A template of the server's own: the Jinja it is recognised by, what is stored instead, and its stops."""

    name: str
    jinja: str
    go: str
    stops: tuple[str, ...] = ()


CHATML = BuiltIn(
    "chatml",
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n",
    ("<|im_start|>", "<|im_end|>"),
)


@dataclass
class Ollama:
    """The server's state: what a test sets before, and reads after, the client's visit."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Full name -> {"config": {...}, "layers": [(kind, digest)]}."""
    registry: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    requests: list[tuple[str, str, int]] = field(default_factory=list)
    """Method, path, status of every request that was answered."""
    pushed_layers: list[tuple[str, str]] = field(default_factory=list)
    """(kind, digest) of what pushes sent, in order."""
    version: str = VERSION
    die_after: int | None = None
    """Break the connection after so many bytes of the next blob."""
    silent_after: str | None = None
    """Break the connection after this status of the next create or push."""
    unknown_key: bool = False
    unauthorized_status: int = 200
    """200: the refusal comes as a line of the stream; else as this HTTP status."""
    create_error: str | None = None
    races: int = 0
    """So many of the next creates find that another one removed their parameter blob."""
    rewrites: bool = False
    """Whether a GGUF is rewritten on import, under another digest, and the original forgotten."""
    go_template: bool | None = None
    """OLLAMA_GO_TEMPLATE of the server; None where it is not set."""
    index: tuple[BuiltIn, ...] = (CHATML,)
    host: Host = field(default_factory=Host)
    runners: dict[str, Runner] = field(default_factory=dict)
    """Digest of a weight file -> what it is loaded with."""
    warnings: list[str] = field(default_factory=list)
    """Lines of the server's log."""
    url: str = ""

    def uploads(self) -> int:
        return sum(method == "POST" and path.startswith("/api/blobs/") for method, path, _ in self.requests)

    def layer(self, name: str, kind: str) -> Any:
        """The text, parameters or messages of a model; None where it has no such layer."""
        digest = next((digest for layer, digest in self.models[name]["layers"] if layer == kind), None)
        if digest is None:
            return None
        data = self.blobs[digest]
        return json.loads(data) if kind in ("params", "messages") else data.decode()

    def jinja(self, name: str) -> str:
        """The chat template in a model's GGUF, or an empty text."""
        digests = [digest for kind, digest in self.models[name]["layers"] if kind.startswith("model ")]
        return next((text for digest in digests if (text := _chat_template(self.blobs[digest]))), "")

    def shown_template(self, name: str) -> str:
        """What /api/show gives as the template of a model: what its prompts are rendered with.

        From 0.30 on that is the GGUF's own if the GGUF's has tools or thinking and the TEMPLATE has not. For a model
        without a TEMPLATE 0.32 prints a bare prompt, and 0.33 the GGUF's own.
        """
        stored, jinja = self.layer(name, "template"), self.jinja(name)
        if jinja and not self._renders_go(name):
            return jinja if stored or self._at_least(0, 33) else _NO_TEMPLATE
        return str(stored or _NO_TEMPLATE)

    def _renders_go(self, name: str) -> bool:
        """Whether Ollama renders the prompts of a model itself, by its TEMPLATE."""
        stored, jinja = self.layer(name, "template"), self.jinja(name)
        if not self._renders_jinja() or (stored and (self.go_template or not jinja)):
            return True
        if stored is None or self.go_template is False:
            return False
        more = _jinja_features(jinja) - {word for word in ("Tools", "Thinking") if f".{word}" in stored}
        return not more or {".Tools", ".ToolCalls"} <= set(re.findall(r"\.\w+", stored))

    def prompt(self, name: str, messages: list[dict[str, str]]) -> str:
        """The prompt of a conversation; loads the model. A system text of the model comes first if there is none."""
        system = self.layer(name, "system")
        if system and not any(message["role"] == "system" for message in messages):
            messages = [{"role": "system", "content": system}, *messages]
        runner = self.loaded(name)
        if not self._renders_go(name):
            return rendered_jinja(runner.jinja, messages, _special_tokens(self.blobs[self._weights(name)]))
        stored = self.layer(name, "template")
        return rendered_go(stored, messages) if stored else messages[-1]["content"]

    def loaded(self, name: str) -> Runner:
        """The runner of a model's weights. One that has them keeps what it renders with. Raises LoadError."""
        digest = self._weights(name)
        parameters = self.layer(name, "params") or {}
        jinja = RUNNERS_CHATML if self._renders_go(name) else self.jinja(name) or RUNNERS_CHATML
        known = self.runners.get(digest)
        runner = load(self.host, _layers(self.blobs[digest]), parameters, known.jinja if known else jinja)
        self.warnings += [*runner.warnings] if known is None else []
        self.runners[digest] = runner
        return runner

    def _weights(self, name: str) -> str:
        """The digest of a model's first weight file."""
        return next(str(digest) for kind, digest in self.models[name]["layers"] if kind.startswith("model "))

    def _renders_jinja(self) -> bool:
        return self._at_least(0, 30)

    def _at_least(self, *version: int) -> bool:
        """A server that was built without a version stamp reports 0.0.0 and is a new one."""
        return self.version == "0.0.0" or tuple(map(int, self.version.split("-")[0].split(".")[:2])) >= version

    def put(self, data: bytes) -> str:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs[digest] = data
        return digest


class _Refused(Exception):
    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


def full_name(name: str) -> str:
    if not _NAME.fullmatch(name) or ".." in name:
        raise _Refused("invalid model name")
    return name if ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    ollama: Ollama

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/api/version":
            self._answer(200, {"version": self.ollama.version})
        else:
            self._answer(404, None)

    def do_HEAD(self) -> None:
        digest = self.path.removeprefix("/api/blobs/")
        if not _DIGEST.fullmatch(digest):
            self._answer(400, None)
        else:
            self._answer(200 if digest in self.ollama.blobs else 404, None)

    def do_POST(self) -> None:
        try:
            if self.path.startswith("/api/blobs/"):
                self._blob(self.path.removeprefix("/api/blobs/"))
                return
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/api/create":
                self._create(body)
            elif self.path == "/api/show":
                self._show(body)
            elif self.path == "/api/copy":
                self._copy(body)
            elif self.path == "/api/push":
                self._push(body)
            elif self.path == "/api/chat":
                self._chat(body)
            else:
                self._answer(404, None)
        except _Refused as refused:
            self._answer(refused.status, {"error": str(refused)})

    def _blob(self, digest: str) -> None:
        ollama = self.ollama
        if not _DIGEST.fullmatch(digest):
            raise _Refused("invalid digest format")
        left, data = int(self.headers["Content-Length"]), bytearray()
        while left:
            part = self.rfile.read(min(left, 1 << 16))
            if not part:
                return
            left -= len(part)
            data += part
            if ollama.die_after is not None and len(data) >= ollama.die_after:
                ollama.die_after = None
                self._break()
                return
        if digest in ollama.blobs:
            self._answer(200, None)
            return
        actual = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if actual != digest:
            raise _Refused(f'digest mismatch, expected "{digest}", got "{actual}"')
        ollama.blobs[digest] = bytes(data)
        self._answer(201, None)

    def _create(self, body: dict[str, Any]) -> None:
        ollama = self.ollama
        unknown = set(body) - _FIELDS
        if unknown:
            raise _Refused(f"the stand-in knows no field {sorted(unknown)}")
        name = full_name(body["model"])
        if ("files" in body) == ("from" in body):
            raise _Refused("neither 'from' or 'files' was specified")
        parameters = _checked_parameters(body.get("parameters", {}), ollama.warnings)
        if body.get("quantize"):
            if body["quantize"].upper() not in _QUANTIZATIONS:
                raise _Refused(f"unsupported quantization type {body['quantize']}")
            raise _Refused("the stand-in quantizes nothing; send the quantized GGUF")
        for file, digest in (body.get("files", {}) | body.get("adapters", {})).items():
            if "/" in file or "\\" in file or ":" in file:
                raise _Refused(f"file path must be relative: {file}")
            if not _DIGEST.fullmatch(digest):
                raise _Refused(f"invalid digest for {file}")
            if digest not in ollama.blobs:
                raise _Refused(f"blob not found for {file} (digest {digest})")
        self._start_lines()
        self._line({"status": "parsing GGUF"})
        if ollama.silent_after == "parsing GGUF":
            ollama.silent_after = None
            self._break()
            return
        if ollama.create_error:
            self._end_lines({"error": ollama.create_error})
            return
        if "from" in body:
            source = full_name(body["from"])
            if source not in ollama.models:
                self._end_lines({"error": "pull model manifest: file does not exist"})
                return
            layers = dict(ollama.models[source]["layers"])
            config = dict(ollama.models[source]["config"])
        else:
            if not all(ollama.blobs[digest][:4] == b"GGUF" for digest in body["files"].values()):
                self._end_lines({"error": "unknown type"})
                return
            layers = {
                f"{'projector' if _is_projector(ollama.blobs[digest]) else 'model'} {file}": digest
                for file, digest in sorted(body["files"].items())
            }
            if not all(_kind(ollama.blobs[digest]) == "adapter" for digest in body.get("adapters", {}).values()):
                self._end_lines({"error": "no adapter"})
                return
            layers |= {f"adapter {file}": digest for file, digest in sorted(body.get("adapters", {}).items())}
            config = {}
            if not body.get("template"):
                self._detect_template(layers)
        if "requires" in body:
            config["requires"] = body["requires"]
        for kind in ("template", "system"):
            if body.get(kind):
                layers[kind] = ollama.put(body[kind].encode())
        if body.get("license"):
            if not isinstance(body["license"], list):
                raise _Refused("license must be a list here")
            layers["license"] = ollama.put("\n".join(body["license"]).encode())
        if parameters:
            inherited = json.loads(ollama.blobs[layers["params"]]) if "params" in layers else {}
            layers["params"] = ollama.put(json.dumps(inherited | parameters, sort_keys=True).encode())
        if body.get("messages"):
            layers["messages"] = ollama.put(json.dumps(body["messages"], ensure_ascii=False).encode())
        if ollama.races:
            ollama.races -= 1
            digest = layers["params"].replace(":", "-")
            self._end_lines({"error": f"open /models/blobs/{digest}: no such file or directory"})
            return
        if ollama.rewrites and "files" in body:
            for file, digest in body["files"].items():
                if f"model {file}" in layers:
                    layers[f"model {file}"] = ollama.put(ollama.blobs.pop(digest) + b"\0")
        self._line({"status": "writing manifest"})
        ollama.models[name] = {"config": config, "layers": list(layers.items())}
        self._end_lines({"status": "success"})

    def _detect_template(self, layers: dict[str, str]) -> None:
        """Without a TEMPLATE, the nearest template of the index stands for the GGUF's own, with its stops."""
        for digest in [digest for kind, digest in layers.items() if kind.startswith("model ")]:
            jinja = _chat_template(self.ollama.blobs[digest])
            distances = [(edits(jinja, built_in.jinja), built_in) for built_in in self.ollama.index] if jinja else []
            distance, nearest = min(distances, key=lambda item: item[0], default=(100, None))
            if nearest is not None and distance < 100:
                layers["template"] = self.ollama.put(nearest.go.encode())
                if nearest.stops:
                    layers["params"] = self.ollama.put(json.dumps({"stop": nearest.stops}).encode())
                self._line({"status": f"using autodetected template {nearest.name}"})

    def _show(self, body: dict[str, Any]) -> None:
        name = full_name(body["model"])
        if name not in self.ollama.models:
            raise _Refused(f"model '{body['model']}' not found", 404)
        parameters = self.ollama.layer(name, "params") or {}
        fields = {
            "template": self.ollama.shown_template(name),
            "system": self.ollama.layer(name, "system"),
            "license": self.ollama.layer(name, "license"),
            "parameters": "\n".join(f"{key:<30} {json.dumps(value)}" for key, value in parameters.items()),
        }
        self._answer(200, {key: value for key, value in fields.items() if value} | {"details": {"format": "gguf"}})

    def _chat(self, body: dict[str, Any]) -> None:
        name = full_name(body["model"])
        if name not in self.ollama.models:
            raise _Refused(f"model '{body['model']}' not found", 404)
        if not body.get("_debug_render_only"):
            raise _Refused("the stand-in generates nothing")
        try:
            prompt = self.ollama.prompt(name, body["messages"])
        except LoadError as error:
            raise _Refused(str(error), 500) from error
        self._answer(200, {"model": body["model"], "_debug_info": {"rendered_template": prompt}})

    def _copy(self, body: dict[str, Any]) -> None:
        source, destination = full_name(body["source"]), full_name(body["destination"])
        if source not in self.ollama.models:
            raise _Refused(f'model "{body["source"]}" not found', 404)
        self.ollama.models[destination] = self.ollama.models[source]
        self._answer(200, None)

    def _push(self, body: dict[str, Any]) -> None:
        ollama = self.ollama
        name = full_name(body["model"])
        unknown = f'unauthorized: unknown ollama key "{KEY}"'
        if ollama.unknown_key and ollama.unauthorized_status != 200:
            raise _Refused(unknown, ollama.unauthorized_status)
        self._start_lines()
        self._line({"status": "retrieving manifest"})
        if name not in ollama.models:
            self._end_lines({"error": "couldn't retrieve manifest: file does not exist"})
            return
        if ollama.unknown_key:
            self._end_lines({"error": unknown})
            return
        for kind, digest in ollama.models[name]["layers"]:
            data = ollama.blobs[digest]
            line = {"status": f"pushing {digest[7:19]}", "digest": digest, "total": len(data)}
            self._line(line)
            if ollama.silent_after == "pushing":
                ollama.silent_after = None
                self._break()
                return
            if digest not in ollama.registry:
                ollama.registry[digest] = data
                ollama.pushed_layers.append((kind, digest))
            self._line(line | {"completed": len(data)})
        self._line({"status": "pushing manifest"})
        ollama.manifests[name] = ollama.models[name]["layers"]
        self._end_lines({"status": "success"})

    def _answer(self, status: int, body: Any) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        self.ollama.requests.append((self.command, self.path, status))

    def _start_lines(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _line(self, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode() + b"\n"
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _end_lines(self, value: dict[str, Any]) -> None:
        self.ollama.requests.append((self.command, self.path, 200))
        self._line(value)
        self.wfile.write(b"0\r\n\r\n")

    def _break(self) -> None:
        """As a process that was killed: the connection is reset."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.wfile.close()
        self.connection.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:  # a client that closes the connection is not an error here
        pass

    def shutdown_request(self, request: Any) -> None:
        if request.fileno() >= 0:
            super().shutdown_request(request)


def _is_projector(data: bytes) -> bool:
    """Whether a GGUF's general.architecture is clip: Ollama stores it as a layer image.projector."""
    name, value = (len(text).to_bytes(8, "little") + text for text in (b"general.architecture", b"clip"))
    return name + (8).to_bytes(4, "little") + value in data[:4096]


def _fields(data: bytes) -> dict[str, Any]:
    """The keys of a GGUF, read by the gguf package; empty for a blob of a test that only begins as a GGUF."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "blob"
        path.write_bytes(data)
        try:
            return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}
        except (ValueError, IndexError):
            return {}


def _kind(data: bytes) -> str:
    return str(_fields(data).get("general.type", "model"))


def _chat_template(data: bytes) -> str:
    return str(_fields(data).get("tokenizer.chat_template", ""))


def _layers(data: bytes) -> int:
    return next((int(value) for name, value in _fields(data).items() if name.endswith(".block_count")), 1)


def _special_tokens(data: bytes) -> dict[str, str]:
    """bos_token and eos_token, as llama-server gives them to a chat template."""
    fields = _fields(data)
    return {
        f"{kind}_token": fields["tokenizer.ggml.tokens"][fields[f"tokenizer.ggml.{kind}_token_id"]]
        for kind in ("bos", "eos")
    }


def edits(first: str, second: str) -> int:
    """The Levenshtein distance, by the whole table of Wagner and Fischer (1974)."""
    above = list(range(len(second) + 1))
    for row, a in enumerate(first, 1):
        current = [row]
        for column, b in enumerate(second, 1):
            current.append(min(above[column - 1] + (a != b), above[column] + 1, current[-1] + 1))
        above = current
    return above[-1]


def _jinja_features(jinja: str) -> set[str]:
    tools = {"Tools"} if "tools" in jinja or "tool_call" in jinja else set()
    return tools | ({"Thinking"} if "<think>" in jinja and "</think>" in jinja else set())


def _checked_parameters(parameters: dict[str, Any], warnings: list[str]) -> dict[str, Any]:
    """The parameters to store. A real server warns about deprecated ones and ignores them; unknown ones are refused."""
    warnings += [f"parameter {name} is deprecated" for name in parameters if name in _DEPRECATED]
    parameters = {name: value for name, value in parameters.items() if name not in _DEPRECATED}
    for name, value in parameters.items():
        if name == "stop":
            fits = isinstance(value, list) and all(isinstance(stop, str) and stop for stop in value)
        elif name in _INTEGERS:
            fits = isinstance(value, int) and not isinstance(value, bool)
        elif name in _FLOATS:
            fits = isinstance(value, int | float) and not isinstance(value, bool)
        else:
            fits = name == "use_mmap" and isinstance(value, bool)
        if not fits:
            raise _Refused(f"the stand-in takes no parameter {name} = {value!r}")
    return parameters


@contextmanager
def running_ollama(ollama: Ollama | None = None) -> Iterator[Ollama]:
    """A server on a free port; its state outlives it and may be given to the next."""
    state = ollama or Ollama()
    handler = type("Handler", (_Handler,), {"ollama": state})
    server = _Server(("127.0.0.1", 0), handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
