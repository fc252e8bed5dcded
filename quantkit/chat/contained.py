"""Rendering of an untrusted template in a child process with limited time and memory.

The jinja2 sandbox blocks access to the machine. It does not stop endless loops or strings that fill the memory. As a
script, this module reads one JSON request from stdin and writes one JSON document to stdout.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import quantkit
from quantkit.chat.rendering import TemplateRefusal, render
from quantkit.errors import TemplateError
from quantkit.system.processes import limit_this_process
from quantkit.system.python import module_command

SECONDS = 5
"""Limit of processor time."""
_WALL_SECONDS = 60
"""Limit of wall time, which is higher because the machine may be busy."""
_MEMORY = 1 << 30
_LONGEST = 1 << 20
"""Limit of a rendered prompt in characters."""


def render_contained(template: str, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
    """Render as `render` does, in a child process limited to 5 s of processor time and 1 GiB.

    Raises:
        TemplateRefusal, TemplateError: as `render` does, or when the child exceeds its time or memory.
    """
    (answer,) = render_all_contained(template, [{**options, "messages": list(messages)}])
    if isinstance(answer, TemplateError):
        raise answer
    return answer


def render_all_contained(template: str, requests: Sequence[Mapping[str, Any]]) -> list[str | TemplateError]:
    """The prompts of many conversations, rendered in one such child process.

    A request has the arguments of `render` by name. The result has one entry a request: the prompt, or the error that
    the conversation raised.

    Raises:
        TemplateError: the child exceeds its time or memory.
    """
    message = json.dumps(
        {"template": template, "requests": [dict(request) for request in requests], "seconds": SECONDS}
    )
    conversations = "one short conversation" if len(requests) == 1 else f"{len(requests)} short conversations"
    try:
        document = _child(message.encode())
    except subprocess.TimeoutExpired as error:
        raise TemplateError(
            f"the chat template takes more than {SECONDS} s to render {conversations}; simplify it"
        ) from error
    try:
        answers = json.loads(document)
    except ValueError as error:
        raise TemplateError(
            f"the chat template exceeds the limit of {SECONDS} s or {_MEMORY >> 20} MiB on {conversations}; simplify it"
        ) from error
    return [
        answer["text"]
        if "text" in answer
        else (TemplateRefusal if answer["refused"] else TemplateError)(answer["error"])
        for answer in answers
    ]


def _child(message: bytes) -> bytes:
    """What the child writes to stdout. Raises subprocess.TimeoutExpired."""
    command = module_command("quantkit.chat.contained")
    return subprocess.run(
        command, input=message, capture_output=True, timeout=_WALL_SECONDS, check=False, env=_environment()
    ).stdout


def _environment() -> dict[str, str]:
    """The child's environment: only what Python needs, so that an escaped template finds no secrets."""
    package_root = str(Path(quantkit.__file__).resolve().parents[1])
    needed = {name: os.environ[name] for name in ("SYSTEMROOT", "LD_LIBRARY_PATH") if name in os.environ}
    return {**needed, "PYTHONPATH": package_root}


def answer_message(message: str) -> str:
    """The answers to a message, as JSON. Limits this process first: it is the child's work."""
    request = json.loads(message)
    limit_this_process(request["seconds"], _MEMORY)
    return json.dumps([_answer(request["template"], options) for options in request["requests"]])


def _answer(template: str, options: dict[str, Any]) -> dict[str, Any]:
    try:
        text = render(template, options.pop("messages"), **options)
        if len(text) > _LONGEST:
            raise TemplateError(
                f"the chat template renders one short conversation to {len(text)} characters, more than {_LONGEST};"
                " simplify it"
            )
    except TemplateError as error:
        return {"error": str(error), "refused": isinstance(error, TemplateRefusal)}
    return {"text": text}


if __name__ == "__main__":
    sys.stdout.write(answer_message(sys.stdin.read()))
