"""The options of `quantkit ollama`: their declarations, and the values they give."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantkit.cli.options import (
    AUTO,
    LICENSE,
    gpu_layers_option,
    output_option,
    parse_gpu_layers,
    parse_memory,
)
from quantkit.errors import UsageError
from quantkit.machine import this_machine
from quantkit.publish.ollama.plan_file import FILE_NAME

if TYPE_CHECKING:
    from quantkit.publish.ollama.overrides import Overrides

NONE = "none"
_ROLES = ("system", "user", "assistant")

ModelsArg = Annotated[
    list[Path] | None,
    typer.Argument(metavar="MODEL.gguf", help="GGUF files, or a NAME-GGUF folder.", show_default=False),
]
NameOption = Annotated[
    str | None,
    typer.Option("--name", metavar="NS/MODEL[:TAG]", help="Name to publish under.", show_default=False),
]
OutputOption = Annotated[
    Path | None,
    output_option("DIR", "Folder of the Modelfiles.", "beside the GGUF"),
]
DefaultOption = Annotated[
    str | None,
    typer.Option(metavar="TYPE", help="Type that gets the short tags.", show_default="q4_0 if present"),
]
SizeOption = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Model size in the tags, such as 4b.", show_default="the GGUF's, rounded"),
]
PlanOption = Annotated[
    Path | None, typer.Option("--plan", metavar="FILE", help=f"An edited {FILE_NAME}, used instead of a new plan.")
]
RecipeOption = Annotated[
    Path | None, typer.Option("--recipe", metavar="FILE", help="A recipe; its [ollama] table gives the defaults.")
]
GpuLayersOption = Annotated[str | None, gpu_layers_option("--num-gpu")]
VramOption = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="GPU memory for --gpu-layers auto.", show_default="the free memory"),
]
LicenseOption = Annotated[list[str] | None, LICENSE]
MessageOption = Annotated[
    list[str] | None,
    typer.Option("--message", metavar="ROLE=TEXT", help="A first message of the conversation; repeat."),
]
MmprojOption = Annotated[
    str | None,
    typer.Option(
        "--mmproj", metavar="FILE|none", help="Projector of a model that sees.", show_default="the one beside it"
    ),
]
AdapterOption = Annotated[
    Path | None, typer.Option("--adapter", metavar="FILE", help="GGUF of a LoRA adapter, loaded with the model.")
]
CheckOption = Annotated[
    Path | None, typer.Option("--check", metavar="FILE", help="Check a Modelfile and do nothing else.")
]
CreateOption = Annotated[bool, typer.Option("--create", help="Create every tag on the Ollama server.")]
PushOption = Annotated[bool, typer.Option("--push", help="Create every tag, then push all tags.")]
HostOption = Annotated[
    str | None,
    typer.Option(metavar="URL", help="The Ollama server.", show_default="OLLAMA_HOST, else 127.0.0.1:11434"),
]
InsecureOption = Annotated[bool, typer.Option("--insecure", help="Push to a registry without TLS.")]


def read_gpu_layers(text: str | None, vram: str | None) -> tuple[int | None, int | None]:
    """(layers, None) for a number or `all`; (None, bytes of GPU memory) for `auto`; (None, None) without the option.

    Raises:
        UsageError: `text` is not a number, `all` or `auto`, or `auto` is given and this machine has no GPU.
    """
    if text != AUTO:
        if vram is not None:
            raise UsageError("--vram is the GPU memory of --gpu-layers auto; give both")
        if text is None:
            return None, None
        from quantkit.publish.ollama.bundle import ALL_LAYERS

        layers = parse_gpu_layers(text)
        return (ALL_LAYERS if layers is None else layers), None
    memory = parse_memory(vram, "--vram") if vram is not None else this_machine().vram
    if not memory:
        raise UsageError(
            "--gpu-layers auto finds no GPU on this machine; pass the GPU memory to publish for, such as --vram 8G"
        )
    return None, memory


def read_overrides(
    parameters: list[str] | None,
    ctx: int | None,
    num_gpu: int | None,
    system: str | None,
    licenses: list[str] | None,
    messages: list[str] | None,
    chat_template: str | None,
) -> "Overrides":
    """The overrides that the options give.

    Raises:
        UsageError: a parameter, message, template or file is not valid.
    """
    from quantkit.publish.ollama.overrides import Overrides, check_parameter, typed_parameter

    pairs = [typed_parameter(text, "--parameter") for text in parameters or ()]
    for option, key, value in (("--ctx", "num_ctx", ctx), ("--gpu-layers", "num_gpu", num_gpu)):
        if value is not None:
            if any(name == key for name, _ in pairs):
                raise UsageError(f"{option} and --parameter {key} set the same value; give one of them")
            pairs.append((key, check_parameter(key, value, option)))
    return Overrides(
        parameters=tuple(pairs),
        system=system,
        licenses=tuple(_license(text) for text in licenses or ()),
        messages=tuple(_message(text) for text in messages or ()),
        chat_template=_template(chat_template),
    )


def license_is_file(text: str) -> bool:
    """Whether a value of --license is a file: not an SPDX id, and a file of that name exists."""
    return not _is_spdx(text) and Path(text).is_file()


def _is_spdx(text: str) -> bool:
    from quantkit.publish.card.metadata import LICENSES

    return text.lower() in LICENSES


def license_name(text: str) -> str:
    """The name of the license in --license: the id or name itself, or the first line with text of the FILE."""
    if not license_is_file(text):
        return text
    lines = [line.strip() for line in _read(Path(text), "--license").splitlines() if line.strip()]
    if not lines:
        raise UsageError(f"--license {text} is empty; pass an SPDX id or a file with text")
    return lines[0]


def _license(text: str) -> str:
    """The text of LICENSE in a Modelfile: an SPDX id as it is, else the content of a file."""
    return text if _is_spdx(text) else _read(Path(text), "--license")


def _template(name: str | None) -> str | None:
    if name is None or name == NONE:
        return None if name is None else ""
    from quantkit.chat import BUILT_IN, built_in

    if name in BUILT_IN:
        return BUILT_IN[name].text
    if not Path(name).is_file():
        return built_in(name).text  # its error lists the built-in names
    text = _read(Path(name), "--chat-template")
    if not text.strip():
        raise UsageError(f"the chat template {name} is empty; pass 'none' to leave the template out")
    return text


def _read(path: Path, option: str) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {option} {path}: {error.strerror or error}; check the path") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{option} {path} is not UTF-8 text; save it as UTF-8") from error


def _message(text: str) -> tuple[str, str]:
    role, equals, content = text.partition("=")
    if not equals or role not in _ROLES or not content:
        raise UsageError(f"--message {text!r} is not ROLE=TEXT; the role must be one of {', '.join(_ROLES)}")
    return role, content
