"""Options that several commands have, and the values they accept."""

import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from quantkit.errors import UsageError
from quantkit.files import refuse_misplaced
from quantkit.planning.context import KV_TYPES
from quantkit.system.addresses import is_web_address
from quantkit.system.python import StrEnum

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*$", re.IGNORECASE)
_PLAIN_NUMBER = re.compile(r"^\s*-?\d+(\.\d+)?\s*$")


class Format(StrEnum):
    """How a command answers: text for people, one JSON document, or nothing."""

    human = "human"
    json = "json"
    quiet = "quiet"


SourceArg = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A checkpoint folder, a hub id ([modelscope:]ORG/NAME[@REVISION]), or a GGUF file.",
        show_default=False,
    ),
]
FormatOption = Annotated[
    Format, typer.Option("--format", help="Output: text for people, one JSON document, or nothing.")
]
OFFLINE = typer.Option("--offline", help="Use only local files and the hub's cache.")
FORCE = typer.Option("--force", "-f", help="Overwrite outputs that already exist.")
DRY_RUN = typer.Option("--dry-run", help="Print the plan; read no weights, write nothing, call no server.")
MirrorOption = Annotated[
    str | None,
    typer.Option("--mirror", metavar="URL", help="Mirror of the Hugging Face hub.", show_default="$HF_ENDPOINT"),
]
OfflineOption = Annotated[bool, OFFLINE]
ForceOption = Annotated[bool, FORCE]
DryRunOption = Annotated[bool, DRY_RUN]


def output_option(metavar: str, help_: str, default: str | None = None) -> Any:
    """--output of one command: DIR or FILE, what it is, and where the outputs go without it.

    A path that cannot be such a folder or file is refused while the options are read.
    """

    def check(value: Path | None) -> Path | None:
        if value is not None:
            refuse_misplaced(value, "-o", is_folder=metavar == "DIR")
        return value

    return typer.Option("--output", "-o", metavar=metavar, help=help_, show_default=default or True, callback=check)


def context_option(help_: str = "Tokens of context.", *, least: int = 1, default: str | None = None) -> Any:
    """--ctx of one command, with the smallest value that it takes."""
    return typer.Option("--ctx", metavar="N", min=least, max=1 << 24, help=help_, show_default=default or True)


ContextOption = Annotated[int | None, context_option(default="by the model and command")]


def gpu_layers_option(*flags: str) -> Any:
    """--gpu-layers of one command, with the further names `flags`."""
    return typer.Option("--gpu-layers", *flags, metavar="auto|all|N", help="Layers on the GPU; auto: as many as fit.")


GPU_LAYERS = gpu_layers_option()
AUTO = "auto"
ParameterOption = Annotated[
    list[str] | None,
    typer.Option("--parameter", metavar="NAME=VALUE", help="An Ollama PARAMETER, such as temperature=0.5; repeat."),
]
RPC = typer.Option("--rpc", metavar="HOST:PORT", help="A llama.cpp rpc-server whose devices count as GPUs; repeat.")
NO_KV_OFFLOAD = typer.Option("--no-kv-offload", help="Keep the KV cache on the CPU.")
NO_STORED_SPEEDS = typer.Option(
    "--no-stored-speeds", help="Ignore the device speeds that `measure --speed` has stored."
)
KV_TYPE = typer.Option(metavar="TYPE", help=f"Type of the KV cache: {', '.join(KV_TYPES)}.")
RpcOption = Annotated[list[str] | None, RPC]
NoKvOffloadOption = Annotated[bool, NO_KV_OFFLOAD]
KvTypeOption = Annotated[str, KV_TYPE]
NoStoredSpeedsOption = Annotated[bool, NO_STORED_SPEEDS]
SystemOption = Annotated[str | None, typer.Option(metavar="TEXT", help="The system message.")]
ChatTemplateOption = Annotated[
    str | None, typer.Option(metavar="FILE|NAME", help="A Jinja file, a built-in template, or none.")
]
LICENSE = typer.Option(
    "--license",
    metavar="ID|FILE",
    help="License: an SPDX id such as apache-2.0, or a FILE with its text.",
    show_default="the GGUF's",
)
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def use_mirror(address: str) -> None:
    """Read the Hugging Face hub from its mirror at `address`; must be called before the hub's client is imported.

    Raises UsageError if it is not a web address.
    """
    if not is_web_address(address):
        raise UsageError(f"--mirror {address!r} is not a web address; write https://HOST")
    os.environ["HF_ENDPOINT"] = address.rstrip("/")


def check_name(name: str | None) -> None:
    """Raise UsageError if --name is not a plain name of files."""
    if name is not None and (not name or Path(name).name != name or not name.isprintable()):
        raise UsageError(f"--name {name!r} is not a plain name; choose the folder with -o")


def parse_size(text: str, option: str) -> int:
    """Bytes of a size such as `8G`, `500M` or `1.5GiB`: powers of 1000, or of 1024 with an i.

    Raises:
        UsageError: `text` is not a size, or the size is zero; the message names `option`.
    """
    match = _SIZE.match(text)
    if not match:
        raise UsageError(f"{option} {text!r} is not a size; write 500M, 8G or 2GiB")
    base = 1024 if match[3] else 1000
    size = (
        int(float(match[1]) * base ** "kmgt".find(match[2].lower() or "?") * base) if match[2] else int(float(match[1]))
    )
    if size <= 0:
        raise UsageError(f"{option} must be greater than zero")
    return size


def parse_memory(text: str, option: str) -> int:
    """A size with its unit; a number without a unit, which would be bytes, is refused."""
    if text.strip().startswith("-"):
        raise UsageError(f"{option} {text!r} is negative; write the memory there is, such as 8G")
    if _PLAIN_NUMBER.match(text) and float(text) > 0:
        raise UsageError(f"{option} {text!r} has no unit; write {text.strip()}G for gigabytes")
    return parse_size(text, option)


def parse_tensor_split(text: str | None, gpu_layers: str) -> tuple[int, ...]:
    """The numbers of --tensor-split; empty without the option.

    Raises:
        UsageError: a part is not a number, or --gpu-layers is auto, which computes the split.
    """
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or not any(map(int, parts)):
        raise UsageError(f"--tensor-split {text!r} is not a list of numbers of layers; write one a GPU, such as 10,23")
    if gpu_layers == AUTO:
        raise UsageError("--gpu-layers auto computes the split; set --gpu-layers too, or remove --tensor-split")
    return tuple(map(int, parts))


def parse_gpu_layers(text: str, choices: str = "auto, all, or a number") -> int | None:
    """Number of layers on the GPU that one word of --gpu-layers gives; None for `all`.

    A command treats AUTO before. `choices`: what the option accepts, for the error.

    Raises:
        UsageError: `text` is not `all`, and not a number.
    """
    word = text.strip()
    if word == "all":
        return None
    if not word.isdecimal():
        raise UsageError(f"--gpu-layers {text!r} is not a number of layers; write {choices}")
    return int(word)
