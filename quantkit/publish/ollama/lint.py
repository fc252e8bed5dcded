"""The findings of a Modelfile, by Ollama's rules: `quantkit ollama --check FILE`."""

import codecs
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quantkit.errors import ModelfileError, UsageError
from quantkit.publish.ollama.go_syntax import syntax_fault
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
_PATH = re.compile(r"[./~\\]")
_FILE_NAME = re.compile(r".*\.(gguf|bin|safetensors)$", re.IGNORECASE)
_JINJA_TAG = re.compile(r"\{%[-+]?\s*(for|if|elif|else|endif|endfor|set|macro|block|generation|raw)\b")
_JINJA_USE = re.compile(r"\{\{[-+]?\s*(messages|message|bos_token|eos_token|raise_exception|content|system_message)\b")
_BARE_PROMPT = re.compile(r"\s*\{\{-?\s*\.Prompt\s*-?\}\}\s*")
_WAY_OUT_OF_JINJA = (
    "`quantkit ollama MODEL.gguf` makes a Go template from the GGUF's Jinja, or leaves TEMPLATE out if none is exact"
)
_UTF16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


@dataclass(frozen=True)
class Finding:
    """`error`: Ollama refuses the file for it. `warning`: Ollama accepts it with another meaning than it seems to have.

    `line` counts from 1.
    """

    line: int
    severity: Literal["error", "warning"]
    message: str


def lint_modelfile(text: str, folder: Path | None = None) -> list[Finding]:
    """The findings of a Modelfile's text in the order of its lines; an empty list if there are none.

    With `folder`, where the Modelfile is, the files that it names must exist. The rules are those of Ollama 0.32's
    parser, its api.FormatParams, and Go's template syntax.
    """
    commands, faults = read_commands(text)
    findings = [Finding(fault.line, "error", fault.message) for fault in faults]
    for command in commands:
        findings += _errors(command)
        findings += _warnings(command)
        findings += _template_findings(command)
        findings += _file_findings(command, folder) if folder is not None else ()
    findings += _across(commands)
    if not any(command.name == "from" for command in commands):
        findings.append(
            Finding(line_of(text, len(text)), "error", "no FROM: a Modelfile must name its model, as in FROM ./m.gguf")
        )
    return sorted(findings, key=lambda finding: finding.line)


def lint_file(path: Path) -> list[Finding]:
    """The findings of a Modelfile on disk, in UTF-8 or, with a byte order mark, UTF-16: Ollama reads both.

    Raises:
        UsageError: the file cannot be read.
        ModelfileError: it is not text.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    encoding = _UTF16.get(data[:2])
    try:
        text = data[2:].decode(encoding, "replace") if encoding else data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelfileError(
            f"{path} is not UTF-8 text (byte {error.start}), and Ollama would misread it; save it as UTF-8"
        ) from error
    return lint_modelfile(text, path.parent)


def _errors(command: Command) -> Iterator[Finding]:
    if command.name == "parameter" and command.key not in DEPRECATED:
        try:
            read_parameter(command.key, command.value)
        except ModelfileError as error:
            yield Finding(command.line, "error", str(error))
    if command.name == "requires" and not SEMANTIC_VERSION.fullmatch(command.value):
        yield Finding(command.line, "error", f"REQUIRES takes a version such as 0.30.0, not {command.value!r}")


def _template_findings(command: Command) -> Iterator[Finding]:
    """A TEMPLATE that Go does not parse, which `create` refuses, and Jinja, which is not Go's language."""
    if command.name != "template":
        return
    fault = syntax_fault(command.value)
    tag = _JINJA_TAG.search(command.value)
    jinja = tag or _JINJA_USE.search(command.value)
    if fault is not None:
        line = command.line + line_of(command.value, fault.at) - 1
        if jinja:
            yield Finding(line, "error", f"TEMPLATE is Jinja, and Ollama takes a Go template: {_WAY_OUT_OF_JINJA}")
        else:
            yield Finding(line, "error", f"TEMPLATE does not parse as a Go template: {fault.message}")
    elif tag:
        line = command.line + line_of(command.value, tag.start()) - 1
        message = f"TEMPLATE has the Jinja tag {tag[0]} ..., which Ollama writes into every prompt: {_WAY_OUT_OF_JINJA}"
        yield Finding(line, "warning", message)


def _file_findings(command: Command, folder: Path) -> Iterator[Finding]:
    """FROM, ADAPTER and DRAFT with a file that does not exist."""
    value = command.value
    if command.name not in ("from", "adapter", "draft") or not value or ("\\" in value and os.name != "nt"):
        return
    instruction = command.name.upper()
    try:
        exists = (folder / Path(value).expanduser()).exists()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, or a ~name that is not a user
        exists = False
    if exists:
        return
    if command.name == "adapter" or _PATH.match(value):
        yield Finding(
            command.line, "error", f"{instruction} {value}: file not found, relative to the Modelfile's folder"
        )
    elif _FILE_NAME.match(value):
        message = (
            f"{instruction} {value}: file not found beside the Modelfile, so Ollama takes it for the name of a model"
        )
        yield Finding(command.line, "warning", message)


def _warnings(command: Command) -> Iterator[Finding]:
    instruction = f"{command.name.upper()} {command.key}".rstrip()

    def warning(message: str, line: int = command.line) -> Finding:
        return Finding(line, "warning", message)

    if command.name == "parameter" and command.key in DEPRECATED:
        yield warning(f"{instruction} is deprecated: Ollama ignores it")
    deleted = deleted_by_parser(command.raw)
    if deleted:
        way_out = 'write it as a string action, such as {{ "\\u3000" }}'
        if command.name != "template":
            way_out = "only Ollama's HTTP API can carry it, which `quantkit ollama --create` uses"
        yield warning(f"Ollama deletes {named(deleted)} from {instruction}: {way_out}")
    yield from (warning(message) for message in _misread(command, instruction))
    for number, line in enumerate(_lines(command.raw)):
        if command.raw.lstrip(" \t").startswith('"') and _CLOSED_THEN_COMMENT.search(line):
            yield warning(
                f"a quote with # after it does not close {instruction}: the value goes on", command.line + number
            )
        if number and command.name not in ("license", "template") and _LATER_COMMAND.match(line):
            opened = f"the quote that opens {instruction} on line {command.line} is still open here"
            yield warning(f"{opened}, so this line is part of its value", command.line + number)


def _misread(command: Command, instruction: str) -> Iterator[str]:
    quoted = command.raw.lstrip(" \t").startswith('"')
    if not quoted and re.search(r"[ \t]#", command.raw):
        yield f"the # and what follows are part of {instruction}: a comment needs a separate line"
    if "\\n" in command.value and (command.key == "stop" or command.name in ("system", "message")):
        yield (
            f"\\n in {instruction} stays two characters: a Modelfile has no escapes, put a real line end in triple"
            " quotes"
        )
    if command.name in ("from", "adapter", "draft") and not command.value:
        yield f"{instruction} is empty: Ollama takes the Modelfile's own folder"
    if command.key == "stop" and not command.value:
        yield "PARAMETER stop is empty and can end an answer before it begins: leave it out"
    # quantkit writes it in quotes for a model that only completes text; `ollama show` prints it bare.
    if command.name == "template" and not quoted and _BARE_PROMPT.fullmatch(command.value):
        yield "TEMPLATE {{ .Prompt }} sends the bare prompt; `ollama show` prints it for a model without a template"


def _across(commands: list[Command]) -> Iterator[Finding]:
    last: dict[tuple[str, str], Command] = {}
    for command in commands:
        once = command.name in _ONCE or (command.name == "parameter" and command.key != "stop")
        slot = (command.name, command.key)
        if command.name == "from" and not (_PATH.match(command.value) or _FILE_NAME.match(command.value)):
            once, slot = True, ("from", "of a model's name")
        if once and slot in last:
            instruction = f"{command.name.upper()} {command.key}".rstrip()
            again = f"{instruction} was set on line {last[slot].line} already: only the last counts"
            yield Finding(command.line, "warning", again)
        last[slot] = command
    layers, context = last.get(("parameter", "num_gpu")), last.get(("parameter", "num_ctx"))
    if layers and layers.value not in ("-1", "0") and not context:
        loose = "num_gpu is fixed and num_ctx is not: its default grows with the GPU's memory, so loading can fail"
        yield Finding(layers.line, "warning", loose)


def _lines(text: str) -> list[str]:
    return re.split(r"\r\n|\r|\n", text)
