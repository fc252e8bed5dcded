"""The parser of the Modelfile grammar: text to commands, as in Ollama's parser/parser.go.

The grammar has no escapes. A value ends at the end of its line. A value can start with a quote, one `"` or three. It
then ends at the first line that ends in that quote; white space does not count. The parser deletes code points that Go
calls non-printable. A comment is a line that starts with #. A carriage return ends a line, as a line feed does.
"""

import re
from dataclasses import dataclass

from quantkit.publish.ollama.printable import is_printable

COMMANDS = (
    "from",
    "parameter",
    "template",
    "system",
    "adapter",
    "license",
    "message",
    "renderer",
    "parser",
    "requires",
    "draft",
)
ROLES = ("system", "user", "assistant")

_BLANK = " \t\r\n"
_BREAK = re.compile(r"[\r\n]")


@dataclass(frozen=True)
class Command:
    """One command: `name` in lower case, `key` the parameter's name or the message's role, `value` without quotes.

    `raw` is the value's text with its quotes and every code point. `line` and `last_line` count from 1.
    """

    line: int
    last_line: int
    name: str
    key: str
    value: str
    raw: str


@dataclass(frozen=True)
class Fault:
    """A violation of the grammar, at which Ollama stops."""

    line: int
    message: str


def read_commands(text: str) -> tuple[list[Command], list[Fault]]:
    """All commands of a Modelfile in order, and its faults, each of which makes Ollama refuse the file.

    After a fault, reading continues at the next line, so that a linter can report several. A leading byte order mark
    is skipped.
    """
    text = text.removeprefix("\ufeff")
    commands: list[Command] = []
    faults: list[Fault] = []
    at = 0
    while at < len(text):
        if text[at] in _BLANK:
            at += 1
        elif text[at] == "#":
            at = _end_of_line(text, at)
        else:
            result, at = _command(text, at)
            if isinstance(result, Command):
                commands.append(result)
            else:
                faults.append(result)
    return commands, faults


def line_of(text: str, at: int) -> int:
    """The line, from 1, of a position; a carriage return with its line feed is one end of line."""
    return 1 + len(re.findall(r"\r\n|\r|\n", text[: at if text[at - 1 : at + 1] != "\r\n" else at - 1]))


def deleted_by_parser(text: str) -> str:
    """The code points of a value that Ollama's parser deletes, without repeats; tabs and line ends are kept."""
    return "".join(dict.fromkeys(c for c in text if c not in _BLANK and not is_printable(c)))


def _command(text: str, at: int) -> tuple[Command | Fault, int]:
    start, line = at, line_of(text, at)
    word = re.compile(r".[A-Za-z]*", re.DOTALL).match(text, at)
    assert word is not None
    name, at = _printable(word[0]).lower(), word.end()
    if name not in COMMANDS or text[at : at + 1] not in (" ", "\t"):
        end = _end_of_line(text, start)
        first_word = re.split(r"[ \t]", text[start:end])[0]
        if name in COMMANDS:
            problem = f"{name.upper()} is not followed by a space and a value"
        else:
            problem = f"no command {_shown(first_word)}: a line starts with one of {', '.join(COMMANDS).upper()}, or #"
        return Fault(line, problem), end
    at += 1
    key = ""
    if name in ("parameter", "message"):
        word = re.compile(r"[A-Za-z0-9_]*" if name == "parameter" else r"[A-Za-z]*").match(text, at)
        assert word is not None
        key, at = word[0], word.end()
        problem = _key_problem(name, key, text[at : at + 1])
        if problem:
            return Fault(line, problem), _end_of_line(text, at)
        at += 1
    closed = _value(text, at)
    if closed is None:
        unclosed = f"the quote that opens {name.upper()} is never closed and takes the rest of the file"
        return Fault(line, f"{unclosed}: a closing quote must end its line"), len(text)
    value, end = closed
    return Command(line, line_of(text, end), name, key, value, text[at:end]), end


def _key_problem(name: str, key: str, follower: str) -> str:
    if not key and follower in (" ", "\t"):
        argument = "role" if name == "message" else "parameter's name"
        return f"{name.upper()} and the {argument} must be exactly one space apart"
    if name == "message" and key not in ROLES:
        return f"MESSAGE needs one of the roles {', '.join(ROLES)}, in lower case, not {key!r}"
    if follower not in (" ", "\t") or not follower:
        return f"{name.upper()} {key} is not followed by a space and a value"
    return ""


def _value(text: str, at: int) -> tuple[str, int] | None:
    """The value that starts at `at`, without quotes, and where it ends; None if its quote is not closed.

    parser.go examines the whole value at every line end. This function examines only the quote at the start and the
    last line, because nothing else can close the value.
    """
    end = _end_of_line(text, at)
    gathered = [_printable(text[at:end])]
    first = gathered[0].strip(_BLANK)
    quote = next((q for q in ('"""', '"') if first.startswith(q)), "")
    closes = len(first) >= 2 * len(quote) and first.endswith(quote)
    while not closes and end < len(text):
        start, end = end, _end_of_line(text, end + 1)
        gathered += [text[start], _printable(text[start + 1 : end])]
        closes = gathered[-1].rstrip(_BLANK).endswith(quote)
    if not closes:
        return None
    value = "".join(gathered).strip(_BLANK)
    return value[len(quote) : len(value) - len(quote)], end


def _end_of_line(text: str, at: int) -> int:
    line_end = _BREAK.search(text, at)
    return line_end.start() if line_end else len(text)


def _printable(text: str) -> str:
    if text.isascii() and text.isprintable():
        return text
    return "".join(c for c in text if c in _BLANK or is_printable(c))


def _shown(word: str) -> str:
    return repr(word if len(word) <= 40 else word[:40] + "...")
