"""Rendering a stranger's template in a process of its own, with little time and memory.

The sandbox keeps a template from reaching the machine, not from looping for hours or from multiplying strings until
memory ends. Run as a module, this reads one JSON request from stdin and answers with one JSON document.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from quantkit.chat.render import TemplateRefusal, render
from quantkit.errors import TemplateError

SECONDS = 5
_MEMORY = 1 << 30
_LONGEST = 1 << 20
"""Characters of a rendered prompt beyond which a template is out of hand."""


def render_contained(template: str, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
    """As `render`, in a child process with 5 s and 1 GiB.

    Raises:
        TemplateRefusal, TemplateError: as `render` does, or when the child ran out of time or memory.
    """
    request = json.dumps({"template": template, "messages": list(messages), "options": options})
    command = [sys.executable, "-m", "quantkit.chat.contained"]
    try:
        done = subprocess.run(command, input=request.encode(), capture_output=True, timeout=2 * SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise TemplateError(
            f"the chat template takes more than {SECONDS} s to render one short conversation"
        ) from error
    try:
        answer = json.loads(done.stdout)
    except ValueError as error:
        raise TemplateError(
            f"the chat template runs out of its {SECONDS} s or {_MEMORY >> 20} MiB on one short conversation"
        ) from error
    if "text" in answer:
        return str(answer["text"])
    raise (TemplateRefusal if answer["refused"] else TemplateError)(answer["error"])


def _main() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    request = json.load(sys.stdin)
    answer: dict[str, Any]
    try:
        text = render(request["template"], request["messages"], **request["options"])
        if len(text) > _LONGEST:
            raise TemplateError(f"the chat template makes {len(text)} characters of one short conversation")
        answer = {"text": text}
    except TemplateError as error:
        answer = {"error": str(error), "refused": isinstance(error, TemplateRefusal)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    _main()
