"""From the options of a conversion command to the options of the API."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.cli.conversion_options import (
    IMATRIX,
    PRESET,
    AwqOptions,
    CalibrationOptions,
    GgufOptions,
    GptqOptions,
    OutputOptions,
    PackedOptions,
    RunOptions,
)
from quantkit.cli.option_groups import refuse_idle
from quantkit.cli.options import parse_size
from quantkit.errors import UsageError

if TYPE_CHECKING:
    from quantkit.outputs.request import ConvertOptions


@dataclass(frozen=True)
class Conversion:
    """The types and options of one command. `calibrates`: GGUF types get an importance matrix by default."""

    types: tuple[str, ...]
    output: OutputOptions = field(default_factory=OutputOptions)
    gguf: GgufOptions = field(default_factory=GgufOptions)
    packed: PackedOptions = field(default_factory=PackedOptions)
    awq: AwqOptions = field(default_factory=AwqOptions)
    gptq: GptqOptions = field(default_factory=GptqOptions)
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    calibrates: bool = False
    imatrix_file: Path | None = None


def convert_options(conversion: Conversion, work: RunOptions, *, is_gguf: bool) -> "tuple[list[str], ConvertOptions]":
    """The names of the types, with those of the preset, and the options of the API.

    Raises:
        UsageError: an option has a wrong value, has no effect, or contradicts another one.
    """
    name = conversion.output.name
    if name is not None and (Path(name).name != name or not name.isprintable()):
        raise UsageError(f"--name {name!r} is not a plain name; choose the folder with -o")
    types = _types(conversion)
    return types, _options(conversion, work, calibrate=_calibrate(conversion, types, is_gguf=is_gguf))


def _types(conversion: Conversion) -> list[str]:
    """The names of the types, with those of the preset; raises UsageError for options without effect."""
    from quantkit.gguf.file_types import file_type
    from quantkit.planning.phones import PHONE_TYPES

    preset = conversion.gguf.preset
    if preset not in (None, PRESET):
        raise UsageError(f"preset {preset!r} does not exist; the only preset is {PRESET}")
    names = [name.lower() for name in (*conversion.types, *(PHONE_TYPES if preset else ()))]
    methods = {"awq", "gptq"} & set(names)
    files = [file_type(name) for name in names if name not in (*methods, IMATRIX)]
    for group, applies, needed in (
        (conversion.gguf, files or conversion.gguf.target, "a GGUF type"),
        (conversion.packed, methods, "-t awq or -t gptq"),
        (conversion.awq, "awq" in methods, "-t awq"),
        (conversion.gptq, "gptq" in methods, "-t gptq"),
    ):
        if not applies:
            refuse_idle(group, needed)
    return names


def _calibrate(conversion: Conversion, types: list[str], *, is_gguf: bool) -> bool:
    """Whether GGUF types get an importance matrix from the calibration."""
    options, text = conversion.gguf, conversion.calibration.calibration
    others = not {"awq", "gptq", IMATRIX}.isdisjoint(types)
    if options.imatrix is not None and (options.calibrate or (text is not None and not others)):
        raise UsageError("--imatrix and --calibrate both give an importance matrix; leave one out")
    if options.preset and is_gguf and options.imatrix is None and options.calibrate is not False:
        raise UsageError(
            f"--preset {options.preset} needs an importance matrix, and a GGUF gives none; pass --imatrix FILE"
        )
    calibrate = options.calibrate
    if calibrate is None:
        wanted = (
            conversion.calibrates
            or text is not None
            or options.preset is not None
            or options.solver_of_quality == "feedback"
            or options.target is not None
        )
        calibrate = options.imatrix is None and wanted and not is_gguf
    has_files = bool(options.target) or any(name not in ("awq", "gptq", IMATRIX) for name in types)
    if not others and not (has_files and calibrate):
        refuse_idle(conversion.calibration, "--calibrate")
    return calibrate


def _options(conversion: Conversion, work: RunOptions, *, calibrate: bool) -> "ConvertOptions":
    from quantkit.outputs.calibration import CalibrationRequest
    from quantkit.outputs.request import ConvertOptions
    from quantkit.quant.feedback import BEST_SWEEPS, SWEEPS

    gguf, packed, gptq, calibration = conversion.gguf, conversion.packed, conversion.gptq, conversion.calibration
    return ConvertOptions(
        name=conversion.output.name,
        bits=packed.bits,
        group_size=packed.group_size,
        skip=tuple(packed.skip or ()),
        calibrate=calibrate,
        calibration=CalibrationRequest(
            text=calibration.calibration,
            samples=calibration.samples,
            seq_len=calibration.seq_len,
            chat=calibration.chat,
            device=calibration.device,
            propagate=gptq.propagate == "quantized",
            offline=work.offline,
        ),
        threads=work.threads or 0,
        max_ram=parse_size(work.max_ram, "--max-ram") if work.max_ram else None,
        force=work.force,
        logits=conversion.output.logits,
        imatrix=gguf.imatrix,
        imatrix_file=conversion.imatrix_file,
        target=gguf.target,
        mix=gguf.mix_options,
        split_max_size=parse_size(gguf.split_max_size, "--split-max-size") if gguf.split_max_size else None,
        allow_requantize=gguf.allow_requantize,
        mtp=gguf.mtp,
        solver=gguf.solver_of_quality,
        sweeps=BEST_SWEEPS if gguf.quality == "best" else SWEEPS,
        pre=gguf.pre,
        chat_template=gguf.chat_template,
        dtype=packed.dtype,
        max_shard=parse_size(packed.max_shard_size, "--max-shard-size"),
        symmetric=gptq.symmetric,
        rounding=conversion.awq.rounding,
        damp=gptq.damp,
        act_order=gptq.act_order,
        static_groups=gptq.static_groups,
    )
