"""Chat templates rendered as in transformers: sandboxed jinja2 with the extensions that templates use.

The environment is that of transformers' apply_chat_template (utils/chat_template_utils.py): trimmed blocks, loop
controls, a tojson that does not escape HTML, raise_exception and strftime_now. The `generation` block marks the
assistant's tokens for training; here it only prints its content.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from types import TracebackType
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from quantkit.errors import TemplateError


class TemplateRefusal(TemplateError):
    """The template rejected the conversation with raise_exception (a system message, a wrong order of roles)."""


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    bos_token: str | None = None,
    eos_token: str | None = None,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    special_tokens: Mapping[str, str] | None = None,
) -> str:
    """The prompt that a chat template renders from `messages`. A message has `role` and `content`.

    A token that is None is undefined in the template. `special_tokens`: further tokens by name (`unk_token`,
    `pad_token`). The template runs in this process without a limit; use `render_contained` for an untrusted template.

    Raises:
        TemplateRefusal: the template called raise_exception.
        TemplateError: the template cannot be parsed, or fails; the message has the line.
    """
    tokens = {**(special_tokens or {}), "bos_token": bos_token, "eos_token": eos_token}
    try:
        return _compiled(template).render(
            messages=messages,
            tools=tools,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **{name: token for name, token in tokens.items() if token is not None},
        )
    except _Raised as error:
        raise TemplateRefusal(f"the chat template refuses the conversation: {error.message}") from error
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"the chat template is malformed at line {error.lineno}: {error.message}") from error
    except Exception as error:  # the values in a template may raise any exception
        line = _line(error.__traceback__)
        at = f" at line {line}" if line else ""
        kind = "" if isinstance(error, jinja2.TemplateError) else type(error).__name__
        reason = ": ".join(part for part in (kind, str(error)) if part)
        raise TemplateError(f"the chat template fails{at}: {reason}") from error


def parse(template: str) -> jinja2.nodes.Template:
    """The syntax tree of a chat template. Raises TemplateError when the template is malformed."""
    try:
        return _environment().parse(template)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"the chat template is malformed at line {error.lineno}: {error.message}") from error


@lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    return _environment().from_string(template)


class _Raised(jinja2.TemplateError):
    pass


class _Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}`, which renders its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 reads it from the class

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # Its own scope, as in transformers: a variable that is set inside is not visible outside.
        return [jinja2.nodes.Scope(body).set_lineno(line)]


def _environment() -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise _Raised(str(message))


def _line(trace: TracebackType | None) -> int | None:
    """The line of the template in a traceback. jinja2 rewrites the frames of a template to its lines."""
    line = None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
