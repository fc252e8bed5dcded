"""`quantkit convert`: a checkpoint to every asked format, AWQ, GPTQ and GGUF, by one calibration."""

from pathlib import Path
from typing import Annotated

import typer

from quantkit.cli import calibrated, report
from quantkit.cli.calibration_options import (
    Calibrating,
    CalibrationOption,
    ChatOption,
    CheckpointArg,
    DeviceOption,
    DtypeOption,
    GroupOption,
    LogitsOption,
    MaxRamOption,
    MaxShardOption,
    NameOption,
    OfflineOption,
    OutputOption,
    SamplesOption,
    SeqLenOption,
    SkipOption,
    ThreadsOption,
    check_name,
)
from quantkit.cli.options import DryRunOption, ForceOption, parse_size
from quantkit.cli.output import Out
from quantkit.conversion.calibrated import Squares
from quantkit.conversion.conversion import Result
from quantkit.conversion.conversion import convert as convert_gguf
from quantkit.conversion.importance import Importance
from quantkit.errors import UsageError
from quantkit.gguf.file_types import FILE_TYPES, FileType, file_type
from quantkit.gguf.mix import MixOptions
from quantkit.imatrix.file import Imatrix
from quantkit.outputs.calibration import CalibratedPlan
from quantkit.outputs.gguf_files import Plan, Request, plan_gguf
from quantkit.outputs.model import Model
from quantkit.outputs.packed_folders import FolderRequest
from quantkit.outputs.templates import choose_template, model_with_template
from quantkit.quant.grid import Grid

FOLDERS = {"awq": "AWQ, AutoAWQ's GEMM format", "gptq": "GPTQ, AutoGPTQ's format"}


def _complete_type(incomplete: str) -> list[tuple[str, str]]:
    every = FOLDERS | {name: kind.summary for name, kind in FILE_TYPES.items()}
    return [(name, about) for name, about in every.items() if name.startswith(incomplete.lower())]


def convert(
    out: Out,
    source: CheckpointArg,
    types: Annotated[
        list[str],
        typer.Option(
            "--type",
            "-t",
            metavar="TYPE",
            help="awq, gptq, or a GGUF type (quantkit gguf --help lists them); repeat for more.",
            autocompletion=_complete_type,
        ),
    ],
    output: OutputOption = Path(),
    name: NameOption = None,
    group_size: GroupOption = 128,
    skip: SkipOption = None,
    calibration: CalibrationOption = None,
    samples: SamplesOption = 128,
    seq_len: SeqLenOption = 512,
    chat: ChatOption = None,
    imatrix: Annotated[
        bool, typer.Option("--imatrix/--no-imatrix", help="GGUF types use the calibration as an importance matrix.")
    ] = True,
    chat_template: Annotated[
        str | None, typer.Option(metavar="FILE|NAME", help="Chat template of the GGUF, as for quantkit gguf.")
    ] = None,
    dtype: DtypeOption = "float16",
    max_shard_size: MaxShardOption = "5G",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    max_ram: MaxRamOption = None,
    logits: LogitsOption = None,
    dry_run: DryRunOption = False,
    force: ForceOption = False,
    offline: OfflineOption = False,
) -> None:
    """Convert a checkpoint to every asked format in one pass, checked.

    One streamed forward over a calibration text feeds AWQ, GPTQ and the importance matrix of the GGUF types. Each
    output is reloaded and checked before it gets its name. A killed run is taken up by the same command.

    Example: quantkit convert ORG/NAME -t awq -t gptq -t q4_0 -t q2_k -o out
    """
    check_name(name)
    asked = list(dict.fromkeys(each.lower() for each in types))
    requests = [
        FolderRequest(
            method=method,
            grid=Grid(4, group_size, symmetric=method == "gptq"),
            skip=tuple(skip or ()),
            dtype=dtype,
            max_shard=parse_size(max_shard_size, "--max-shard-size"),
        )
        for method in ("awq", "gptq")
        if method in asked
    ]
    files = tuple(file_type(each) for each in asked if each not in FOLDERS)
    if not requests and not imatrix:
        raise UsageError("--no-imatrix leaves nothing to calibrate; quantkit gguf converts without a calibration")
    calibrating = Calibrating(calibration, samples, seq_len, chat, threads, max_ram, device, logits, offline)
    choice = None if chat_template is None else choose_template(chat_template)
    with calibrated.fetch(source, out, offline=offline, headers_only=dry_run) as checkpoint:
        found = calibrated.plan(checkpoint, requests, calibrating, out, name=name, output=output, nearest=not requests)
        gguf: _Gguf | None = None
        others: list[Path] = []
        others_size, planned_files = 0, []
        if files:
            model, note = model_with_template(checkpoint, choice, name=name)
            if note is not None:
                out.note(note)
            gguf = _Gguf(model, files, found, calibrating, output, imatrix=imatrix)
            # what would be refused is refused before hours of calibration
            planned = gguf.plan(gguf.importance.placeholder() if gguf.importance else None)
            report.announce(planned, out)
            others = [planned.request.folder / file.name for each in planned.outputs for file in each.files]
            others_size, planned_files = planned.disk, report.planned_documents(planned)
            if dry_run:
                report.show_plan_table(planned, out)
        if dry_run:
            calibrated.show_plan(found, out, "convert", planned_files)
            return
        converted: list[Result] = []

        def then(squares: Squares) -> None:
            if gguf is not None:
                converted.append(gguf.run(gguf.importance.of(squares) if gguf.importance else None, out))

        result = calibrated.run(found, calibrating, out, force=force, then=then, others=others, others_size=others_size)
    for each in converted:
        report.show_table(each, out)
    more = [document for each in converted for document in report.documents(each)]
    calibrated.show_result(result, out, "convert", more)
    calibrated.raise_failed(result)
    for each in converted:
        report.raise_failed(each)


class _Gguf:
    """The GGUF types of a conversion that calibrates."""

    def __init__(
        self,
        model: Model,
        types: tuple[FileType, ...],
        found: CalibratedPlan,
        asked: Calibrating,
        output: Path,
        *,
        imatrix: bool,
    ) -> None:
        self.importance = Importance(found) if imatrix else None
        self.model = self.importance.recorded(model) if self.importance else model
        self.types, self.found, self.asked, self.folder = types, found, asked, output / f"{model.name}-GGUF"

    def plan(self, imatrix: Imatrix | None) -> Plan:
        request = Request(
            types=self.types,
            folder=self.folder,
            mix=MixOptions(has_imatrix=imatrix is not None),
            imatrix=imatrix,
            imatrix_name=self.importance.name if self.importance else None,
            threads=self.found.threads,
            max_ram=self.asked.ram,
        )
        return plan_gguf(self.model, request)

    def run(self, imatrix: Imatrix | None, out: Out) -> Result:
        plan = self.plan(imatrix)
        # What stood there was refused before the calibration; what stands there now is a killed run's own.
        with out.old_progress("converting", plan.n_elements) as ticker:
            return convert_gguf(plan, force=True, logits=self.asked.logits, progress=ticker.advance, stage=ticker.stage)
