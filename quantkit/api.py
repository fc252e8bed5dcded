"""The public functions of quantkit. `import quantkit` makes them available without loading them."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from quantkit.adapters import AdapterRequest
from quantkit.checkpoint import Access, Checkpoint
from quantkit.conversion.projector import plan_bridged
from quantkit.conversion.run import Result, run
from quantkit.errors import MissingExtraError
from quantkit.inspection import Description, inspect_source
from quantkit.llamacpp.converter import ConverterOptions
from quantkit.measurement.costs import Costs
from quantkit.measurement.measure import WORK, Measurement
from quantkit.measurement.measure import measure as measure_models
from quantkit.measurement.run import Limits, MeasureOptions
from quantkit.outputs.calibration import CalibrationRequest
from quantkit.outputs.model import Model
from quantkit.outputs.opening import merge_adapters, open_convertible
from quantkit.outputs.plan import ConversionRequest
from quantkit.outputs.planner import plan_conversion
from quantkit.outputs.request import ConvertOptions, conversion_request
from quantkit.packed.registry import FORMATS
from quantkit.planning.plan import PlanOptions
from quantkit.planning.plan import plan as plan_model
from quantkit.planning.result import Plan
from quantkit.progress import SILENT, Progress
from quantkit.report.drawing import check_extra
from quantkit.report.write import write_report

__all__ = [
    "AdapterRequest",
    "CalibrationRequest",
    "Checkpoint",
    "ConversionRequest",
    "ConvertOptions",
    "Costs",
    "Description",
    "Limits",
    "MeasureOptions",
    "Measurement",
    "Model",
    "Plan",
    "PlanOptions",
    "Progress",
    "Result",
    "convert",
    "inspect",
    "measure",
    "open_source",
    "plan",
]


def open_source(source: str | Path, *, offline: bool = False, headers_only: bool = False) -> Checkpoint | Model:
    """Open a checkpoint (folder or hub id `ORG/NAME[@REVISION]`) or a GGUF file; the caller closes it.

    A checkpoint without a family is read by llama.cpp's converter, if QUANTKIT_LLAMA_CPP names one.

    Headers, index and config are checked before this returns; no weights are in memory. `offline`: only what the hub's
    cache holds. `headers_only`: of a model on the hub only the headers of its weights are downloaded.

    Raises:
        CheckpointError, HubError, UnsupportedError: the source is not found, damaged, or of an unknown family.
    """
    return open_convertible(str(source), Access(offline, headers_only))


def convert(
    source: str | Path,
    types: Sequence[str],
    output: str | Path = ".",
    options: ConvertOptions | None = None,
    progress: Progress = SILENT,
) -> Result:
    """Convert a source to every type of `types` in one pass, check the outputs, and give them their names.

    Args:
        source: a checkpoint folder, a hub id, or a GGUF file.
        types: GGUF types ("q4_k_m"), "awq", "gptq", "imatrix".
        output: the folder in which NAME-GGUF/, NAME-AWQ/, NAME-GPTQ/ and NAME-imatrix.gguf are written.

    Returns:
        The outputs with their checks; an output that failed one is named NAME.failed and listed in `failed`.

    Raises:
        UsageError: an unknown type, or options that contradict each other.
        OutputError: the folder is not writable or too small, or an output exists.
        QuantkitError: the source is damaged or does not suit a type; every message names the next step.
    """
    options = options or ConvertOptions()
    offline = options.calibration.offline
    access = Access(offline, stream=options.stream, code=not set(FORMATS).isdisjoint(map(str.lower, types)))
    with closing(open_convertible(str(source), access, adapters=options.adapters)) as opened:
        merge_adapters(opened, options.adapters, offline=offline, progress=progress)
        request = conversion_request(types, Path(output), options, is_gguf=isinstance(opened, Model))
        conversion = plan_conversion(opened, request)
        if request.projectors and isinstance(opened, Model) and opened.folder is not None:
            conversion = plan_bridged(conversion, opened, request.projectors, ConverterOptions(), progress)
        return run(conversion, force=options.force, logits=options.logits, progress=progress)


def plan(source: str | Path, options: PlanOptions | None = None, *, offline: bool = False) -> Plan:
    """Which types of a model fit a machine, with how many layers on the GPU; headers only, nothing is downloaded.

    Raises:
        UsageError: an unknown type.
        CheckpointError, HubError, UnsupportedError: the source is not found, damaged, or of an unknown family.
    """
    return plan_model(str(source), options, offline=offline)


def inspect(source: str | Path, *, offline: bool = False) -> Description:
    """Describe a checkpoint, a GGUF file, an AWQ or GPTQ folder, or a folder of GGUF files, from headers alone.

    Raises:
        CheckpointError, HubError: the source is not found or damaged.
    """
    return inspect_source(str(source), offline=offline)


def measure(
    reference: str | Path,
    candidates: Sequence[str | Path],
    texts: Sequence[str | Path],
    options: MeasureOptions | None = None,
    progress: Progress = SILENT,
    warn: Callable[[str], object] = lambda text: None,
) -> Measurement:
    """Measure what quantization cost, and write the report into the folder `options.output`.

    Perplexity, KL divergence and agreement of the most likely tokens follow llama-perplexity's convention; with
    `options.costs` also memory and speed. A killed measurement resumes with the same arguments.

    Args:
        reference: a GGUF file, a folder of weights, or a hub id.
        candidates: the same, or folders of GGUF files.
        texts: text, jsonl, json or parquet files, or datasets of the hub (`ORG/NAME[:SPLIT]`).
        warn: receives each warning.

    Raises:
        UsageError: no text is given, or limits without a candidate.
        CheckpointError, HubError, UnsupportedError: a model is not found, damaged, or of an unknown family.
        MeasureError: a text is too short, vocabularies differ, or logits are not finite.
        OutputError: the folder holds another unfinished measurement, or is not writable.
    """
    options = options or MeasureOptions()
    try:
        check_extra()
    except MissingExtraError as error:
        warn(f"{error}; the report has no report.html and no plots")
    measured = measure_models(
        str(reference), [str(path) for path in candidates], [str(text) for text in texts], options, progress, warn
    )
    try:
        files = tuple(write_report(measured.document, measured.folder))
    except MissingExtraError:
        files = (measured.folder / "report.json", measured.folder / "report.md")
    shutil.rmtree(measured.folder / WORK, ignore_errors=True)
    return replace(measured, files=files)
