"""`quantkit imatrix`: write the importance matrix only."""

from pathlib import Path
from typing import Annotated

from quantkit.cli.conversion import Conversion
from quantkit.cli.conversion_options import (
    IMATRIX,
    AdapterOptions,
    CalibrationOptions,
    OutputOptions,
    RunOptions,
)
from quantkit.cli.convert import convert_source
from quantkit.cli.option_groups import grouped
from quantkit.cli.options import SourceArg, output_option
from quantkit.cli.output import Out


@grouped
def imatrix(
    out: Out,
    source: SourceArg,
    adapters: AdapterOptions,
    calibration: CalibrationOptions,
    work: RunOptions,
    output: Annotated[
        Path | None,
        output_option("FILE", "The file to write.", "NAME-imatrix.gguf"),
    ] = None,
) -> None:
    """Compute an importance matrix over a calibration text.

    It holds the importance of each input of each weight. The file has the format of llama.cpp's imatrix tool, which its
    quantize tool and quantkit gguf --imatrix read. A checkpoint runs layer by layer, in the memory of one layer.
    llama.cpp runs a GGUF, and a model without a family. After a kill the same command resumes.

    Example: quantkit imatrix ORG/NAME -o imatrix.gguf
    """
    output_options = OutputOptions() if output is None else OutputOptions(output.parent, output.stem)
    conversion = Conversion((IMATRIX,), output_options, calibration=calibration, adapters=adapters, imatrix_file=output)
    convert_source(out, "imatrix", source, conversion, work)
