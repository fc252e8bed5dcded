"""From the options of a conversion command to the options of the API."""

import os
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.cli.conversion_options import (
    IMATRIX,
    AdapterOptions,
    AwqOptions,
    CalibrationOptions,
    GptqOptions,
    OutputOptions,
    PackedOptions,
    Quality,
    RunOptions,
)
from quantkit.cli.gguf_options import PRESET, GgufOptions
from quantkit.cli.option_groups import refuse_idle
from quantkit.cli.options import check_name, parse_size
from quantkit.errors import UsageError
from quantkit.files import user_path
from quantkit.units import listed

if TYPE_CHECKING:
    from quantkit.outputs.gguf_files import Solver
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
    adapters: AdapterOptions = field(default_factory=AdapterOptions)
    quality: Quality = "standard"
    calibrates: bool = False
    imatrix_file: Path | None = None

    @property
    def solver(self) -> "Solver":
        """The rounding of GGUF types."""
        if self.quality == "standard":
            return self.gguf.solver or "llama.cpp"
        if self.gguf.solver == "llama.cpp":
            raise UsageError(f"--quality {self.quality} is --solver feedback, not llama.cpp; leave one of them out")
        return "feedback"

    @property
    def transformers_python(self) -> Path | None:
        """The Python of --reference transformers; None without the option."""
        if self.output.reference is None:
            return None
        from quantkit.llamacpp.converter import PYTHON_VARIABLE

        variable = os.environ.get(PYTHON_VARIABLE)
        return self.gguf.converter_python or (user_path(variable) if variable else Path(sys.executable))


def convert_options(conversion: Conversion, work: RunOptions, *, is_gguf: bool) -> "tuple[list[str], ConvertOptions]":
    """The names of the types, with those of the preset, and the options of the API.

    Raises:
        UsageError: an option has a wrong value, has no effect, or contradicts another one.
    """
    check_name(conversion.output.name)
    types = _types(conversion)
    return types, _options(conversion, work, calibrate=_calibrate(conversion, types, is_gguf=is_gguf))


def _types(conversion: Conversion) -> list[str]:
    """The names of the types, with those of the preset; raises UsageError for options without effect."""
    from quantkit.gguf.file_types import file_type
    from quantkit.packed.formats import OWN_ALGORITHM
    from quantkit.packed.registry import FORMATS

    preset = conversion.gguf.preset
    if preset not in (None, PRESET):
        raise UsageError(f"preset {preset!r} does not exist; the only preset is {PRESET}")
    names = [name.lower() for name in (*conversion.types, *_preset_types(preset))]
    methods = {name: FORMATS[name] for name in FORMATS if name in names}
    chosen = conversion.packed.algorithm
    algorithms = {OWN_ALGORITHM.get(name, chosen) for name, kind in methods.items() if kind.calibrated}
    files = [file_type(name, (*FORMATS, IMATRIX)) for name in names if name not in (*methods, IMATRIX)]
    packed = conversion.packed
    if conversion.gguf.target or conversion.gguf.reorder_neurons:
        packed = replace(packed, base=None)  # these need a checkpoint too
    for group, applies, needed in (
        (conversion.gguf, files or conversion.gguf.target, "a GGUF type"),
        (packed, methods, "a folder type, such as -t awq or -t fp8"),
        (conversion.awq, "awq" in algorithms or "w4a4" in methods, "-t awq"),
        (conversion.gptq, methods.keys() & {"gptq", "w4a16", "w8a16"}, "-t gptq"),
    ):
        if not applies:
            refuse_idle(group, needed)
    _check_quality(conversion, methods.keys(), has_files=bool(files or conversion.gguf.target))
    if methods and chosen != PackedOptions().algorithm and not methods.keys() & {"w4a16", "w8a16"}:
        raise UsageError("--algorithm has no effect without -t w4a16 or -t w8a16; leave it out")
    if methods and conversion.packed.bits != PackedOptions().bits and all(kind.bits for kind in methods.values()):
        raise UsageError("--bits has no effect without -t awq or -t gptq; leave it out")
    if (
        methods
        and conversion.packed.group_size is not None
        and all(kind.group_sizes == () for kind in methods.values())
    ):
        raise UsageError(f"--group-size has no effect on {listed(methods)}; leave it out")
    return names


def _check_quality(conversion: Conversion, methods: Collection[str], *, has_files: bool) -> None:
    """Raise UsageError for a --quality that changes nothing or contradicts another option."""
    from quantkit.packed.formats import FOLLOWING

    quality, following = conversion.quality, [name for name in FOLLOWING if name in methods]
    if quality == "best" and following and conversion.awq.rounding == "nearest":
        raise UsageError("--quality best rounds with error feedback; leave out --rounding nearest")
    if quality == "standard" or has_files or (quality == "best" and following):
        return
    types = "a GGUF type" if quality == "high" else f"a GGUF type, {', '.join(FOLLOWING)}"
    raise UsageError(f"--quality {quality} has no effect without {types}; leave it out")


def _preset_types(preset: str | None) -> Sequence[str]:
    """The types of the preset; none without one."""
    if preset is None:
        return ()
    from quantkit.planning.phones import PHONE_TYPES

    return PHONE_TYPES


def _calibrate(conversion: Conversion, types: list[str], *, is_gguf: bool) -> bool:
    """Whether GGUF types get an importance matrix from the calibration."""
    from quantkit.packed.registry import FORMATS

    options, has_text = conversion.gguf, bool(conversion.calibration.calibration)
    others = IMATRIX in types or any(FORMATS[name].calibrated for name in types if name in FORMATS)
    if options.imatrix is not None and (options.calibrate or (has_text and not others)):
        raise UsageError("--imatrix and --calibrate both give an importance matrix; leave one out")
    if options.preset and is_gguf and options.imatrix is None and options.calibrate is None and not has_text:
        raise UsageError(
            f"--preset {options.preset} needs an importance matrix; add --calibrate, with which llama.cpp runs the"
            " model over a text, or pass --imatrix FILE"
        )
    calibrate = options.calibrate
    if calibrate is None:
        is_useful = (
            (conversion.calibrates and (others or _uses_importances(options, types)))
            or has_text
            or options.preset is not None
            or conversion.solver == "feedback"
            or options.target is not None
        )
        # llama.cpp runs the whole file for it, so a GGUF is calibrated only by request
        requested = has_text or conversion.solver == "feedback"
        calibrate = options.imatrix is None and is_useful and (requested or not is_gguf)
    has_files = bool(options.target) or any(name not in (*FORMATS, IMATRIX) for name in types)
    if not others and not (has_files and calibrate):
        refuse_idle(conversion.calibration, "--calibrate")
    return calibrate


def _uses_importances(options: GgufOptions, types: list[str]) -> bool:
    """Whether an importance matrix changes a GGUF file."""
    from quantkit.gguf.file_types import file_type
    from quantkit.packed.registry import FORMATS

    if options.tensor_type or options.output_type or options.embedding_type:
        return True
    return any(file_type(name).uses_importances for name in types if name not in FORMATS)


def _options(conversion: Conversion, work: RunOptions, *, calibrate: bool) -> "ConvertOptions":
    from quantkit.outputs.calibration import CalibrationRequest
    from quantkit.outputs.request import ConvertOptions
    from quantkit.quant.feedback import BEST_SWEEPS, SWEEPS

    gguf, packed, gptq, calibration = conversion.gguf, conversion.packed, conversion.gptq, conversion.calibration
    return ConvertOptions(
        name=conversion.output.name,
        adapters=conversion.adapters.requests,
        bits=packed.bits,
        group_size=packed.group_size,
        skip=tuple(packed.skip or ()),
        algorithm=packed.algorithm,
        calibrate=calibrate,
        calibration=CalibrationRequest(
            text=tuple(calibration.calibration or ()) or None,
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
        solver=conversion.solver,
        sweeps=BEST_SWEEPS if conversion.quality == "best" else SWEEPS,
        asymmetric=conversion.quality == "best",
        reorder=gguf.reorder_neurons,
        pre=gguf.pre,
        chat_template=gguf.chat_template,
        dtype=packed.dtype,
        max_shard=parse_size(packed.max_shard_size, "--max-shard-size"),
        symmetric=gptq.symmetric,
        rounding=conversion.awq.rounding,
        damp=gptq.damp,
        act_order=gptq.act_order,
        static_groups=gptq.static_groups,
        stream=work.stream,
    )
