"""llama-cpp-python's server in a process of its own: `python -m quantkit.llamacpp.server_child`, by server.py only.

The settings come as one JSON line on stdin. The process ends when stdin closes, because then the caller is gone. The
application is llama-cpp-python's own, behind a small one of ours. That one has the web page, the file's sampling, and
an answer for every request: a stream that fails before its first token is an error with a status, not a cut connection.
"""

import ctypes
import json
import os
import re
import sys
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from importlib.resources import files
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

_COMPLETIONS = ("/v1/chat/completions", "/v1/completions")
_TOO_LONG = re.compile(r"Requested tokens \((\d+)\) exceed context window of (\d+)")
_POLICY = b"default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"


class Front:
    """The page at /, /health, and the completions of `application` with the defaults of `sampling`."""

    def __init__(self, application: Application, sampling: dict[str, Any], alias: str) -> None:
        self._application, self._defaults = application, {"model": alias, **sampling}
        page = (files("quantkit.llamacpp") / "server_page.html").read_text("utf-8")
        self._page = page.replace('"MODEL"', json.dumps(alias).replace("<", "\\u003c")).encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        path = scope.get("path")
        if scope["type"] != "http" or path not in ("/", "/health", *_COMPLETIONS):
            await self._application(scope, receive, send)
        elif path == "/":
            await _answer(send, 200, self._page, b"text/html; charset=utf-8")
        elif path == "/health":
            await _answer(send, 200, b'{"status": "ok"}')
        else:
            body = await _body(receive)
            if body is not None:
                await self._complete(scope, _with_defaults(body, self._defaults), receive, send)

    async def _complete(self, scope: Message, body: bytes, receive: Receive, send: Send) -> None:
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Message:
            return messages.pop() if messages else await receive()

        begin: Message | None = None
        begun = ended = False

        async def send_when_it_has_begun(message: Message) -> None:
            nonlocal begin, begun, ended
            if message["type"] == "http.response.start":
                begin = message
                return
            content = message.get("body", b"")
            # a comment only keeps the connection open
            if not begun and content.startswith(b":"):
                return
            if begin is not None and not begun:
                # an empty last part is that of a stream that failed
                if not content and not message.get("more_body") and _is_stream(begin):
                    return
                begun = True
                await send(begin)
            ended = ended or not message.get("more_body")
            await send(message)

        headers = [(key, value) for key, value in scope["headers"] if key != b"content-length"]
        length = (b"content-length", str(len(body)).encode())
        try:
            await self._application({**scope, "headers": [*headers, length]}, receive_again, send_when_it_has_begun)
        except Exception as error:
            status, document = _error(error)
            if not begun:
                await _answer(send, status, document)
            elif not ended:
                await send({"type": "http.response.body", "body": b"data: " + document + b"\n\n", "more_body": False})


def _is_stream(begin: Message) -> bool:
    return any(key == b"content-type" and value.startswith(b"text/event-stream") for key, value in begin["headers"])


async def _body(receive: Receive) -> bytes | None:
    """The body of a request; None if the client left."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += bytes(message.get("body", b""))
        if not message.get("more_body"):
            return body


def _with_defaults(body: bytes, defaults: dict[str, Any]) -> bytes:
    """A request with the parameters that it lacks."""
    try:
        request = json.loads(body)
    except ValueError:
        return body
    if not isinstance(request, dict):
        return body
    return json.dumps({**defaults, **request}).encode()


async def _answer(send: Send, status: int, body: bytes, kind: bytes = b"application/json") -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    headers.append((b"content-security-policy", _POLICY))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _error(error: BaseException) -> tuple[int, bytes]:
    """The status and the OpenAI document of an error."""
    while nested := getattr(error, "exceptions", None):  # an exception group; Python 3.10 has none of its own
        error = nested[0]
    status, kind, code, message = 500, "server_error", None, f"{type(error).__name__}: {error}"
    if match := _TOO_LONG.search(str(error)):
        status, kind, code = 400, "invalid_request_error", "context_length_exceeded"
        message = f"the prompt has {match[1]} tokens, more than the context of {match[2]}; shorten it, or serve the"
        message += " model with a larger --ctx"
    return status, json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()


def _application(settings: dict[str, Any]) -> Application:
    """llama-cpp-python's application with the model loaded."""
    import llama_cpp
    from llama_cpp.server.app import create_app
    from llama_cpp.server.settings import ModelSettings, ServerSettings

    from quantkit.llamacpp.calls import experts_on_cpu
    from quantkit.llamacpp.devices import add_rpc_servers
    from quantkit.machine import cores

    add_rpc_servers(settings["rpc"])
    library = llama_cpp.llama_cpp
    model_parameters = library.llama_model_default_params
    overrides = experts_on_cpu(settings["cpu_moe"])

    # the class Llama has no parameters for these
    def with_experts() -> Any:
        parameters = model_parameters()
        if settings["cpu_moe"]:
            parameters.tensor_buft_overrides = ctypes.cast(overrides, ctypes.c_void_p)
        return parameters

    library.llama_model_default_params = with_experts
    threads = settings["n_threads"] or cores()
    # values of the environment would replace those that are not given
    model = ModelSettings(
        model=settings["model"],
        model_alias=settings["alias"],
        n_gpu_layers=settings["gpu_layers"],
        tensor_split=settings["tensor_split"] or None,
        offload_kqv=settings["kv_on_gpu"],
        n_ctx=settings["n_ctx"],
        n_threads=threads,
        n_threads_batch=threads,
        type_k=settings["kv_type"],
        type_v=settings["kv_type"],
        flash_attn=True,
        # with it the logits of the whole context are kept
        logits_all=False,
        chat_format=None if settings["has_template"] else "chatml",
        use_mlock=False,
        verbose=False,
    )
    server = ServerSettings(api_key=settings["api_key"], interrupt_requests=False)
    application: Application = create_app(server_settings=server, model_settings=[model])
    return application


def _end_with_caller() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    """Serve until the caller stops the process."""
    import uvicorn

    settings = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_caller, daemon=True).start()
    front = Front(_application(settings), settings["sampling"], settings["alias"])
    uvicorn.run(
        front,
        host=settings["host"],
        port=settings["port"],
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=2,
    )
    # a thread that still generates does not keep the process
    os._exit(0)


if __name__ == "__main__":
    main()
