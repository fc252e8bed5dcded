"""Values in the Modelfile grammar, which has no escapes: quoted so that Ollama reads them back, or refused."""

import re
import unicodedata

from quantkit.errors import ModelfileError
from quantkit.publish.ollama.modelfile_parser import deleted_by_parser

_OVER_HTTP = "publish with `quantkit ollama --create`, which sends it over Ollama's HTTP API"
_CLOSES_EARLY = re.compile(r'"""(?=[ \t\r\n]*[\r\n])')
_HOLE = re.compile(r"\{\{(?P<comment>(?:-[ \t\r\n])?/\*.*?\*/)?", re.DOTALL)
_STRING = re.compile(r"\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'|`[^`]*`")


def quoted(value: str, instruction: str) -> str:
    """`value` in triple quotes; raises ModelfileError, naming `instruction`, if triple quotes cannot hold it."""
    _check(value, instruction)
    if _CLOSES_EARLY.search(value):
        raise ModelfileError(
            f'{instruction} has three quotes (""") at the end of a line, where a Modelfile ends the value; change the'
            " text, "
            f"or {_OVER_HTTP}"
        )
    return f'"""{value}"""'


def quoted_in_line(value: str, instruction: str) -> str:
    """As `quoted`, but a text of one line gets one pair of quotes if it does not start with a quote."""
    if value.startswith('"') or "\n" in value or "\r" in value:
        return quoted(value, instruction)
    _check(value, instruction)
    return f'"{value}"'


def bare(value: str, instruction: str) -> str:
    """`value` without quotes if the parser reads it back unchanged, else quoted."""
    if not value or value != value.strip(" \t") or '"' in value or "\n" in value or "\r" in value:
        return quoted_in_line(value, instruction)
    _check(value, instruction)
    return value


def quoted_template(template: str) -> str:
    """A Go template in triple quotes, with string actions for what the parser would delete or end the value at.

    U+3000 becomes `{{ "\\u3000" }}`, or `\\u3000` in a string that is already inside an action.

    Raises:
        ModelfileError: neither is possible: in an action outside its strings, in a raw string, or in a comment.
    """
    _check_unicode(template, "TEMPLATE")
    parts: list[str] = []
    at = 0
    while hole := _HOLE.search(template, at):
        parts.append(_literal(template[at : hole.start()]))
        at = _end_of_action(template, hole)
        parts.append(_action(template[hole.start() : at]))
    parts.append(_literal(template[at:]))
    return quoted("".join(parts), "TEMPLATE")


def named(characters: str) -> str:
    """Code points as words: `U+3000 (IDEOGRAPHIC SPACE)`, at most four of them."""
    words = [f"U+{ord(c):04X} ({unicodedata.name(c, 'a control or private character')})" for c in characters[:4]]
    return ", ".join(words) + (f" and {len(characters) - 4} more" if len(characters) > 4 else "")


def _literal(text: str) -> str:
    # A brace before the new action would make three braces; Go reads those as an action that starts with a brace.
    deleted = "".join(re.escape(c) for c in deleted_by_parser(text))
    if deleted:
        text = re.sub(rf"\{{?[{deleted}]+", lambda m: '{{ "' + _escaped(m[0]) + '" }}', text)
    return _CLOSES_EARLY.sub('""{{ "\\\\"" }}', text)


def _end_of_action(template: str, hole: re.Match[str]) -> int:
    at = hole.end()
    while at < len(template) and not template.startswith("}}", at):
        string = _STRING.match(template, at)
        at = string.end() if string else at + 1
    return min(at + 2, len(template))


def _action(action: str) -> str:
    if not deleted_by_parser(action):
        return action
    if action.startswith(("{{/*", "{{- /*")):
        raise ModelfileError(
            f"a comment of TEMPLATE has {named(deleted_by_parser(action))}, which a Modelfile loses; remove it"
        )
    written = _STRING.sub(lambda m: m[0] if m[0].startswith("`") else _escaped(m[0]), action)
    deleted = deleted_by_parser(written)
    if deleted:
        raise ModelfileError(
            f"TEMPLATE has {named(deleted)} in the action {action[:60]!r}, which a Modelfile loses; write it as an "
            "escape in a string in double quotes, or remove it"
        )
    return written


def _escaped(text: str) -> str:
    deleted = deleted_by_parser(text)
    return "".join(
        (f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}") if c in deleted else c for c in text
    )


def _check(value: str, instruction: str) -> None:
    _check_unicode(value, instruction)
    deleted = deleted_by_parser(value)
    if deleted:
        raise ModelfileError(
            f"{instruction} has {named(deleted)}, which Ollama deletes from a Modelfile without a warning; change the"
            f" text, or {_OVER_HTTP}"
        )


def _check_unicode(value: str, instruction: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ModelfileError(
            f"{instruction} is not valid Unicode: it has the lone surrogate {value[error.start]!r}; remove it"
        ) from error
