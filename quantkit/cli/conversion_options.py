"""The options of convert and its presets, declared once; each group is a dataclass whose fields are the options."""

# ruff: noqa: RUF009 (option returns a dataclass field)

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import typer

from quantkit.cli.gguf_options import complete_gguf_type
from quantkit.cli.option_groups import declared, option
from quantkit.cli.options import DRY_RUN, FORCE, OFFLINE, output_option
from quantkit.errors import UsageError

if TYPE_CHECKING:
    from quantkit.adapters import AdapterRequest

IMATRIX = "imatrix"


def complete_type(incomplete: str) -> list[tuple[str, str]]:
    """All types of convert and their summaries, for shells."""
    from quantkit.packed.registry import FORMATS

    others = {name: kind.summary for name, kind in FORMATS.items()} | {IMATRIX: "an importance matrix, as a file"}
    return [item for item in others.items() if item[0].startswith(incomplete.lower())] + complete_gguf_type(incomplete)


def type_option(help_: str, complete: Callable[[str], list[tuple[str, str]]], default: str | None = None) -> Any:
    """--type of a conversion command: the types that it takes, their completion, and the type without it."""
    return typer.Option(
        "--type",
        "-t",
        metavar="TYPE",
        rich_help_panel=OutputOptions.heading,
        help=help_,
        show_default=default or True,
        autocompletion=complete,
    )


Quality = Literal["standard", "high", "best"]
CheckpointArg = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A checkpoint folder, or a hub id ([modelscope:]ORG/NAME[@REVISION]).",
        show_default=False,
    ),
]
THREADS = typer.Option(metavar="N", min=1, max=1024, help="Threads.", show_default="all cores")
_MAX_RAM = typer.Option(metavar="SIZE", help="Limit of the memory of the run.")
_DEVICE = typer.Option(help="Where to compute; auto uses CUDA if torch finds it.")
ThreadsOption = Annotated[int | None, THREADS]
MaxRamOption = Annotated[str | None, _MAX_RAM]
DeviceOption = Annotated[Literal["auto", "cpu", "cuda"], _DEVICE]


@dataclass(frozen=True)
class OutputOptions:
    """Where outputs go, and how they are checked."""

    heading: ClassVar[str] = "Outputs"
    output: Path = declared(Path(), output_option("DIR", "Folder of the outputs.", "here"))
    name: str | None = option(None, "Name of the outputs.", metavar="NAME", show_default="the source's")
    logits: bool | None = option(
        None,
        "Run each output and compare its logits with the source's.",
        "--logits/--no-logits",
        show_default="if it fits in memory",
    )
    reference: Literal["transformers"] | None = option(
        None, "Compare the logits of GGUF types with those of transformers (--converter-python), too."
    )


@dataclass(frozen=True)
class AdapterOptions:
    """LoRA adapters that a conversion merges."""

    heading: ClassVar[str] = "Adapters"
    adapter: list[str] | None = option(
        None,
        "LoRA adapter of PEFT (a folder or a hub id) to merge into the weights; repeat.",
        metavar="ADAPTER",
    )
    adapter_scale: list[float] | None = option(
        None, "Factor of what an adapter adds; one for each --adapter, in order.", metavar="X", show_default="1"
    )

    @property
    def requests(self) -> "tuple[AdapterRequest, ...]":
        """The adapters with their scales. Raises UsageError if the scales are not as many as the adapters."""
        from quantkit.adapters import AdapterRequest

        sources, scales = self.adapter or [], self.adapter_scale or []
        if scales and len(scales) != len(sources):
            raise UsageError(
                f"--adapter-scale is given {len(scales)} times, but --adapter {len(sources)} times; give one scale for"
                " each adapter, in order"
            )
        return tuple(AdapterRequest(*pair) for pair in zip(sources, scales or [1.0] * len(sources), strict=True))


@dataclass(frozen=True)
class PackedOptions:
    """Options of folders of quantized weights."""

    heading: ClassVar[str] = "Folders"
    bits: int = option(4, "Bits of a weight of AWQ and GPTQ: 2, 3, 4 or 8.", metavar="N")
    group_size: int | None = option(
        None, "Inputs that share a scale: 32, 64, 128; -1 for all.", metavar="N", show_default="128; MLX: 64"
    )
    algorithm: Literal["gptq", "awq"] = option("gptq", "Rounding of w4a16 and w8a16: GPTQ's or AWQ's.")
    skip: list[str] | None = option(None, "Linears not to quantize (down_proj, *.0.*); repeat.", metavar="PATTERN")
    dtype: Literal["float16", "bfloat16"] | None = option(
        None, "Type of unquantized tensors.", show_default="AWQ, GPTQ: float16; others: the source's"
    )
    max_shard_size: str = option("5G", "Largest size of a weight file.", metavar="SIZE")
    base: str | None = option(None, "Source of config.json and tokenizer for a GGUF as SOURCE.", metavar="DIR|ORG/NAME")


@dataclass(frozen=True)
class QualityOptions:
    """The preset of how types are rounded."""

    heading: ClassVar[str] = "Quality"
    quality: Quality = option(
        "standard",
        "Preset: high is --solver feedback of GGUF types; best also follows the rounded layers, in folders too.",
    )


@dataclass(frozen=True)
class FolderQualityOptions:
    """The preset of how a folder is rounded."""

    heading: ClassVar[str] = "Quality"
    quality: Literal["standard", "best"] = option(
        "standard", "best: round each matrix for the inputs that the rounded layers before it give (slower)."
    )


@dataclass(frozen=True)
class AwqOptions:
    """Options of AWQ alone."""

    heading: ClassVar[str] = "AWQ"
    rounding: Literal["feedback", "nearest"] = option(
        "feedback", "Rounding, of w4a4 too: feed errors to later columns, as GPTQ does, or to nearest."
    )


@dataclass(frozen=True)
class GptqOptions:
    """Options of GPTQ alone."""

    heading: ClassVar[str] = "GPTQ"
    symmetric: bool = option(
        True, "One zero point for all groups (every kernel reads it), or one a group.", "--sym/--asym"
    )
    act_order: bool = option(True, "Quantize columns in order of decreasing activation.", "--act-order/--no-act-order")
    static_groups: bool = option(
        True,
        "Groups of adjacent columns despite --act-order, which kernels read fastest.",
        "--static-groups/--no-static-groups",
    )
    damp: float | None = option(
        None,
        "Damping: this fraction of the Hessian's mean diagonal is added to its diagonal.",
        metavar="FRACTION",
        min=0.0,
        max=1.0,
        show_default="chosen on held-out samples",
    )
    propagate: Literal["float", "quantized"] = option(
        "float", "Layers whose activations calibrate the next layer: the source's or the quantized ones."
    )


@dataclass(frozen=True)
class CalibrationOptions:
    """What to calibrate on."""

    heading: ClassVar[str] = "Calibration"
    calibration: list[str] | None = option(
        None,
        "Calibration text (txt, jsonl, parquet), hub dataset, or default; repeat to mix.",
        metavar="FILE|ORG/NAME[:SPLIT]",
        show_default="default, a mixed text that comes with quantkit",
    )
    samples: int = option(128, "Calibration samples.", metavar="N", min=1)
    seq_len: int = option(512, "Tokens of a sample.", metavar="N", min=2)
    chat: bool | None = option(
        None,
        "Apply the chat template to conversations in the text, or use them as they are.",
        "--chat/--raw",
        show_default="the template if there is one",
    )
    device: Literal["auto", "cpu", "cuda"] = declared("auto", _DEVICE)


@dataclass(frozen=True)
class RunOptions:
    """How to work; nothing here changes a byte."""

    heading: ClassVar[str] = "Run"
    threads: int | None = declared(None, THREADS)
    max_ram: str | None = declared(None, _MAX_RAM)
    stream: bool = option(
        False,
        "Read the hub's weights by range requests while they are converted; no copy on the disk.",
        "--stream",
    )
    dry_run: bool = declared(False, DRY_RUN)
    force: bool = declared(False, FORCE)
    offline: bool = declared(False, OFFLINE)
