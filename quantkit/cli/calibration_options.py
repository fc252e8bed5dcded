"""Options of every command that calibrates."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from quantkit.cli.options import parse_size
from quantkit.errors import UsageError

CheckpointArg = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE", help="A checkpoint folder or a hub id (ORG/NAME or ORG/NAME@REVISION).", show_default=False
    ),
]
OutputOption = Annotated[
    Path, typer.Option("--output", "-o", metavar="DIR", help="Where outputs are made.", show_default="here")
]
NameOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Name of the outputs.", show_default="the source's")
]
CalibrationOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|ORG/NAME[:SPLIT]",
        help="Calibration text: a text, jsonl or parquet file, or a dataset of the hub.",
        show_default="a mixed text that comes with quantkit",
    ),
]
SamplesOption = Annotated[int, typer.Option(metavar="N", min=1, help="Calibration samples.")]
SeqLenOption = Annotated[int, typer.Option(metavar="N", min=2, help="Tokens of a sample.")]
ChatOption = Annotated[
    bool | None,
    typer.Option(
        "--chat/--raw",
        help="Conversations in the text go through the chat template, or in as they are.",
        show_default="the template if there is one",
    ),
]
GroupOption = Annotated[
    int, typer.Option("--group-size", metavar="N", help="Inputs that share a scale: 32, 64, 128; -1 for all.")
]
BitsOption = Annotated[int, typer.Option(metavar="N", help="Bits of a weight.")]
SkipOption = Annotated[
    list[str] | None,
    typer.Option("--skip", metavar="PATTERN", help="Linears not to quantize (down_proj, *.0.*); repeat."),
]
DtypeOption = Annotated[Literal["float16", "bfloat16"], typer.Option("--dtype", help="Type of what is not quantized.")]
MaxShardOption = Annotated[
    str, typer.Option("--max-shard-size", metavar="SIZE", help="Weight files of at most this size.")
]
ThreadsOption = Annotated[
    int | None, typer.Option(metavar="N", min=1, max=1024, help="Threads.", show_default="all cores")
]
MaxRamOption = Annotated[str | None, typer.Option(metavar="SIZE", help="Memory the run may take.")]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute; auto takes CUDA if torch finds it.")
]
LogitsOption = Annotated[
    bool | None,
    typer.Option(
        "--logits/--no-logits",
        help="Run each output and compare its logits with the source's.",
        show_default="if it fits in memory",
    ),
]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Use only what the hub's cache holds.")]


@dataclass(frozen=True)
class Calibrating:
    """What the user asked of the calibration itself."""

    text: str | None
    samples: int
    seq_len: int
    chat: bool | None
    threads: int | None
    max_ram: str | None
    device: str
    logits: bool | None
    offline: bool
    propagate: bool = False

    @property
    def ram(self) -> int | None:
        return parse_size(self.max_ram, "--max-ram") if self.max_ram else None


def check_name(name: str | None) -> None:
    """Raise UsageError for a --name that is more than a plain name."""
    if name is not None and (Path(name).name != name or name in (".", "..") or not name.isprintable()):
        raise UsageError(f"--name {name!r} is not a plain name; say where to write with -o")
