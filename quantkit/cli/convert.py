"""`quantkit convert`: a source to every type in one pass; gguf, awq, gptq and imatrix are its presets."""

from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from quantkit.cli.conversion import Conversion, convert_options
from quantkit.cli.conversion_options import (
    AdapterOptions,
    AwqOptions,
    CalibrationOptions,
    GptqOptions,
    OutputOptions,
    PackedOptions,
    QualityOptions,
    RunOptions,
    complete_type,
    type_option,
)
from quantkit.cli.gguf_options import GgufOptions
from quantkit.cli.loading import loading
from quantkit.cli.option_groups import grouped
from quantkit.cli.options import SourceArg
from quantkit.cli.output import Out
from quantkit.cli.ready_children import children_for
from quantkit.cli.repacking import repack_source, repackable
from quantkit.errors import UsageError
from quantkit.units import human_bytes

if TYPE_CHECKING:
    from quantkit.checkpoint import Checkpoint
    from quantkit.outputs.plan import ConversionPlan
    from quantkit.outputs.request import ConvertOptions


@grouped
def convert(
    out: Out,
    source: SourceArg,
    *,
    types: Annotated[
        list[str] | None,
        type_option(
            "A GGUF type, imatrix, or a folder (awq, gptq, w4a16, w8a16, w8a8, w4a4, fp8, fp8-block, nvfp4a16,"
            " mxfp4a16, mlx-3bit, mlx-4bit, mlx-5bit, mlx-6bit, mlx-8bit, mlx-mxfp4, mlx-3bit-gptq,"
            " mlx-4bit-gptq); repeat.",
            complete_type,
        ),
    ] = None,
    output: OutputOptions,
    adapters: AdapterOptions,
    gguf: GgufOptions,
    packed: PackedOptions,
    quality: QualityOptions,
    awq: AwqOptions,
    gptq: GptqOptions,
    calibration: CalibrationOptions,
    work: RunOptions,
) -> None:
    """Convert a source to every listed type in one pass, checked.

    Writes NAME-GGUF/, NAME-imatrix.gguf, and a folder for each other type, such as NAME-FP8/. One calibration serves
    AWQ, GPTQ, w4a16, w8a16 and the importance matrix of GGUF types; fp8 and fp8-block need none. Each output is
    reloaded and checked before it gets its name. After a kill the same command resumes. An AWQ or GPTQ folder as SOURCE
    is repacked without loss by -t w4a16 or -t w8a16.

    Example: quantkit convert ORG/NAME -t awq -t gptq -t q4_0 -t q2_k -o out
    """
    if not (types or gguf.preset or gguf.target):
        raise UsageError("no type is given; name one with -t (-t q4_k_m), or a size with --target-size")
    if types and (repacked := repackable(source, types)) and repack_source(out, source, repacked, output, work):
        return
    conversion = Conversion(
        tuple(types or ()),
        output,
        gguf,
        packed,
        awq,
        gptq,
        calibration,
        adapters,
        quality=quality.quality,
        calibrates=True,
    )
    convert_source(out, "convert", source, conversion, work)


def convert_source(out: Out, command: str, source: str, conversion: Conversion, work: RunOptions) -> None:
    """Plan the conversion of `source`, run it unless it is a dry run, show the result."""
    with ExitStack() as stack, children_for(source, conversion, work):
        with loading():
            from quantkit.cli.conversion_document import planned_document, result_document
            from quantkit.cli.conversion_result import raise_failed, show_result
            from quantkit.cli.conversion_tables import announce, show_plan
            from quantkit.cli.projectors import bridged_document
            from quantkit.conversion.run import run

            plan, options = _planned(out, source, conversion, work, stack)
        announce(plan, out, logits=options.logits)
        if work.dry_run:
            show_plan(plan, out)
            out.document(planned_document(plan, command))
            return
        with out.progress() as progress:
            result = run(
                plan,
                force=options.force,
                logits=options.logits,
                transformers_python=conversion.transformers_python,
                progress=progress,
            )
    show_result(result, out)
    for projector in result.projectors:
        out.say(f"projector: {projector.path}, {human_bytes(projector.size)}")
    out.document(result_document(result, command) | bridged_document(result.projectors))
    raise_failed(result)


def _planned(
    out: Out, source: str, conversion: Conversion, work: RunOptions, stack: ExitStack
) -> "tuple[ConversionPlan, ConvertOptions]":
    """The plan of a conversion, whose source stays open until `stack` is closed, and the options of the API."""
    from quantkit.checkpoint import Access
    from quantkit.cli.projectors import own_projector_types, with_bridged_projectors
    from quantkit.cli.sources import check_stream, fetch, is_gguf
    from quantkit.outputs.gguf_checkpoint import checkpoint_of_gguf
    from quantkit.outputs.model import Model
    from quantkit.outputs.opening import merge_adapters, open_convertible
    from quantkit.outputs.planner import plan_conversion
    from quantkit.outputs.request import conversion_request

    check_stream(source, stream=work.stream, offline=work.offline)
    base = conversion.packed.base
    if base is not None and not is_gguf(source):
        raise UsageError(f"--base is for a GGUF as SOURCE, and {source} is a checkpoint; leave it out")
    plain_gguf = is_gguf(source) and base is None
    types, options = convert_options(conversion, work, is_gguf=plain_gguf)
    request = conversion_request(types, conversion.output.output, options, is_gguf=plain_gguf)
    opened: Checkpoint | Model
    access = Access(work.offline, headers_only=work.dry_run, stream=work.stream, code=bool(request.folders))
    if base is not None:
        opened = checkpoint_of_gguf(Path(source), base, offline=work.offline)
    elif request.folders and not plain_gguf:
        opened = fetch(source, out, access)
    else:
        with out.progress() as progress:
            opened = open_convertible(
                source,
                access,
                converter=conversion.gguf.converter_options,
                mtp=conversion.gguf.mtp,
                adapters=options.adapters,
                progress=progress,
            )
    stack.enter_context(closing(opened))
    if options.adapters:
        with out.progress() as progress:
            merge_adapters(opened, options.adapters, offline=work.offline, progress=progress)
    if isinstance(opened, Model) and not plain_gguf:
        # an importance matrix is computed only by request
        types, options = convert_options(conversion, work, is_gguf=True)
        request = conversion_request(types, conversion.output.output, options, is_gguf=True)
    request = replace(request, projectors=own_projector_types(opened, conversion.gguf))
    if work.stream and conversion.gguf.mmproj and not request.projectors:
        raise UsageError("--mmproj reads whole files by llama.cpp's converter here; leave out --mmproj or --stream")
    plan = plan_conversion(opened, request)
    if not work.dry_run:
        with out.progress() as progress:
            plan = with_bridged_projectors(opened, plan, conversion.gguf, progress)
    return plan, options
