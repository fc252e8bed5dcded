"""`quantkit gguf`: a checkpoint, or an existing GGUF, to every asked GGUF type in one pass."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from quantkit.chat import BUILT_IN
from quantkit.cli import calibrated
from quantkit.cli.calibration_options import (
    Calibrating,
    CalibrationOption,
    ChatOption,
    DeviceOption,
    SamplesOption,
    SeqLenOption,
)
from quantkit.cli.options import DryRunOption, ForceOption, SourceArg, parse_size
from quantkit.cli.output import Out
from quantkit.cli.report import announce, raise_failed, show_plan, show_result
from quantkit.conversion.calibrated import Squares
from quantkit.conversion.conversion import Result, convert
from quantkit.conversion.importance import Importance
from quantkit.errors import UsageError
from quantkit.gguf.file_types import FILE_TYPES, file_type
from quantkit.gguf.mix import MixOptions, parse_override
from quantkit.gguf.types import tensor_type
from quantkit.imatrix.file import load_imatrix
from quantkit.outputs.gguf_files import Plan, Request, plan_gguf
from quantkit.outputs.model import Model, model_from_gguf
from quantkit.outputs.templates import NONE, choose_template, model_with_template
from quantkit.planning.phones import PHONE_TYPES

EPILOG = (
    "Types: "
    + ", ".join(name for name, kind in FILE_TYPES.items() if not kind.needs_imatrix)
    + ".\n\nWith --imatrix or --calibrate only: "
    + ", ".join(name for name, kind in FILE_TYPES.items() if kind.needs_imatrix)
    + "."
)


def _complete_type(incomplete: str) -> list[tuple[str, str]]:
    return [(name, kind.summary) for name, kind in FILE_TYPES.items() if name.startswith(incomplete.lower())]


def _complete_template(incomplete: str) -> list[tuple[str, str]]:
    names = {name: each.models for name, each in BUILT_IN.items()} | {NONE: "no template at all"}
    return [(name, about) for name, about in names.items() if name.startswith(incomplete)]


_HELP_TEMPLATE = (
    "Chat template instead of the checkpoint's: a Jinja file, one of "
    + ", ".join(BUILT_IN)
    + ", or none. A file of such a name is written ./NAME."
)
_PRESETS = {"phone": PHONE_TYPES}
_HELP_PRESET = "phone: q4_0 and q4_k_m with an importance matrix (--calibrate, unless --imatrix is given)."
_HELP_TYPES = "A GGUF type; repeat for more, all come out of one pass. q4_0 if none is asked."


def gguf(
    out: Out,
    source: SourceArg,
    types: Annotated[
        list[str] | None,
        typer.Option(
            "--type", "-t", metavar="TYPE", help=_HELP_TYPES, show_default=False, autocompletion=_complete_type
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help=_HELP_PRESET, autocompletion=lambda: list(_PRESETS))
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where NAME-GGUF/ is made.", show_default="here")
    ] = Path(),
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the outputs.", show_default="the source's")
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Importance matrix of llama.cpp (GGUF or .dat).")
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Compute the importance matrix first, over a calibration text.")
    ] = False,
    calibration: CalibrationOption = None,
    samples: SamplesOption = 128,
    seq_len: SeqLenOption = 512,
    chat: ChatOption = None,
    device: DeviceOption = "auto",
    tensor_types: Annotated[
        list[str] | None,
        typer.Option("--tensor-type", metavar="REGEX=TYPE", help="Type of the tensors whose name matches; repeat."),
    ] = None,
    output_type: Annotated[str | None, typer.Option(metavar="TYPE", help="Type of the output head.")] = None,
    embedding_type: Annotated[str | None, typer.Option(metavar="TYPE", help="Type of the token embedding.")] = None,
    leave_output: Annotated[
        bool, typer.Option("--leave-output-tensor", help="Keep the output head unquantized.")
    ] = False,
    pure: Annotated[bool, typer.Option("--pure", help="One type for all tensors, no mix.")] = False,
    split_max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Write shards of at most this size (500M, 2G).")
    ] = None,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Take a source that is quantized already.")
    ] = False,
    pre: Annotated[
        str | None, typer.Option("--pre", metavar="NAME", help="BPE pre-tokenizer, where it is not recognised.")
    ] = None,
    chat_template: Annotated[
        str | None, typer.Option(metavar="FILE|NAME", help=_HELP_TEMPLATE, autocompletion=_complete_template)
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=1024, help="Threads.", show_default="all cores")
    ] = None,
    max_ram: Annotated[str | None, typer.Option(metavar="SIZE", help="Memory the conversion may take.")] = None,
    logits: Annotated[
        bool | None,
        typer.Option(
            "--logits/--no-logits",
            help="Run each output and compare its logits with the source's.",
            show_default="if it fits in memory",
        ),
    ] = None,
    dry_run: DryRunOption = False,
    force: ForceOption = False,
    offline: Annotated[bool, typer.Option("--offline", help="Use only what the hub's cache holds.")] = False,
) -> None:
    """Convert a checkpoint to GGUF: every asked type in one pass, checked.

    Reads each tensor once, needs no intermediate file and the memory of a few rows. Each file is reloaded and compared
    with the source before it gets its name. A killed run is taken up by the same command.

    Example: quantkit gguf ORG/NAME -t q4_0 -t q4_k_m -t q8_0 -o out
    """
    if preset is not None and preset not in _PRESETS:
        raise UsageError(f"there is no preset {preset!r}; there is {', '.join(_PRESETS)}")
    if preset is not None:
        types = [*(types or ()), *_PRESETS[preset]]
        calibrate = calibrate or imatrix is None
    asked = tuple(dict.fromkeys(file_type(item) for item in types or ["q4_0"]))
    if imatrix and (calibrate or calibration):
        raise UsageError("--imatrix and --calibrate both give an importance matrix; leave one out")
    calibrates = calibrate or calibration is not None
    loaded = load_imatrix(imatrix) if imatrix else None
    mix = MixOptions(
        output_type=tensor_type(output_type) if output_type else None,
        embedding_type=tensor_type(embedding_type) if embedding_type else None,
        pure=pure,
        leave_output=leave_output,
        tensor_types=tuple(parse_override(item) for item in tensor_types or ()),
        has_imatrix=calibrates or loaded is not None,
    )
    if name is not None and (Path(name).name != name or name in (".", "..") or not name.isprintable()):
        raise UsageError(f"--name {name!r} is not a plain name; say where to write with -o")
    split = parse_size(split_max_size, "--split-max-size") if split_max_size else None
    ram = parse_size(max_ram, "--max-ram") if max_ram else None
    model = _open(source, out, name=name, pre=pre, chat_template=chat_template, offline=offline, headers_only=dry_run)
    try:
        request = Request(
            types=asked,
            folder=output / f"{model.name}-GGUF",
            mix=mix,
            imatrix=loaded,
            imatrix_name=imatrix.name if imatrix else None,
            split_max_size=split,
            allow_requantize=allow_requantize,
            threads=threads or 0,
            max_ram=ram,
        )

        def run(plan: Plan, *, over: bool) -> Result:
            with out.old_progress("converting", plan.n_elements) as ticker:
                return convert(plan, force=over, logits=logits, progress=ticker.advance, stage=ticker.stage)

        if calibrates:
            calibrating = Calibrating(calibration, samples, seq_len, chat, threads, max_ram, device, logits, offline)
            calibration_run = _Calibration(model, calibrating, out, output)
            model, request = calibration_run.prepared(request)
        plan = plan_gguf(model, request)
        for warning in plan.warnings:
            out.warn(warning)
        announce(plan, out)
        if dry_run:
            show_plan(plan, out)
            return
        if calibrates:
            result = calibration_run.then(plan, lambda known: run(known, over=True), force=force)
        else:
            result = run(plan, over=force)
    finally:
        model.close()
    show_result(result, out)
    raise_failed(result)


class _Calibration:
    """The calibration before a conversion: planned with an importance matrix of the right sizes, run with the true."""

    def __init__(self, model: Model, asked: Calibrating, out: Out, output: Path) -> None:
        if model.checkpoint is None:
            raise UsageError(f"--calibrate is for checkpoints; for {model.name}, a GGUF, pass --imatrix FILE")
        self.asked, self.out = asked, out
        self.found = calibrated.plan(model.checkpoint, [], asked, out, name=model.name, output=output, nearest=True)
        self.importance = Importance(self.found)
        self.model = self.importance.recorded(model)

    def prepared(self, request: Request) -> tuple[Model, Request]:
        """What to plan with, so that what would be refused is refused before hours of calibration."""
        return self.model, replace(request, imatrix=self.importance.placeholder(), imatrix_name=self.importance.name)

    def then(self, plan: Plan, run: Callable[[Plan], Result], *, force: bool) -> Result:
        """Calibrate, and `run` the plan with what that gave; its files are refused beforehand if they are there."""
        files = [plan.request.folder / file.name for each in plan.outputs for file in each.files]
        results: list[Result] = []

        def convert_now(squares: Squares) -> None:
            known = replace(plan.request, imatrix=self.importance.of(squares))
            results.append(run(plan_gguf(self.model, known)))

        calibrated.run(
            self.found, self.asked, self.out, force=force, then=convert_now, others=files, others_size=plan.disk
        )
        (result,) = results
        return result


def _open(
    source: str,
    out: Out,
    *,
    name: str | None,
    pre: str | None,
    chat_template: str | None,
    offline: bool,
    headers_only: bool,
) -> Model:
    if source.endswith(".gguf") and not Path(source).is_dir():
        for option, value in (("--pre", pre), ("--chat-template", chat_template)):
            if value is not None:
                raise UsageError(f"{option} is for checkpoints; {source} keeps the vocabulary it has")
        return model_from_gguf(Path(source), name=name)
    choice = None if chat_template is None else choose_template(chat_template)
    checkpoint = calibrated.fetch(source, out, offline=offline, headers_only=headers_only)
    model, note = model_with_template(checkpoint, choice, name=name, pre=pre)
    if note is not None:
        out.note(note)
    return model
