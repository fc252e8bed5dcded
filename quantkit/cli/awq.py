"""`quantkit awq`: convert to AWQ only."""

from quantkit.cli.conversion import Conversion
from quantkit.cli.conversion_options import (
    AdapterOptions,
    AwqOptions,
    CalibrationOptions,
    CheckpointArg,
    FolderQualityOptions,
    OutputOptions,
    PackedOptions,
    RunOptions,
)
from quantkit.cli.convert import convert_source
from quantkit.cli.option_groups import grouped
from quantkit.cli.output import Out


@grouped
def awq(
    out: Out,
    source: CheckpointArg,
    output: OutputOptions,
    adapters: AdapterOptions,
    packed: PackedOptions,
    quality: FolderQualityOptions,
    options: AwqOptions,
    calibration: CalibrationOptions,
    work: RunOptions,
) -> None:
    """Quantize a checkpoint to AWQ, in AutoAWQ's GEMM format.

    Writes the folder NAME-AWQ/. Runs the model over a calibration text layer by layer, in the memory of one layer; a
    CPU is enough. Routers and gates of a mixture of experts, the embedding and the head are never quantized. The
    folder is reloaded and checked before it gets its name. After a kill the same command resumes.

    Example: quantkit awq ORG/NAME --group-size 64 -o out
    """
    conversion = Conversion(
        ("awq",),
        output,
        packed=packed,
        awq=options,
        calibration=calibration,
        adapters=adapters,
        quality=quality.quality,
    )
    convert_source(out, "awq", source, conversion, work)
