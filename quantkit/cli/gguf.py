"""`quantkit gguf`: convert to GGUF types only."""

from typing import Annotated

from quantkit.cli.conversion import Conversion
from quantkit.cli.conversion_options import (
    IMATRIX,
    AdapterOptions,
    CalibrationOptions,
    OutputOptions,
    QualityOptions,
    RunOptions,
    type_option,
)
from quantkit.cli.convert import convert_source
from quantkit.cli.gguf_options import GgufOptions, complete_gguf_type
from quantkit.cli.option_groups import grouped
from quantkit.cli.options import SourceArg
from quantkit.cli.output import Out
from quantkit.errors import UsageError
from quantkit.gguf.file_types import FILE_TYPES, file_type

EPILOG = (
    "Types: "
    + ", ".join(name for name, kind in FILE_TYPES.items() if not kind.needs_imatrix)
    + ".\n\nWith --imatrix or --calibrate only: "
    + ", ".join(name for name, kind in FILE_TYPES.items() if kind.needs_imatrix)
    + "."
)


@grouped
def gguf(
    out: Out,
    source: SourceArg,
    *,
    types: Annotated[
        list[str] | None,
        type_option("A GGUF type; repeat for more, all come out of one pass.", complete_gguf_type, "q4_0"),
    ] = None,
    output: OutputOptions,
    adapters: AdapterOptions,
    options: GgufOptions,
    quality: QualityOptions,
    calibration: CalibrationOptions,
    work: RunOptions,
) -> None:
    """Convert a source to GGUF: every listed type in one pass, checked.

    Reads each tensor once, needs no intermediate file and the memory of a few rows. Each file is reloaded and compared
    with the source before it gets its name. After a kill the same command resumes.

    Example: quantkit gguf ORG/NAME -t q4_0 -t q4_k_m -t q8_0 -o out
    """
    others = options.preset or options.target_size or options.target_bpw
    names = types or ([] if others else ["q4_0"])
    for name in names:
        _check_type(name)
    conversion = Conversion(
        tuple(names), output, options, calibration=calibration, adapters=adapters, quality=quality.quality
    )
    convert_source(out, "gguf", source, conversion, work)


def _check_type(name: str) -> None:
    """Raises UsageError for a name that is not a GGUF type's, and names the command of another output's type."""
    try:
        file_type(name)
    except UsageError:
        from quantkit.packed.registry import FORMATS

        if name.strip().lower() in (*FORMATS, IMATRIX):
            raise UsageError(f"{name!r} is not a GGUF type; write it with quantkit convert -t {name.lower()}") from None
        raise
