"""The options of convert and its presets, declared once; each group is a dataclass whose fields are the options."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

from quantkit.chat import BUILT_IN
from quantkit.cli.options import DryRunOption, ForceOption
from quantkit.errors import UsageError
from quantkit.gguf.file_types import FILE_TYPES

PACKED_TYPES = {"awq": "AWQ, AutoAWQ's GEMM format", "gptq": "GPTQ, AutoGPTQ's format"}
IMATRIX = "imatrix"
PRESET = "phone"


def complete_gguf_type(incomplete: str) -> list[tuple[str, str]]:
    """GGUF types and their summaries, for shells."""
    return [(name, kind.summary) for name, kind in FILE_TYPES.items() if name.startswith(incomplete.lower())]


def complete_type(incomplete: str) -> list[tuple[str, str]]:
    """All types of convert and their summaries, for shells."""
    others = PACKED_TYPES | {IMATRIX: "an importance matrix, as a file"}
    return [(name, text) for name, text in others.items() if name.startswith(incomplete.lower())] + complete_gguf_type(
        incomplete
    )


def _complete_template(incomplete: str) -> list[tuple[str, str]]:
    names = {name: template.models for name, template in BUILT_IN.items()} | {"none": "no template"}
    return [(name, text) for name, text in names.items() if name.startswith(incomplete)]


CheckpointArg = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE", help="A checkpoint folder or a hub id (ORG/NAME or ORG/NAME@REVISION).", show_default=False
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option(metavar="N", min=1, max=1024, help="Threads.", show_default="all cores")
]
MaxRamOption = Annotated[str | None, typer.Option(metavar="SIZE", help="Limit of the memory of the run.")]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute; auto uses CUDA if torch finds it.")
]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Use only files in the hub's cache.")]


@dataclass(frozen=True)
class OutputOptions:
    """Where outputs go, and how they are checked."""

    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of the outputs.", show_default="here")
    ] = Path()
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the outputs.", show_default="the source's")
    ] = None
    logits: Annotated[
        bool | None,
        typer.Option(
            "--logits/--no-logits",
            help="Run each output and compare its logits with the source's.",
            show_default="if it fits in memory",
        ),
    ] = None


@dataclass(frozen=True)
class GgufOptions:
    """Options of GGUF types."""

    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="phone: q4_0 and q4_k_m with an importance matrix (--calibrate, unless --imatrix is given).",
            autocompletion=lambda: [PRESET],
        ),
    ] = None
    imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Importance matrix of llama.cpp (GGUF or .dat).")
    ] = None
    calibrate: Annotated[
        bool | None,
        typer.Option(
            "--calibrate/--no-imatrix",
            help="Compute the importance matrix of GGUF types over a calibration text, or use none.",
            show_default="convert: --calibrate, gguf: --no-imatrix",
        ),
    ] = None
    tensor_type: Annotated[
        list[str] | None, typer.Option(metavar="REGEX=TYPE", help="Type of the tensors whose name matches; repeat.")
    ] = None
    output_type: Annotated[str | None, typer.Option(metavar="TYPE", help="Type of the output head.")] = None
    embedding_type: Annotated[str | None, typer.Option(metavar="TYPE", help="Type of the token embedding.")] = None
    leave_output_tensor: Annotated[
        bool, typer.Option("--leave-output-tensor", help="Keep the output head unquantized.")
    ] = False
    pure: Annotated[bool, typer.Option("--pure", help="One type for all tensors, no mix.")] = False
    split_max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Write shards of at most this size (500M, 2G).")
    ] = None
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Accept a source that is quantized already.")
    ] = False
    pre: Annotated[str | None, typer.Option(metavar="NAME", help="BPE pre-tokenizer, if it is not recognized.")] = None
    chat_template: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            help="Chat template of the GGUF: a Jinja file, one of "
            + ", ".join(BUILT_IN)
            + ", or none. Write a file with such a name as ./NAME.",
            autocompletion=_complete_template,
            show_default="the checkpoint's",
        ),
    ] = None


@dataclass(frozen=True)
class PackedOptions:
    """Options of AWQ and GPTQ."""

    bits: Annotated[int, typer.Option(metavar="N", help="Bits of a weight: 2, 3, 4 or 8.")] = 4
    group_size: Annotated[
        int, typer.Option(metavar="N", help="Inputs that share a scale: 32, 64, 128; -1 for all.")
    ] = 128
    skip: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Linears not to quantize (down_proj, *.0.*); repeat."),
    ] = None
    dtype: Annotated[Literal["float16", "bfloat16"], typer.Option(help="Type of unquantized tensors.")] = "float16"
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Largest size of a weight file.")] = "5G"


@dataclass(frozen=True)
class GptqOptions:
    """Options of GPTQ alone."""

    symmetric: Annotated[
        bool,
        typer.Option("--sym/--asym", help="One zero point for all groups (every kernel reads it), or one a group."),
    ] = True
    act_order: Annotated[
        bool, typer.Option("--act-order/--no-act-order", help="Quantize columns in order of decreasing activation.")
    ] = True
    static_groups: Annotated[
        bool,
        typer.Option(
            "--static-groups/--no-static-groups",
            help="Groups of adjacent columns despite --act-order, which kernels read fastest.",
        ),
    ] = True
    damp: Annotated[
        float,
        typer.Option(
            metavar="FRACTION",
            min=0.0,
            max=1.0,
            help="Damping: this fraction of the Hessian's mean diagonal is added to its diagonal.",
        ),
    ] = 0.01
    propagate: Annotated[
        Literal["float", "quantized"],
        typer.Option(help="Layers whose activations calibrate the next layer: the source's or the quantized ones."),
    ] = "float"


@dataclass(frozen=True)
class CalibrationOptions:
    """What to calibrate on."""

    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|ORG/NAME[:SPLIT]",
            help="Calibration text: a text, jsonl or parquet file, or a dataset of the hub.",
            show_default="a mixed text that comes with quantkit",
        ),
    ] = None
    samples: Annotated[int, typer.Option(metavar="N", min=1, help="Calibration samples.")] = 128
    seq_len: Annotated[int, typer.Option(metavar="N", min=2, help="Tokens of a sample.")] = 512
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--raw",
            help="Apply the chat template to conversations in the text, or use them as they are.",
            show_default="the template if there is one",
        ),
    ] = None
    device: DeviceOption = "auto"


@dataclass(frozen=True)
class RunOptions:
    """How to work; nothing here changes a byte."""

    threads: ThreadsOption = None
    max_ram: MaxRamOption = None
    dry_run: DryRunOption = False
    force: ForceOption = False
    offline: OfflineOption = False


def grouped(function: Callable[..., None]) -> Callable[..., None]:
    """`function` as a command: each parameter that is a dataclass of options becomes those options."""
    hints = get_type_hints(function, include_extras=True)
    parameters = [
        parameter.replace(annotation=hints[name], kind=Parameter.KEYWORD_ONLY)
        for name, parameter in signature(function).parameters.items()
    ]
    groups = {parameter.name: _options(hints[parameter.name]) for parameter in parameters}

    @wraps(function)
    def command(*positional: Any, **values: Any) -> None:
        for name, options in groups.items():
            if options:
                values[name] = hints[name](**{option.name: values.pop(option.name) for option in options})
        function(*positional, **values)

    flat = [option for parameter in parameters for option in groups[parameter.name] or [parameter]]
    command.__signature__ = signature(function).replace(parameters=flat)  # type: ignore[attr-defined]
    return command


def refuse_idle(group: Any, needed: str) -> None:
    """Raise UsageError if an option of the group is given, because it has no effect without `needed`."""
    for option in _options(type(group)):
        if getattr(group, option.name) != option.default:
            declared = option.annotation.__metadata__[0].default  # in an Annotated option the first of its flags
            flag = declared if isinstance(declared, str) else f"--{option.name.replace('_', '-')}"
            raise UsageError(f"{flag} has no effect without {needed}; leave it out, or add {needed}")


def _options(group: Any) -> list[Parameter]:
    """The fields of a dataclass of options as parameters; empty for anything else."""
    if not dataclasses.is_dataclass(group):
        return []
    hints = get_type_hints(group, include_extras=True)
    return [
        Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name])
        for field in dataclasses.fields(group)
    ]
