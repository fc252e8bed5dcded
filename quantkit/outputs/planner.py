"""Decide what a conversion writes and takes, from headers alone."""

from dataclasses import replace

from quantkit.checkpoint import Checkpoint
from quantkit.errors import UsageError
from quantkit.families.base.native import Native
from quantkit.imatrix.names import imatrix_columns
from quantkit.machine import cores
from quantkit.outputs.calibration import (
    CalibrationPlan,
    ImatrixOutput,
    plan_calibration,
    plan_imatrix,
)
from quantkit.outputs.calibration_memory import Grams
from quantkit.outputs.callback import CallbackPlan, plan_callback
from quantkit.outputs.code_notes import code_notes, code_warnings
from quantkit.outputs.direct import direct_memory
from quantkit.outputs.few_tokens import calibration_warnings
from quantkit.outputs.fingerprint import conversion_fingerprint
from quantkit.outputs.gguf_files import GgufPlan, GgufRequest, plan_gguf
from quantkit.outputs.model import Model, origin_of
from quantkit.outputs.packed_folders import FolderPlan, FolderRequest, all_layers, plan_folder_of
from quantkit.outputs.plan import ConversionPlan, ConversionRequest, without_towers
from quantkit.outputs.projector import ProjectorRequest, plan_projectors
from quantkit.outputs.settings import conversion_settings
from quantkit.outputs.templates import model_with_template
from quantkit.packed.registry import FORMATS
from quantkit.texts.samples import Samples
from quantkit.units import human_bytes, listed


def plan_conversion(
    source: Checkpoint | Model, request: ConversionRequest, samples: Samples | None = None
) -> ConversionPlan:
    """Decide everything about a conversion of `source`: a checkpoint, or the model of an existing GGUF.

    `samples` replace those of the request's calibration text. The caller closes the source, after the run.

    Raises:
        UsageError: the request contradicts itself, or needs more memory than `max_ram`.
        QuantkitError: the source, its tokenizer or the text does not suit an output; see `plan_calibration`,
            `plan_folder_of` and `plan_gguf`.
    """
    if isinstance(source, Checkpoint) and source.streamed is not None and request.max_ram is not None:
        source.streamed.limit(request.max_ram)
    name, threads = request.name or source.name, request.threads or cores()
    if isinstance(source, Model):
        _refuse_without_family(source, request)
    calibration, callback = _plan_inputs(source, request, samples, threads)
    native = calibration.native if calibration else None
    if native is None and request.folders and isinstance(source, Checkpoint):
        native = Native(source)
    folders = _plan_folders(native, calibration, request, name) if native else ()
    if native is not None and any(not folder.format.calibrated for folder in folders):
        _check_direct_memory(native, threads, request.max_ram)
    if request.gguf is not None:
        _check_gguf(request.gguf)
    inputs = calibration or callback
    model, notes = _model(source, request.gguf, name) if request.gguf else (None, ())
    gguf = _plan_gguf(model, request, inputs) if model else None
    projectors = _plan_projectors(source, request, gguf, name) if gguf else None
    text_warnings = gguf.warnings if gguf else source.warnings if isinstance(source, Model) else ()
    imatrix = _plan_imatrix(request, calibration, callback, name)
    plan = ConversionPlan(
        name=name,
        output=request.output,
        checkpoint=source if isinstance(source, Checkpoint) else None,
        origin=model.origin if model else origin_of(source),
        calibration=calibration,
        folders=folders,
        gguf=gguf,
        imatrix=imatrix,
        threads=gguf.threads if gguf and not inputs else threads,
        fingerprint=conversion_fingerprint(source, inputs, folders, (gguf, projectors), imatrix),
        settings=conversion_settings(source, request, inputs.samples if inputs else None),
        native=native,
        warnings=(
            *(source.notes if isinstance(source, Checkpoint) else ()),
            *(inputs.samples.warnings if inputs else ()),
            *(without_towers(text_warnings) if projectors else text_warnings),
            *(code_warnings(folders[0].code) if folders else ()),
            *(text for folder in folders for text in folder.format.warnings(folder.request)),
        ),
        notes=(*notes, *(code_notes(folders[0].code, native.config) if native and folders else ())),
        callback=callback,
        projectors=projectors,
        max_ram=request.max_ram,
    )
    _check_calibration_memory(plan)
    return replace(plan, warnings=(*plan.warnings, *calibration_warnings(plan)))


def _check_calibration_memory(plan: ConversionPlan) -> None:
    """Raise UsageError if the calibration with what it rounds takes more than `max_ram` bytes."""
    memory = plan.calibration_memory
    if plan.max_ram is not None and memory > plan.max_ram:
        less = "leave out --quality best, or use fewer --threads" if plan.follows_rounded else "use fewer --threads"
        raise UsageError(
            f"--max-ram {human_bytes(plan.max_ram)} is too small; the calibration and the rounding need about"
            f" {human_bytes(memory)}; {less}"
        )


def _plan_inputs(
    source: Checkpoint | Model, request: ConversionRequest, samples: Samples | None, threads: int
) -> tuple[CalibrationPlan | None, CallbackPlan | None]:
    """The calibration, layer by layer or by llama.cpp; (None, None) if no output needs one."""
    if not request.calibrated:
        return None, None
    if isinstance(source, Checkpoint):
        return _plan_calibration(source, request, samples, threads), None
    gram = request.gguf is not None and request.gguf.solver == "feedback"
    return None, plan_callback(
        source, request.calibration, samples, gram=gram, threads=threads, max_ram=request.max_ram
    )


def _check_direct_memory(native: Native, threads: int, max_ram: int | None) -> None:
    """Raise UsageError if the folders that need no calibration take more than `max_ram` bytes."""
    if max_ram is None:
        return
    memory = direct_memory(native, threads)
    if memory > max_ram:
        raise UsageError(
            f"--max-ram {human_bytes(max_ram)} is too small; the folders need about {human_bytes(memory)};"
            " use fewer --threads"
        )


def _plan_projectors(
    source: Checkpoint | Model, request: ConversionRequest, gguf: GgufPlan, name: str
) -> GgufPlan | None:
    """The projector files of a checkpoint; None if none is requested."""
    if not request.projectors or not isinstance(source, Checkpoint):
        return None
    folder = gguf.request.folder
    return plan_projectors(source, ProjectorRequest(request.projectors, folder, name, request.threads, request.max_ram))


def _plan_imatrix(
    request: ConversionRequest, calibration: CalibrationPlan | None, callback: CallbackPlan | None, name: str
) -> ImatrixOutput | None:
    """The importance matrix as a file; None if none is requested."""
    if not request.imatrix:
        return None
    file = request.imatrix_file or request.output / f"{name}-imatrix.gguf"
    if calibration:
        matrices = {tensor: len(linears) for tensor, linears in calibration.imatrix_sources.items()}
        return plan_imatrix(file, calibration.imatrix(), matrices)
    if callback:
        matrices = {tensor: count for tensor, (count, _) in callback.shapes.items()}
        return plan_imatrix(file, callback.imatrix(), matrices)
    return None


def _plan_folders(
    native: Native, calibration: CalibrationPlan | None, request: ConversionRequest, name: str
) -> tuple[FolderPlan, ...]:
    layers = calibration.layers if calibration else all_layers(native)
    scaled = [f for f in request.folders if FORMATS[f.method].calibrated and f.scales_channels]
    if len(scaled) > 1:
        # each would scale the weights that the next one rounds
        names = listed(folder.method for folder in scaled)
        each = "all" if scaled[2:] else "both"
        raise UsageError(
            f"{names} {each} scale the channels of the weights, which one conversion can do once only; run a command"
            " for each of them"
        )
    # GPTQ runs first: it leaves the tensors of a layer as they are, the others scale them
    ordered = sorted(request.folders, key=lambda item: (not FORMATS[item.method].calibrated, item.scales_channels))
    return tuple(
        plan_folder_of(native, layers, folder, request.output / f"{name}-{FORMATS[folder.method].label}")
        for folder in ordered
    )


def _check_gguf(request: GgufRequest) -> None:
    """Raise UsageError for an option that contradicts a file of a given size, or error feedback."""
    if request.target is not None:
        _check_target(request)
    if request.solver == "feedback" and not request.calibrate:
        raise UsageError("--solver feedback needs a calibration; leave out --imatrix and --no-imatrix")
    if request.reorder and request.solver != "feedback":
        raise UsageError("--reorder-neurons needs a calibration; add --solver feedback")


def _check_target(request: GgufRequest) -> None:
    """Raise UsageError for an option that contradicts a file of a given size."""
    for option, is_set in (
        ("--pure", request.mix.pure),
        ("--split-max-size", request.split_max_size is not None),
        ("--mtp only", request.mtp == "only"),
    ):
        if is_set:
            raise UsageError(f"{option} does not go with --target-size or --target-bpw; leave one of them out")
    if not request.calibrate:
        raise UsageError(
            "--target-size and --target-bpw choose types by a calibration; leave out --imatrix and --no-imatrix"
        )


def _plan_calibration(
    source: Checkpoint, request: ConversionRequest, samples: Samples | None, threads: int
) -> CalibrationPlan:
    calibrated = [folder for folder in request.folders if FORMATS[folder.method].calibrated]
    follows = any(folder.follows_rounded for folder in calibrated)
    if request.calibration.propagate and follows:
        raise UsageError(
            "--propagate quantized does not go with --quality best, which follows the source's layers too; leave one of"
            " them out"
        )
    if request.calibration.propagate and (len(calibrated), request.calibrated) != (1, 1):
        raise UsageError("--propagate quantized allows one calibrated type only; the hidden states follow that type")
    gguf = request.gguf
    feedback = gguf is not None and gguf.solver == "feedback"
    native = Native(source, nearest=not request.folders)
    by_files = gguf is not None and gguf.asymmetric
    source_grams = (feedback and not by_files) or any(folder.reads_source_grams for folder in calibrated)
    # experts with few tokens are recorded, and the linear after them is rounded for the source's inputs
    source_grams = source_grams or (bool(calibrated) and _has_experts(native))
    scaled = any(folder.scales_channels for folder in calibrated)
    reordered = feedback and ((gguf is not None and gguf.reorder) or bool(imatrix_columns(native)))
    grams, limit = Grams(source_grams, by_files, follows, scaled, reordered), request.max_ram
    return plan_calibration(native, request.calibration, samples, grams=grams, threads=threads, max_ram=limit)


def _has_experts(native: Native) -> bool:
    return any(entry.expert is not None for layer in all_layers(native) for entry in layer.inputs)


def _refuse_without_family(source: Model, request: ConversionRequest) -> None:
    """Raise UsageError for what needs the checkpoint of a family: `source` is a GGUF, or bridged."""
    gguf = request.gguf
    for option, is_set in (
        (_labels(request.folders), bool(request.folders)),
        ("--reorder-neurons", gguf is not None and gguf.reorder),
        ("--target-size or --target-bpw", gguf is not None and gguf.target is not None),
    ):
        if is_set and source.folder is None:
            raise UsageError(
                f"{option} needs a checkpoint, but {source.name} is a GGUF; convert the original checkpoint, or use"
                " quantkit convert with --base and the folder or hub id of its config.json and tokenizer"
            )
        if is_set:
            raise UsageError(f"{option} needs a family, but {source.name} has none in quantkit; leave it out")


def _labels(folders: tuple[FolderRequest, ...]) -> str:
    if all(folder.method in ("awq", "gptq") for folder in folders):
        return "AWQ or GPTQ"
    return " or ".join(FORMATS[folder.method].label for folder in folders)


def _model(source: Checkpoint | Model, request: GgufRequest, name: str) -> tuple[Model, tuple[str, ...]]:
    """The source as the GGUF that it would be unquantized; and what the user should know about its chat template."""
    if isinstance(source, Checkpoint):
        model, note = model_with_template(
            source,
            request.chat_template,
            name=f"mtp-{name}" if request.mtp == "only" else name,
            pre=request.pre,
            mtp=request.mtp,
        )
        return model, () if note is None else (note,)
    if source.folder is not None:
        if request.chat_template is not None:
            raise UsageError(
                f"--chat-template needs a family, and {source.name} has none; put the template into the checkpoint's"
                " chat_template.jinja"
            )
        return replace(source, name=f"mtp-{name}" if request.mtp == "only" else name), ()
    for option, value in (("--pre", request.pre), ("--chat-template", request.chat_template)):
        if value is not None:
            raise UsageError(f"{option} needs a checkpoint; {source.name} is a GGUF and keeps its vocabulary")
    if request.mtp != "keep":
        raise UsageError(f"--mtp {request.mtp} needs a checkpoint; {source.name} is a GGUF and keeps its layers")
    return replace(source, name=name), ()


def _plan_gguf(
    model: Model, request: ConversionRequest, calibration: CalibrationPlan | CallbackPlan | None
) -> GgufPlan:
    gguf = request.gguf
    assert gguf is not None
    imatrix, imatrix_name = gguf.imatrix, gguf.imatrix_name
    if gguf.calibrate:
        assert calibration is not None
        imatrix, imatrix_name = calibration.imatrix(), f"{calibration.samples.name}, calibrated here"
    return plan_gguf(
        model,
        replace(
            gguf,
            folder=request.output / f"{model.name}-GGUF",
            mix=replace(gguf.mix, has_imatrix=imatrix is not None),
            imatrix=imatrix,
            imatrix_name=imatrix_name,
            threads=request.threads,
            max_ram=request.max_ram,
        ),
    )
