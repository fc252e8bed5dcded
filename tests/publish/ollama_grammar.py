"""A second reading of the Modelfile grammar: one code point at a time, through the states of Ollama's parser.

It shares nothing with quantkit.publish: what is printable comes from this Python's unicodedata.
"""

import unicodedata

ROLES = {"system", "user", "assistant"}
NAMES = {"from", "license", "template", "system", "adapter", "draft", "renderer", "parser"}
NAMES |= {"parameter", "message", "requires"}


class Refused(Exception):
    pass


def printable(character: str) -> bool:
    return character == " " or unicodedata.category(character)[0] in "LMNPS"


def opened(gathered: str) -> tuple[str, bool]:
    """The unquoted text, and whether its quotes are closed."""
    trimmed = gathered.strip(" \t\r\n")
    for quote in ('"""', '"'):
        if trimmed.startswith(quote):
            closed = len(trimmed) >= 2 * len(quote) and trimmed.endswith(quote)
            return trimmed[len(quote) : -len(quote)], closed
    return trimmed, True


def read(text: str) -> list[tuple[str, str, str]]:
    """(command, parameter or role, value) for each command, or Refused."""
    commands: list[tuple[str, str, str]] = []
    state, gathered, name, key = "between", "", "", ""
    for rune in text:
        blank, newline = rune in " \t", rune in "\r\n"
        if state == "comment":
            state = "between" if newline else state
        elif state == "between":
            if rune == "#":
                state = "comment"
            elif not blank and not newline:
                state, gathered = "name", rune if printable(rune) else ""
        elif state == "name":
            if blank:
                if gathered.lower() not in NAMES:
                    raise Refused("command")
                name, key, gathered = gathered.lower(), "", ""
                state = name if name in ("parameter", "message") else "value"
            elif rune.isascii() and rune.isalpha():
                gathered += rune
            else:
                raise Refused("command")
        elif state in ("parameter", "message"):
            if blank:
                if state == "message" and gathered not in ROLES:
                    raise Refused("role")
                state, key, gathered = "value", gathered, ""
            elif rune.isascii() and (rune.isalpha() or (state == "parameter" and (rune.isdigit() or rune == "_"))):
                gathered += rune
            else:
                raise Refused("end")
        elif blank or (newline and not opened(gathered)[1]):
            gathered += rune
        elif newline:
            commands.append((name, key, opened(gathered)[0]))
            state = "between"
        elif printable(rune):
            gathered += rune
    if state == "value":
        value, closed = opened(gathered)
        if not closed:
            raise Refused("end")
        commands.append((name, key, value))
    elif state not in ("between", "comment"):
        raise Refused("end")
    if all(command != "from" for command, _, _ in commands):
        raise Refused("from")
    return commands
