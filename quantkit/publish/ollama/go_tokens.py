"""The tokens of a Go template: text and the words inside `{{ }}`.

Source: Go's text/template/parse, lex.go (1.27). A token of kind "error" ends the template, as it does in Go.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

SPACE = " \t\r\n"
KEYWORDS = frozenset(("block", "break", "continue", "define", "else", "end", "if", "nil", "range", "template", "with"))

_RIGHT = re.compile(r"[ \t\r\n]-\}\}|\}\}")
_QUOTED = {
    '"': (re.compile(r'"(?:[^"\\\n]|\\[^\n])*"', re.DOTALL), "string", "a string in double quotes is not closed"),
    "`": (re.compile(r"`[^`]*`"), "string", "a string in backquotes is not closed"),
    "'": (re.compile(r"'(?:[^'\\\n]|\\[^\n])*'", re.DOTALL), "character", "a character in quotes is not closed"),
}
_HEX = r"[+-]?0[xX][0-9a-fA-F_]*(?:\.[0-9a-fA-F_]*)?(?:[pP][+-]?[0-9_]*)?"
_NUMBER = re.compile(
    rf"(?:{_HEX}|[+-]?0[oO][0-7_]*(?:\.[0-7_]*)?|[+-]?0[bB][01_]*(?:\.[01_]*)?"
    r"|[+-]?[0-9_]*(?:\.[0-9_]*)?(?:[eE][+-]?[0-9_]*)?)i?"
)


class Token(NamedTuple):
    """One token: its kind, its text, and its place in the template.

    Kinds: text, left, right, space, pipe, assign, declare, "(", ")", character, number, string, field, dot, variable,
    bool, name, other (a printable character), end of template ("eof"), error (the text is the message), and each
    keyword.
    """

    kind: str
    text: str
    at: int


def tokens(template: str) -> Iterator[Token]:
    """The tokens of a template, the last of kind "eof" or "error"."""
    at = 0
    while (opening := template.find("{{", at)) >= 0:
        if opening > at:
            yield Token("text", template[at:opening], at)
        at = opening + 2
        if template[at : at + 1] == "-" and template[at + 1 : at + 2] in (*SPACE,):
            at += 2
        if template.startswith("/*", at):
            end = template.find("*/", at)
            if end < 0:
                yield Token("error", "a comment is not closed", opening)
                return
            closed = _RIGHT.match(template, end + 2)
            if not closed:
                yield Token("error", "a comment does not fill its {{ }}", opening)
                return
            at = closed.end()
            continue
        yield Token("left", "{{", opening)
        for token in _action(template, at):
            yield token
            if token.kind == "error":
                return
        at = token.at + len(token.text)
    if at < len(template):
        yield Token("text", template[at:], at)
    yield Token("eof", "", len(template))


def _action(template: str, at: int) -> Iterator[Token]:
    """The tokens from behind `{{` to the `}}` that closes it."""
    depth = 0
    while True:
        right = _RIGHT.match(template, at)
        if right:
            closed = Token("right", right[0], at)
            yield closed if depth == 0 else Token("error", "a ( is not closed", at)
            return
        token = _token(template, at)
        depth += (token.kind == "(") - (token.kind == ")")
        if depth < 0:
            token = Token("error", "a ) closes nothing", at)
        yield token
        if token.kind == "error":
            return
        at = token.at + len(token.text)


def _token(template: str, at: int) -> Token:
    character = template[at : at + 1]
    if not character:
        return Token("error", "an action is not closed: }} is missing", at)
    if character in SPACE:
        end = at
        while end < len(template) and template[end] in SPACE and not (end > at and _trims(template, end)):
            end += 1
        return Token("space", template[at:end], at)
    if template.startswith(":=", at):
        return Token("declare", ":=", at)
    if character in "=|()":
        return Token({"=": "assign", "|": "pipe"}.get(character, character), character, at)
    if character in _QUOTED:
        pattern, kind, message = _QUOTED[character]
        quoted = pattern.match(template, at)
        return Token(kind, quoted[0], at) if quoted else Token("error", message, at)
    if character in "+-" or (character.isdecimal() and character.isascii()) or _starts_number(template, at):
        return _number(template, at)
    if character in ".$" or character == "_" or _alphanumeric(character):
        return _word(template, at)
    if character == ":":
        return Token("error", "a : is not followed by =", at)
    if character.isascii() and character.isprintable():
        return Token("other", character, at)
    return Token("error", f"the character U+{ord(character):04X} cannot stand in an action", at)


def _trims(template: str, at: int) -> bool:
    return template.startswith("-}}", at + 1)


def _starts_number(template: str, at: int) -> bool:
    return template[at] == "." and template[at + 1 : at + 2] in (*"0123456789",)


def _number(template: str, at: int) -> Token:
    match = _NUMBER.match(template, at)
    assert match is not None
    end = match.end()
    if template[end : end + 1] in ("+", "-"):
        second = _NUMBER.match(template, end)
        assert second is not None
        end = second.end()
        if not second[0].endswith("i"):
            return Token("error", f"{template[at:end]!r} is not a number", at)
    if _alphanumeric(template[end : end + 1]):
        return Token("error", f"{template[at : end + 1]!r} is not a number", at)
    return Token("number", template[at:end], at)


def _word(template: str, at: int) -> Token:
    first = template[at]
    end = at + 1
    while _alphanumeric(template[end : end + 1]):
        end += 1
    text = template[at:end]
    if first == "." and len(text) == 1:
        kind = "dot"
    elif first in ".$":
        kind = {".": "field", "$": "variable"}[first]
    elif text in KEYWORDS:
        kind = text
    else:
        kind = "bool" if text in ("true", "false") else "name"
    follower = template[end : end + 1]
    ends = not follower or follower in SPACE or follower in ".,|:()" or template.startswith("}}", end)
    # A dot or a $ alone needs no check: Go reads whatever follows as the next token only at such a place.
    if not ends:
        return Token("error", f"{follower!r} cannot follow {text!r}", end)
    return Token(kind, text, at)


def _alphanumeric(character: str) -> bool:
    """Go's test: the underscore, and what Unicode calls a letter or a decimal digit."""
    return character == "_" or (bool(character) and (character.isalpha() or character.isdecimal()))
