"""`quantkit gptq`: convert to GPTQ only."""

from quantkit.cli.conversion import Conversion
from quantkit.cli.conversion_options import (
    AdapterOptions,
    CalibrationOptions,
    CheckpointArg,
    FolderQualityOptions,
    GptqOptions,
    OutputOptions,
    PackedOptions,
    RunOptions,
)
from quantkit.cli.convert import convert_source
from quantkit.cli.option_groups import grouped
from quantkit.cli.output import Out


@grouped
def gptq(
    out: Out,
    source: CheckpointArg,
    output: OutputOptions,
    adapters: AdapterOptions,
    packed: PackedOptions,
    quality: FolderQualityOptions,
    options: GptqOptions,
    calibration: CalibrationOptions,
    work: RunOptions,
) -> None:
    """Quantize a checkpoint to GPTQ, in AutoGPTQ's format.

    Writes the folder NAME-GPTQ/. Runs the model over a calibration text layer by layer, in the memory of one layer; a
    CPU is enough. Routers and gates of a mixture of experts, the embedding and the head are never quantized. The
    folder is reloaded and checked before it gets its name. After a kill the same command resumes.

    Example: quantkit gptq ORG/NAME --bits 4 --group-size 128 -o out
    """
    conversion = Conversion(
        ("gptq",),
        output,
        packed=packed,
        gptq=options,
        calibration=calibration,
        adapters=adapters,
        quality=quality.quality,
    )
    convert_source(out, "gptq", source, conversion, work)
