"""What is wrong with a Modelfile, or is not what it seems: `quantkit ollama --check FILE`."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quantkit.errors import ModelfileError, UsageError
from quantkit.publish.ollama.modelfile_parser import COMMANDS, Command, deleted_by_parser, line_of, read_commands
from quantkit.publish.ollama.modelfile_text import named
from quantkit.publish.ollama.parameters import DEPRECATED, read_parameter

SEMANTIC_VERSION = re.compile(
    r"v?(0|[1-9]\d*)(\.(0|[1-9]\d*)(\.(0|[1-9]\d*)"
    r"(-(0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*)(\.(0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*))*)?"
    r"(\+[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?)?)?",
    re.ASCII,
)

_LATER_COMMAND = re.compile(rf"[ \t]*({'|'.join(COMMANDS)})[ \t]+\S", re.IGNORECASE)
_CLOSED_THEN_COMMENT = re.compile(r'"[ \t]+#')
_ONCE = ("template", "system", "adapter", "renderer", "parser", "requires")
_A_FILE = re.compile(r"[./~\\]|.*\.(gguf|bin|safetensors)$", re.IGNORECASE)


@dataclass(frozen=True)
class Finding:
    """`error`: Ollama refuses the file for it. `warning`: Ollama takes it, as something else than it seems to say."""

    line: int
    severity: Literal["error", "warning"]
    message: str


def lint_modelfile(text: str) -> list[Finding]:
    """Everything to say about a Modelfile's text, in the order of its lines (from 1); an empty list is a clean bill.

    The rules are those of Ollama 0.32's parser and of its api.FormatParams. Go template syntax is not looked at.
    """
    commands, faults = read_commands(text)
    findings = [Finding(fault.line, "error", fault.message) for fault in faults]
    for command in commands:
        findings += _errors(command)
        findings += _warnings(command)
    findings += _across(commands)
    if not any(command.name == "from" for command in commands):
        findings.append(Finding(line_of(text, len(text)), "error", "no FROM: a Modelfile must say what model it is of"))
    return sorted(findings, key=lambda finding: finding.line)


def lint_file(path: Path) -> list[Finding]:
    """The findings of a Modelfile on disk.

    Raises:
        UsageError: the file cannot be read.
        ModelfileError: it is not UTF-8 text.
    """
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ModelfileError(
            f"{path} is not UTF-8 text (byte {error.start}); Ollama would not read it as meant"
        ) from error
    return lint_modelfile(text)


def _errors(command: Command) -> Iterator[Finding]:
    if command.name == "parameter" and command.key not in DEPRECATED:
        try:
            read_parameter(command.key, command.value)
        except ModelfileError as error:
            yield Finding(command.line, "error", str(error))
    if command.name == "requires" and not SEMANTIC_VERSION.fullmatch(command.value):
        yield Finding(command.line, "error", f"REQUIRES takes a version such as 0.30.0, not {command.value!r}")


def _warnings(command: Command) -> Iterator[Finding]:
    what = f"{command.name.upper()} {command.key}".rstrip()

    def warning(message: str, line: int = command.line) -> Finding:
        return Finding(line, "warning", message)

    if command.name == "parameter" and command.key in DEPRECATED:
        yield warning(f"{what} is deprecated: Ollama ignores it")
    gone = deleted_by_parser(command.raw)
    if gone:
        way_out = 'write it as a string action, such as {{ "\\u3000" }}'
        way_out = way_out if command.name == "template" else "only Ollama's HTTP API can carry it"
        yield warning(f"Ollama deletes {named(gone)} from {what}: {way_out}")
    yield from (warning(message) for message in _misread(command, what))
    for number, line in enumerate(_lines(command.raw)):
        if command.raw.lstrip(" \t").startswith('"') and _CLOSED_THEN_COMMENT.search(line):
            yield warning(f"a quote with # after it does not close {what}: the value goes on", command.line + number)
        if number and command.name not in ("license", "template") and _LATER_COMMAND.match(line):
            opened = f"the quote that opens {what} on line {command.line} is still open here"
            yield warning(f"{opened}, so this line is part of its value", command.line + number)


def _misread(command: Command, what: str) -> Iterator[str]:
    quoted = command.raw.lstrip(" \t").startswith('"')
    if not quoted and re.search(r"[ \t]#", command.raw):
        yield f"the # and what follows are part of {what}: a comment needs a line of its own"
    if "\\n" in command.value and (command.key == "stop" or command.name in ("system", "message")):
        yield f"\\n in {what} stays two characters: a Modelfile has no escapes, put a real line end in triple quotes"
    if command.name in ("from", "adapter", "draft") and not command.value:
        yield f"{what} is empty: Ollama takes the Modelfile's own folder"
    if command.key == "stop" and not command.value:
        yield "PARAMETER stop is empty and can end an answer before it begins: leave it out"
    if command.name == "template" and re.fullmatch(r"\s*\{\{-?\s*\.Prompt\s*-?\}\}\s*", command.value):
        yield "TEMPLATE {{ .Prompt }} sends the bare prompt; `ollama show` prints it for a model without a template"


def _across(commands: list[Command]) -> Iterator[Finding]:
    last: dict[tuple[str, str], Command] = {}
    for command in commands:
        once = command.name in _ONCE or (command.name == "parameter" and command.key != "stop")
        slot = (command.name, command.key)
        if command.name == "from" and not _A_FILE.match(command.value):
            once, slot = True, ("from", "of a model's name")
        if once and slot in last:
            what = f"{command.name.upper()} {command.key}".rstrip()
            again = f"{what} was set on line {last[slot].line} already: only the last counts"
            yield Finding(command.line, "warning", again)
        last[slot] = command
    layers, context = last.get(("parameter", "num_gpu")), last.get(("parameter", "num_ctx"))
    if layers and layers.value not in ("-1", "0") and not context:
        loose = "num_gpu is fixed and num_ctx is not: its default grows with the GPU's memory, so loading can fail"
        yield Finding(layers.line, "warning", loose)


def _lines(text: str) -> list[str]:
    return re.split(r"\r\n|\r|\n", text)
