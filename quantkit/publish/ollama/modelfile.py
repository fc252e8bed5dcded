"""Modelfiles: what `ollama create` reads. Writing and reading agree with Ollama's own parser.

The grammar (Ollama 0.32, parser/parser.go) has no escapes, and deletes code points that it cannot print. A value that
the grammar cannot express is refused with the reason, never written differently.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from quantkit.errors import ModelfileError
from quantkit.publish.ollama.lint import SEMANTIC_VERSION, Finding, lint_modelfile
from quantkit.publish.ollama.modelfile_parser import ROLES, Command, read_commands
from quantkit.publish.ollama.modelfile_text import bare, quoted, quoted_in_line, quoted_template
from quantkit.publish.ollama.parameters import DEPRECATED, PARAMETERS, ParameterValue, format_parameter, read_parameter

__all__ = ["DEPRECATED", "PARAMETERS", "Finding", "Modelfile", "lint_modelfile", "parse_modelfile", "write_modelfile"]


@dataclass(frozen=True)
class Modelfile:
    """The values of a Modelfile.

    `sources` are FROM's values: a model's name, or paths that Ollama merges (a model and its mmproj). `parameters` are
    (name, value) with a value of the type in PARAMETERS; stop may repeat. `messages` are (role, text). None means that
    the command is absent; an empty text means that it is present.
    """

    sources: tuple[str, ...]
    parameters: tuple[tuple[str, ParameterValue], ...] = ()
    template: str | None = None
    system: str | None = None
    licenses: tuple[str, ...] = ()
    messages: tuple[tuple[str, str], ...] = ()
    adapter: str | None = None
    requires: str | None = None
    renderer: str | None = None
    parser: str | None = None
    drafts: tuple[str, ...] = ()


def write_modelfile(modelfile: Modelfile) -> str:
    """The text of a Modelfile that Ollama's parser reads as `modelfile`; its lines end in a line feed.

    Write it in UTF-8 with unchanged line ends (`newline=""`), because a carriage return in a value is kept.
    TEMPLATE may be written differently, with the same rendering (see modelfile_text.quoted_template).

    Raises:
        ModelfileError: the grammar cannot express a value, or Ollama would refuse or ignore it.
    """
    return "".join(f"{line}\n" for line in _lines(modelfile))


def parse_modelfile(text: str) -> Modelfile:
    """The values that Ollama takes from a Modelfile's text.

    The last of a repeated command or parameter counts, unless it is a list. Deprecated parameters are ignored, and
    code points that Ollama deletes are absent.

    Raises:
        ModelfileError: Ollama refuses the text; the message names the line.
    """
    commands, faults = read_commands(text)
    if faults:
        raise ModelfileError(f"line {faults[0].line} of the Modelfile: {faults[0].message}")
    if not any(command.name == "from" for command in commands):
        raise ModelfileError(
            "the Modelfile has no FROM: its first line should be FROM and a model's name or a GGUF's path"
        )
    last = {command.name: command.value for command in commands}
    if "requires" in last and not SEMANTIC_VERSION.fullmatch(last["requires"]):
        raise ModelfileError(f"the Modelfile's REQUIRES takes a version such as 0.30.0, not {last['requires']!r}")
    return Modelfile(
        sources=tuple(_values(commands, "from")),
        parameters=_parameters(commands),
        template=last.get("template"),
        system=last.get("system"),
        licenses=tuple(_values(commands, "license")),
        messages=tuple((c.key, c.value) for c in commands if c.name == "message"),
        adapter=last.get("adapter"),
        requires=last.get("requires"),
        renderer=last.get("renderer"),
        parser=last.get("parser"),
        drafts=tuple(_values(commands, "draft")),
    )


def _lines(modelfile: Modelfile) -> Iterator[str]:
    if not modelfile.sources:
        raise ModelfileError("a Modelfile needs a FROM; add a model's name or a GGUF's path")
    for source in modelfile.sources:
        yield f"FROM {_path(source, 'FROM')}"
    if modelfile.adapter is not None:
        yield f"ADAPTER {_path(modelfile.adapter, 'ADAPTER')}"
    for draft in modelfile.drafts:
        yield f"DRAFT {_path(draft, 'DRAFT')}"
    if modelfile.requires is not None:
        if not SEMANTIC_VERSION.fullmatch(modelfile.requires):
            raise ModelfileError(f"REQUIRES takes a version such as 0.30.0, not {modelfile.requires!r}")
        yield f"REQUIRES {modelfile.requires}"
    yield from _parameter_lines(modelfile.parameters)
    if modelfile.renderer is not None:
        yield f"RENDERER {bare(modelfile.renderer, 'RENDERER')}"
    if modelfile.parser is not None:
        yield f"PARSER {bare(modelfile.parser, 'PARSER')}"
    if modelfile.template is not None:
        yield f"TEMPLATE {quoted_template(modelfile.template)}"
    if modelfile.system is not None:
        yield f"SYSTEM {quoted(modelfile.system, 'SYSTEM')}"
    for role, text in modelfile.messages:
        if role not in ROLES:
            raise ModelfileError(f"MESSAGE needs one of the roles {', '.join(ROLES)}, not {role!r}")
        yield f"MESSAGE {role} {quoted(text, f'MESSAGE {role}')}"
    for text in modelfile.licenses:
        yield f"LICENSE {quoted(text, 'LICENSE')}"


def _path(value: str, instruction: str) -> str:
    if not value:
        raise ModelfileError(
            f"{instruction} is empty, which Ollama takes for the Modelfile's own folder: name a model or a file"
        )
    return bare(value, instruction)


def _parameter_lines(parameters: tuple[tuple[str, ParameterValue], ...]) -> Iterator[str]:
    names: set[str] = set()
    for name, value in parameters:
        text = format_parameter(name, value)
        if name == "stop":
            if not text:
                raise ModelfileError("PARAMETER stop is empty and could end an answer before it begins; leave it out")
            text = quoted_in_line(text, "PARAMETER stop")
        elif name in names:
            raise ModelfileError(f"PARAMETER {name} is given twice, and only the last counts; give it once")
        names.add(name)
        yield f"PARAMETER {name} {text}"


def _parameters(commands: list[Command]) -> tuple[tuple[str, ParameterValue], ...]:
    read: list[tuple[str, ParameterValue]] = []
    for command in commands:
        if command.name != "parameter" or command.key in DEPRECATED:
            continue
        try:
            value = read_parameter(command.key, command.value)
        except ModelfileError as error:
            raise ModelfileError(f"line {command.line} of the Modelfile: {error}") from error
        if command.key != "stop":
            read = [parameter for parameter in read if parameter[0] != command.key]
        read.append((command.key, value))
    return tuple(read)


def _values(commands: list[Command], name: str) -> Iterator[str]:
    return (command.value for command in commands if command.name == name)
