"""The API client against the stand-in server: what arrives, what is not sent twice, and every failure."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantkit.errors import PublishError, UsageError
from quantkit.publish.ollama import connection
from quantkit.publish.ollama.modelfile import Modelfile
from quantkit.publish.ollama.server import Server, StoredModel, create_request, digest_of, parse_host
from tests.helpers.ollama_server import KEY, Ollama, running_ollama
from tests.helpers.ports import free_port
from tests.publish.gguf_files import write_gguf
from tests.publish.recorded import Recorded


@pytest.fixture
def ollama() -> Iterator[Ollama]:
    with running_ollama() as state:
        yield state


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "m-Q4_0.gguf")


def sentence(caught: pytest.ExceptionInfo[PublishError]) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


def made(ollama: Ollama, file: Path, name: str = "ns/m:4b", **fields: object) -> Server:
    server = Server(ollama.url)
    digest = digest_of(file)
    if not server.has_blob(digest):
        server.send_blob(file, digest)
    server.create(create_request(name, Modelfile(sources=(f"./{file.name}",), **fields), {file.name: digest}))  # type: ignore[arg-type]
    return server


@pytest.mark.parametrize(
    ("text", "url"),
    [
        (None, "http://127.0.0.1:11434"),
        ("", "http://127.0.0.1:11434"),
        ("example.com", "http://example.com:11434"),
        ("example.com:80", "http://example.com:80"),
        (":5000", "http://127.0.0.1:5000"),
        ("http://example.com", "http://example.com:80"),
        ("https://example.com", "https://example.com:443"),
        ("https://example.com:8443/ollama/", "https://example.com:8443/ollama"),
        ("[::1]:5000", "http://[::1]:5000"),
        ('"0.0.0.0"', "http://0.0.0.0:11434"),
    ],
)
def test_the_host_is_read_as_ollama_reads_it(text: str | None, url: str) -> None:
    assert parse_host(text) == url


@pytest.mark.parametrize(
    "text", ["ftp://example.com", "example.com:port", "example.com:70000", "not a host", "http://a\x7fb:1", "a\tb"]
)
def test_a_malformed_host_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not an address; write HOST, HOST:PORT"):
        parse_host(text)


def test_the_body_of_create_holds_every_value_of_a_modelfile() -> None:
    modelfile = Modelfile(
        sources=("./m.gguf",),
        parameters=(("temperature", 0.5), ("stop", "<|im_end|>"), ("num_ctx", 4096), ("stop", "\n")),
        template="{{ .Prompt }}",
        system="全\u3000角",
        licenses=("one", "two"),
        messages=(("user", "Hi"), ("assistant", "Hello")),
        requires="0.30.0",
    )
    assert create_request("ns/m:4b", modelfile, {"m.gguf": "sha256:0"}) == {
        "model": "ns/m:4b",
        "files": {"m.gguf": "sha256:0"},
        "parameters": {"temperature": 0.5, "stop": ["<|im_end|>", "\n"], "num_ctx": 4096},
        "template": "{{ .Prompt }}",
        "system": "全\u3000角",
        "license": ["one", "two"],
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
        "requires": "0.30.0",
    }
    gpu = Modelfile(sources=("ns/m:4b",), parameters=(("num_gpu", 999),))
    assert create_request("ns/m:gpu", gpu) == {"model": "ns/m:gpu", "from": "ns/m:4b", "parameters": {"num_gpu": 999}}


def test_a_blob_arrives_whole_and_is_known_afterwards(ollama: Ollama, file: Path) -> None:
    server, digest = Server(ollama.url), digest_of(file)
    assert not server.has_blob(digest)
    progress = Recorded()
    server.send_blob(file, digest, progress)
    assert server.has_blob(digest)
    assert ollama.blobs[digest] == file.read_bytes()
    assert sum(amount for amount, _ in progress.advances) == file.stat().st_size


def test_a_file_that_changed_after_it_was_hashed_is_refused_by_the_server(ollama: Ollama, file: Path) -> None:
    digest = digest_of(file)
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(PublishError) as caught:
        Server(ollama.url).send_blob(file, digest)
    assert f'did not take m-Q4_0.gguf: digest mismatch, expected "{digest}"' in sentence(caught)
    assert not ollama.blobs


def test_the_server_keeps_what_create_sends(ollama: Ollama, file: Path) -> None:
    made(
        ollama,
        file,
        parameters=(("temperature", 0.5), ("stop", "<|im_end|>")),
        template="{{ .Prompt }}",
        system="全\u3000角\n",
        licenses=("one", "two"),
        messages=(("user", "Hi"),),
        requires="0.30.0",
    )
    assert ollama.layer("ns/m:4b", "params") == {"temperature": 0.5, "stop": ["<|im_end|>"]}
    assert ollama.layer("ns/m:4b", "template") == "{{ .Prompt }}"
    assert ollama.layer("ns/m:4b", "system") == "全\u3000角\n"
    assert ollama.layer("ns/m:4b", "license") == "one\ntwo"
    assert ollama.layer("ns/m:4b", "messages") == [{"role": "user", "content": "Hi"}]
    assert ollama.models["ns/m:4b"]["config"] == {"requires": "0.30.0"}


def test_a_create_that_another_one_disturbed_is_repeated_once(ollama: Ollama, file: Path) -> None:
    ollama.races = 1
    made(ollama, file, parameters=(("num_ctx", 4096),))
    assert "ns/m:4b" in ollama.models
    assert sum(path == "/api/create" for _, path, _ in ollama.requests) == 2
    ollama.races = 2
    with pytest.raises(PublishError, match=r"twice: open .*; another create may be running there, so repeat"):
        made(ollama, file, parameters=(("num_ctx", 4096),))
    assert ollama.races == 0


def test_show_gives_what_was_stored(ollama: Ollama, file: Path) -> None:
    server = made(ollama, file, template="{{ .Prompt }}!", system="全\u3000角")
    assert server.show("ns/m:4b") == StoredModel("{{ .Prompt }}!", "全\u3000角")
    with pytest.raises(PublishError, match="could not show ns/gone: model 'ns/gone' not found"):
        server.show("ns/gone")


def test_a_server_that_rewrites_the_gguf_is_sent_the_file_again(ollama: Ollama, file: Path) -> None:
    ollama.rewrites = True
    made(ollama, file)
    assert digest_of(file) not in ollama.blobs and ollama.uploads() == 1
    made(ollama, file)
    assert ollama.uploads() == 2 and "ns/m:4b" in ollama.models


def test_a_blob_that_no_model_uses_yet_stays_while_others_are_made(ollama: Ollama, file: Path) -> None:
    """A real server spares blobs younger than an hour when it prunes, so an upload before a create is not in vain."""
    other = file.with_name("other.gguf")
    other.write_bytes(file.read_bytes() + b"\0")
    server = Server(ollama.url)
    server.send_blob(other, digest_of(other))
    made(ollama, file)
    made(ollama, file, parameters=(("num_ctx", 4096),))
    assert server.has_blob(digest_of(other)) and server.has_blob(digest_of(file))


def test_a_push_of_gpu_sends_the_parameters_alone(ollama: Ollama, file: Path) -> None:
    server = made(ollama, file, template="{{ .Prompt }}", parameters=(("temperature", 0.5),))
    server.create(create_request("ns/m:gpu", Modelfile(sources=("ns/m:4b",), parameters=(("num_gpu", 999),))))
    assert ollama.layer("ns/m:gpu", "params") == {"temperature": 0.5, "num_gpu": 999}
    server.push("ns/m:4b")
    first = len(ollama.pushed_layers)
    server.push("ns/m:gpu")
    assert [kind for kind, _ in ollama.pushed_layers[first:]] == ["params"]
    assert dict(ollama.manifests["ns/m:gpu"])["template"] == dict(ollama.manifests["ns/m:4b"])["template"]


def test_a_push_reports_the_progress_of_every_layer(ollama: Ollama, file: Path) -> None:
    server = made(ollama, file)
    lines: list[tuple[str, str, int, int]] = []
    server.push("ns/m:4b", progress=lambda *line: lines.append(line))
    size = file.stat().st_size
    assert lines[0] == ("retrieving manifest", "", 0, 0)
    assert lines[1][2:] == (0, size) and lines[2][2:] == (size, size) and lines[2][1] == digest_of(file)
    assert lines[-1][0] == "success"


def test_no_server_is_one_sentence() -> None:
    port = free_port()
    with pytest.raises(PublishError) as caught:
        Server(f"http://127.0.0.1:{port}").version()
    assert sentence(caught) == (
        f"no Ollama server answers at http://127.0.0.1:{port} (Connection refused); start one with `ollama serve`, or"
        " pass its address with --host or OLLAMA_HOST"
    )


def answering(data: bytes) -> tuple[str, threading.Thread]:
    """The address of a listener that answers one caller with `data` and closes the connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener:
            caller, _ = listener.accept()
            with caller:
                caller.recv(65536)
                caller.sendall(data)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}", thread


def endless(head: bytes, data: bytes) -> str:
    """The address of a listener that answers one caller with `head` and then `data` until the caller leaves."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener:
            caller, _ = listener.accept()
            with caller, contextlib.suppress(OSError):
                caller.recv(65536)
                caller.sendall(head)
                while True:
                    caller.sendall(data)

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("data", "limit", "why"),
    [
        (b"x" * 1000, "_MAX_BODY", "answered with more than"),
        (b'{"status": "working"}\n' * 50, "_MAX_LINES", "answered with more than 1000 lines"),
        (b"x" * 1000, "_MAX_LINE", "answered with a line that Ollama does not write"),
    ],
)
def test_an_answer_without_an_end_is_cut_off(
    data: bytes, limit: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, limit, 1000)
    server = Server(endless(b"HTTP/1.1 200 OK\r\n\r\n", data))
    with pytest.raises(PublishError, match=why):
        server.version() if limit == "_MAX_BODY" else server.push("ns/m")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", "is not an Ollama server"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "is not an Ollama server"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "is not an Ollama server"),
        (b"SSH-2.0-OpenSSH\r\n", "is not an Ollama server"),
        (b"", "the Ollama server went away (it closed the connection); start it again"),
    ],
)
def test_a_server_that_is_not_ollama_is_one_sentence(data: bytes, why: str) -> None:
    url, thread = answering(data)
    with pytest.raises(PublishError) as caught:
        Server(url).version()
    assert why in sentence(caught)
    thread.join()


def test_an_upload_that_breaks_reports_its_bytes_and_the_next_try_completes(ollama: Ollama, tmp_path: Path) -> None:
    file = tmp_path / "big.gguf"
    file.write_bytes(b"GGUF" + bytes(24_000_000))
    server, digest = Server(ollama.url), digest_of(file)
    ollama.die_after = 300_000
    with pytest.raises(PublishError) as caught:
        server.send_blob(file, digest)
    assert "went away after " in sentence(caught)
    assert "of 24000004 bytes of big.gguf" in sentence(caught)
    assert "repeat the command, which sends only what is missing" in sentence(caught)
    assert not ollama.blobs
    server.send_blob(file, digest)
    assert ollama.blobs[digest] == file.read_bytes()


@pytest.mark.parametrize("when", ["parsing GGUF", "pushing"])
def test_a_server_that_dies_in_its_work_is_one_sentence(ollama: Ollama, file: Path, when: str) -> None:
    if when == "pushing":
        server = made(ollama, file)
        ollama.silent_after = when
        with pytest.raises(PublishError, match=r"went away while pushing ns/m:4b \(.+\); start it again"):
            server.push("ns/m:4b")
        server.push("ns/m:4b")
    else:
        ollama.silent_after = when
        with pytest.raises(PublishError, match=r"went away while making ns/m:4b \(.+\); start it again"):
            made(ollama, file)
        made(ollama, file)
    assert "ns/m:4b" in ollama.models


def test_the_servers_message_is_passed_on(ollama: Ollama, file: Path) -> None:
    ollama.create_error = "failed to validate GGUF"
    with pytest.raises(PublishError, match="could not create ns/m:4b: failed to validate GGUF"):
        made(ollama, file)
    ollama.create_error = None
    with pytest.raises(PublishError, match="could not create ns/m:gpu: pull model manifest: file does not exist"):
        Server(ollama.url).create(create_request("ns/m:gpu", Modelfile(sources=("ns/gone:4b",))))
    with pytest.raises(PublishError, match='could not copy ns/gone to ns/m: model "ns/gone" not found'):
        Server(ollama.url).copy("ns/gone", "ns/m")
    with pytest.raises(PublishError, match="could not push ns/gone: couldn't retrieve manifest"):
        Server(ollama.url).push("ns/gone")
    with pytest.raises(PublishError, match="could not create ns/m:4b: 400: the stand-in takes no parameter"):
        made(ollama, file, parameters=(("num_ctx", "many"),))


@pytest.mark.parametrize(
    ("kind", "refusal"), [("q3_K_M", "unsupported quantization type"), ("q4_K_M", "the stand-in quantizes nothing")]
)
def test_the_stand_in_lets_no_create_ask_for_quantization(ollama: Ollama, file: Path, kind: str, refusal: str) -> None:
    server = made(ollama, file)
    request = create_request("ns/m:4b", Modelfile(sources=(f"./{file.name}",)), {file.name: digest_of(file)})
    assert "quantize" not in request
    with pytest.raises(PublishError, match=refusal):
        server.create({**request, "quantize": kind})


@pytest.mark.parametrize("status", [200, 401, 403])
def test_a_key_that_is_not_registered_is_explained(ollama: Ollama, file: Path, status: int) -> None:
    server = made(ollama, file)
    ollama.unknown_key, ollama.unauthorized_status = True, status
    with pytest.raises(PublishError) as caught:
        server.push("ns/m:4b")
    text = sentence(caught)
    assert "key is not registered there, or not with ns; run `ollama signin`" in text
    assert "https://ollama.com/settings/keys" in text and KEY in text
