"""`quantkit convert`: a source to every type in one pass; gguf, awq, gptq and imatrix are its presets."""

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantkit.cli.conversion_options import (
    IMATRIX,
    PRESET,
    CalibrationOptions,
    GgufOptions,
    GptqOptions,
    OutputOptions,
    PackedOptions,
    RunOptions,
    complete_type,
    grouped,
    refuse_idle,
)
from quantkit.cli.options import SourceArg, parse_size
from quantkit.cli.output import Out
from quantkit.errors import UsageError

if TYPE_CHECKING:
    from quantkit.checkpoint import Checkpoint
    from quantkit.gguf.file_types import FileType
    from quantkit.outputs.gguf_files import GgufRequest
    from quantkit.outputs.plan import ConversionRequest
    from quantkit.outputs.target import Target


@grouped
def convert(
    out: Out,
    source: SourceArg,
    *,
    types: Annotated[
        list[str] | None,
        typer.Option(
            "--type",
            "-t",
            metavar="TYPE",
            rich_help_panel=OutputOptions.heading,
            help="awq, gptq, imatrix, or a GGUF type (quantkit gguf --help lists them); repeat for more.",
            autocompletion=complete_type,
        ),
    ] = None,
    output: OutputOptions,
    gguf: GgufOptions,
    packed: PackedOptions,
    gptq: GptqOptions,
    calibration: CalibrationOptions,
    work: RunOptions,
) -> None:
    """Convert a source to every listed type in one pass, checked.

    Writes NAME-AWQ/, NAME-GPTQ/, NAME-GGUF/ and NAME-imatrix.gguf. One calibration serves AWQ, GPTQ and the importance
    matrix of GGUF types. Each output is reloaded and checked before it gets its name. After a kill the same command
    resumes.

    Example: quantkit convert ORG/NAME -t awq -t gptq -t q4_0 -t q2_k -o out
    """
    if not (types or gguf.preset or _target(gguf)):
        raise UsageError("no type is given; name one with -t (-t q4_k_m), or a size with --target-size")
    conversion = Conversion(tuple(types or ()), output, gguf, packed, gptq, calibration, calibrates=True)
    convert_source(out, "convert", source, conversion, work)


@dataclass(frozen=True)
class Conversion:
    """The types and options of one command. `calibrates`: GGUF types get an importance matrix by default."""

    types: tuple[str, ...]
    output: OutputOptions = field(default_factory=OutputOptions)
    gguf: GgufOptions = field(default_factory=GgufOptions)
    packed: PackedOptions = field(default_factory=PackedOptions)
    gptq: GptqOptions = field(default_factory=GptqOptions)
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    calibrates: bool = False
    imatrix_file: Path | None = None


def convert_source(out: Out, command: str, source: str, conversion: Conversion, work: RunOptions) -> None:
    """Plan the conversion of `source`, run it unless it is a dry run, show the result."""
    from quantkit.cli import report
    from quantkit.cli.sources import fetch, is_gguf
    from quantkit.conversion.run import run
    from quantkit.outputs.model import Model
    from quantkit.outputs.opening import open_convertible
    from quantkit.outputs.plan import plan_conversion

    request = _request(conversion, work, is_gguf=is_gguf(source))
    if request.gguf is None:
        opened: Checkpoint | Model = fetch(source, out, offline=work.offline, headers_only=work.dry_run)
    else:
        converter = conversion.gguf.converter_options
        mtp, offline, headers_only = conversion.gguf.mtp, work.offline, work.dry_run
        with out.progress() as progress:
            opened = open_convertible(
                source, converter, mtp=mtp, offline=offline, headers_only=headers_only, progress=progress
            )
    with closing(opened):
        if isinstance(opened, Model) and not is_gguf(source):
            request = _request(conversion, work, is_gguf=True)  # no importance matrix is computed for it
        plan = plan_conversion(opened, request)
        report.announce(plan, out, logits=conversion.output.logits)
        if work.dry_run:
            report.show_plan(plan, out, command)
            return
        with out.progress() as progress:
            result = run(plan, force=work.force, logits=conversion.output.logits, progress=progress)
    report.show_result(result, out, command)
    report.raise_failed(result)


def _request(conversion: Conversion, work: RunOptions, *, is_gguf: bool) -> "ConversionRequest":
    from quantkit.gguf.file_types import file_type
    from quantkit.outputs.calibration import CalibrationRequest
    from quantkit.outputs.packed_folders import FolderRequest
    from quantkit.outputs.plan import ConversionRequest
    from quantkit.planning.phones import PHONE_TYPES
    from quantkit.quant.grid import Grid

    output, packed, gptq, calibration = conversion.output, conversion.packed, conversion.gptq, conversion.calibration
    if output.name is not None and (Path(output.name).name != output.name or not output.name.isprintable()):
        raise UsageError(f"--name {output.name!r} is not a plain name; choose the folder with -o")
    if conversion.gguf.preset not in (None, PRESET):
        raise UsageError(f"preset {conversion.gguf.preset!r} does not exist; the only preset is {PRESET}")
    names = [*conversion.types, *(PHONE_TYPES if conversion.gguf.preset else ())]
    names = list(dict.fromkeys(name.lower() for name in names))
    methods = [method for method in ("awq", "gptq") if method in names]
    types = tuple(dict.fromkeys(file_type(name) for name in names if name not in (*methods, IMATRIX)))
    target = _target(conversion.gguf)
    for group, applies, needed in (
        (conversion.gguf, types or target, "a GGUF type"),
        (packed, methods, "-t awq or -t gptq"),
        (gptq, "gptq" in methods, "-t gptq"),
    ):
        if not applies:
            refuse_idle(group, needed)
    others = methods or IMATRIX in names
    gguf = _gguf_request(conversion, types, others=bool(others), is_gguf=is_gguf) if types or target else None
    if not others and not (gguf and gguf.calibrate):
        refuse_idle(calibration, "--calibrate")
    return ConversionRequest(
        output=output.output,
        name=output.name,
        gguf=gguf,
        folders=tuple(
            FolderRequest(
                method="awq" if method == "awq" else "gptq",
                grid=Grid(packed.bits, packed.group_size, symmetric=method == "gptq" and gptq.symmetric),
                skip=tuple(packed.skip or ()),
                dtype=packed.dtype,
                max_shard=parse_size(packed.max_shard_size, "--max-shard-size"),
                damp=gptq.damp,
                act_order=gptq.act_order,
                static_groups=gptq.static_groups,
            )
            for method in methods
        ),
        imatrix=IMATRIX in names,
        imatrix_file=conversion.imatrix_file,
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
    )


def _target(options: GgufOptions) -> "Target | None":
    from quantkit.outputs.target import Target

    if options.target_size is None and options.target_bpw is None:
        return None
    size = None if options.target_size is None else parse_size(options.target_size, "--target-size")
    return Target(size=size, bits=options.target_bpw)


def _gguf_request(
    conversion: Conversion, types: tuple["FileType", ...], *, others: bool, is_gguf: bool
) -> "GgufRequest":
    """`others`: something else is calibrated too."""
    from quantkit.gguf.mix import MixOptions, parse_override
    from quantkit.gguf.types import tensor_type
    from quantkit.imatrix.file import load_imatrix
    from quantkit.outputs.gguf_files import GgufRequest
    from quantkit.outputs.templates import choose_template

    options, text = conversion.gguf, conversion.calibration.calibration
    if options.imatrix is not None and (options.calibrate or (text is not None and not others)):
        raise UsageError("--imatrix and --calibrate both give an importance matrix; leave one out")
    calibrate = options.calibrate
    if options.preset and is_gguf and options.imatrix is None and calibrate is not False:
        raise UsageError(
            f"--preset {options.preset} needs an importance matrix, and a GGUF gives none; pass --imatrix FILE"
        )
    if calibrate is None:
        wanted = (
            conversion.calibrates
            or text is not None
            or options.preset is not None
            or options.solver == "feedback"
            or _target(options) is not None
        )
        calibrate = options.imatrix is None and wanted and not is_gguf
    return GgufRequest(
        types=types,
        solver=options.solver,
        target=_target(options),
        mix=MixOptions(
            output_type=tensor_type(options.output_type) if options.output_type else None,
            embedding_type=tensor_type(options.embedding_type) if options.embedding_type else None,
            pure=options.pure,
            leave_output=options.leave_output_tensor,
            tensor_types=tuple(parse_override(text) for text in options.tensor_type or ()),
        ),
        imatrix=load_imatrix(options.imatrix) if options.imatrix else None,
        imatrix_name=options.imatrix.name if options.imatrix else None,
        calibrate=calibrate,
        split_max_size=parse_size(options.split_max_size, "--split-max-size") if options.split_max_size else None,
        allow_requantize=options.allow_requantize,
        mtp=options.mtp,
        pre=options.pre,
        chat_template=choose_template(options.chat_template) if options.chat_template is not None else None,
    )
