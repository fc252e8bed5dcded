"""Rendering a stranger's template in a process of its own, with little time and memory.

The sandbox keeps a template from reaching the machine, not from looping for hours or from multiplying strings until
memory ends. Run as a module, this reads one JSON request from stdin and answers with one JSON document.
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import quantkit
from quantkit.chat.render import TemplateRefusal, render
from quantkit.errors import TemplateError

SECONDS = 5
"""Of processor time."""
_PATIENCE = 60
"""Seconds on the clock, for a machine that is busy."""
_MEMORY = 1 << 30
_LONGEST = 1 << 20
"""Characters of a rendered prompt beyond which a template is out of hand."""


def render_contained(template: str, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
    """As `render`, in a child process with 5 s and 1 GiB.

    Raises:
        TemplateRefusal, TemplateError: as `render` does, or when the child ran out of time or memory.
    """
    (answer,) = render_all_contained(template, [{**options, "messages": list(messages)}])
    if isinstance(answer, TemplateError):
        raise answer
    return answer


def render_all_contained(template: str, requests: Sequence[Mapping[str, Any]]) -> list[str | TemplateError]:
    """The prompts of many conversations, each request being the arguments of `render` by name, in one such child.

    What a conversation raised stands in its place, so that a probe sees which ones a template refuses.

    Raises:
        TemplateError: the child ran out of time or memory.
    """
    request = json.dumps({"template": template, "requests": [dict(each) for each in requests]})
    command = [sys.executable, "-P", "-m", "quantkit.chat.contained"]
    ordinary = "one short conversation" if len(requests) == 1 else f"{len(requests)} short conversations"
    try:
        done = subprocess.run(
            command, input=request.encode(), capture_output=True, timeout=_PATIENCE, check=False, env=_environment()
        )
    except subprocess.TimeoutExpired as error:
        raise TemplateError(f"the chat template takes more than {SECONDS} s to render {ordinary}") from error
    try:
        answers = json.loads(done.stdout)
    except ValueError as error:
        raise TemplateError(
            f"the chat template runs out of its {SECONDS} s or {_MEMORY >> 20} MiB on {ordinary}"
        ) from error
    return [
        each["text"] if "text" in each else (TemplateRefusal if each["refused"] else TemplateError)(each["error"])
        for each in answers
    ]


def _environment() -> dict[str, str]:
    """The child's environment: only what Python needs to start, so that an escaped template finds no secrets in it."""
    package_root = str(Path(quantkit.__file__).resolve().parents[1])
    needed = {name: os.environ[name] for name in ("SYSTEMROOT", "LD_LIBRARY_PATH") if name in os.environ}
    return {**needed, "PYTHONPATH": package_root}


def _main() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    request = json.load(sys.stdin)
    json.dump([_answer(request["template"], each) for each in request["requests"]], sys.stdout)


def _answer(template: str, options: dict[str, Any]) -> dict[str, Any]:
    try:
        text = render(template, options.pop("messages"), **options)
        if len(text) > _LONGEST:
            raise TemplateError(f"the chat template makes {len(text)} characters of one short conversation")
    except TemplateError as error:
        return {"error": str(error), "refused": isinstance(error, TemplateRefusal)}
    return {"text": text}


if __name__ == "__main__":
    _main()
