"""What a conversion writes and takes, from headers alone: GGUF files, packed folders, an importance matrix."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quantkit.checkpoint import Checkpoint
from quantkit.errors import UsageError
from quantkit.families.base.multimodal import TOWERS_LEFT_OUT, VISION_LEFT_OUT
from quantkit.families.base.native import Native
from quantkit.gguf.file_types import FileType
from quantkit.machine import cores
from quantkit.outputs.bridged_projector import BridgedProjectors
from quantkit.outputs.calibration import (
    GRAM_COPIES,
    CalibrationPlan,
    CalibrationRequest,
    ImatrixOutput,
    plan_calibration,
    plan_imatrix,
)
from quantkit.outputs.callback import CallbackPlan, plan_callback
from quantkit.outputs.direct import direct_memory
from quantkit.outputs.fingerprint import conversion_fingerprint
from quantkit.outputs.gguf_files import GgufOutput, GgufPlan, GgufRequest, plan_gguf
from quantkit.outputs.model import Model, origin_of
from quantkit.outputs.packed_folders import FolderPlan, FolderRequest, all_layers, plan_folder_of
from quantkit.outputs.projector import ProjectorRequest, plan_projectors
from quantkit.outputs.templates import model_with_template
from quantkit.packed.registry import FORMATS
from quantkit.quant.feedback import working_memory
from quantkit.texts.samples import Samples

OutputPlan = GgufOutput | FolderPlan | ImatrixOutput
"""One output to write; each has a `label`, a `folder`, and a `size` in bytes."""


def file_sizes(output: OutputPlan) -> dict[str, int]:
    """Bytes of every weight file of an output, by name."""
    if isinstance(output, ImatrixOutput):
        return {output.path.name: output.size}
    return {file.name: file.size for file in (output.files if isinstance(output, GgufOutput) else output.shards)}


def final_paths(output: OutputPlan) -> tuple[Path, ...]:
    """What an output becomes once it is checked: its folder, or its files."""
    if isinstance(output, FolderPlan):
        return (output.folder,)
    return tuple(output.folder / name for name in file_sizes(output))


def type_name(output: OutputPlan) -> str:
    """The type as documents and records name it: q4_0, AWQ, FP8, imatrix, f16 projector."""
    if isinstance(output, GgufOutput):
        return f"{output.type.name} projector" if output.projector else output.type.name
    return output.label


@dataclass(frozen=True)
class ConversionRequest:
    """What to write into the folder `output`, named after `name` (by default the source's). 0 threads are all cores.

    `imatrix`: write the importance matrix as NAME-imatrix.gguf, or as `imatrix_file`. `calibration` counts for
    `folders`, `imatrix` and a `gguf` that calibrates. `projectors`: write the projector (mmproj) in these types beside
    the `gguf`. `max_ram` in bytes.
    """

    output: Path = Path()
    name: str | None = None
    gguf: GgufRequest | None = None
    folders: tuple[FolderRequest, ...] = ()
    imatrix: bool = False
    imatrix_file: Path | None = None
    projectors: tuple[FileType, ...] = ()
    calibration: CalibrationRequest = field(default_factory=CalibrationRequest)
    threads: int = 0
    max_ram: int | None = None

    @property
    def calibrated(self) -> int:
        """How many kinds of outputs need the calibration."""
        folders = [folder for folder in self.folders if FORMATS[folder.method].calibrated]
        return len(folders) + self.imatrix + bool(self.gguf and self.gguf.calibrate)


@dataclass(frozen=True)
class ConversionPlan:
    """A conversion that can be run. `disk` and `peak_memory` in bytes, for everything together.

    `calibration`: of a source with a family, layer by layer; `callback`: of another source, by llama.cpp.
    `fingerprint` is a hash of all that decides the bytes of the outputs: only a run with the same one is resumed.
    `native`: the source of folders and of the calibration. `bridged`: projectors that llama.cpp's converter writes;
    their size is known only when it has read the headers.
    """

    name: str
    output: Path
    checkpoint: Checkpoint | None
    origin: Mapping[str, Any]
    calibration: CalibrationPlan | None
    folders: tuple[FolderPlan, ...]
    gguf: GgufPlan | None
    imatrix: ImatrixOutput | None
    threads: int
    fingerprint: str
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    native: Native | None = None
    callback: CallbackPlan | None = None
    projectors: GgufPlan | None = None
    bridged: BridgedProjectors | None = None

    def with_bridged(self, projectors: BridgedProjectors) -> "ConversionPlan":
        """The plan that also writes these projectors."""
        warnings = tuple(_without_towers(self.warnings))
        fingerprint = projectors.fingerprint(self.fingerprint)
        return replace(self, bridged=projectors, warnings=warnings, fingerprint=fingerprint)

    @property
    def gguf_passes(self) -> tuple[GgufPlan, ...]:
        """The passes that write GGUF files: over the text model, and over the projector."""
        return tuple(plan for plan in (self.gguf, self.projectors) if plan is not None)

    @property
    def samples(self) -> Samples | None:
        """The calibration samples; None if nothing is calibrated."""
        inputs = self.calibration or self.callback
        return inputs.samples if inputs else None

    @property
    def calibrated_folders(self) -> tuple[FolderPlan, ...]:
        """The folders that the calibration writes."""
        return tuple(folder for folder in self.folders if folder.format.calibrated)

    @property
    def direct_folders(self) -> tuple[FolderPlan, ...]:
        """The folders that need no calibration."""
        return tuple(folder for folder in self.folders if not folder.format.calibrated)

    @property
    def outputs(self) -> tuple[OutputPlan, ...]:
        """All outputs: folders, GGUF files, projectors, the importance matrix."""
        files = [output for plan in self.gguf_passes for output in plan.outputs]
        return (*self.folders, *files, *([self.imatrix] if self.imatrix else []))

    @property
    def paths(self) -> tuple[Path, ...]:
        """The final names of all outputs."""
        bridged = self.bridged.paths if self.bridged is not None else ()
        return (*(path for output in self.outputs for path in final_paths(output)), *bridged)

    @property
    def work(self) -> Path:
        """The folder of an unfinished run: its journal, hidden states and sums of squares."""
        return self.output / f"{self.name}-conversion.partial"

    @property
    def disk(self) -> int:
        """Bytes of disk for the outputs and the work folder."""
        inputs = self.calibration or self.callback
        return sum(output.size for output in self.outputs) + (inputs.disk if inputs else 0)

    @property
    def peak_memory(self) -> int:
        """Bytes of memory at the peak: the largest of the stages."""
        choice = self.calibration is not None and self.gguf is not None and self.gguf.request.target is not None
        streamed = self.checkpoint.streamed if self.checkpoint else None
        return (streamed.memory if streamed else 0) + max(
            self.calibration.memory + self._rounding_memory if self.calibration else 0,
            self.calibration.sensitivity_memory(self.threads) if choice and self.calibration else 0,
            self.callback.memory if self.callback else 0,
            *(plan.peak_memory for plan in self.gguf_passes),
            direct_memory(self.native, self.threads) if self.native and self.direct_folders else 0,
        )

    @property
    def _rounding_memory(self) -> int:
        """Bytes of the rows that threads round with error feedback at once."""
        if self.gguf is None or self.gguf.request.solver != "feedback" or self.calibration is None:
            return 0
        widest = max(entry.width for layer in self.calibration.layers for entry in layer.inputs)
        return working_memory(widest, self.threads)

    @property
    def parameters(self) -> int:
        """The number of weights of the source."""
        if self.gguf is not None:
            return self.gguf.n_elements
        if self.callback is not None:
            return sum(tensor.n_elements for tensor in self.callback.model.tensors)
        return sum(tensor.n_params for tensor in self.checkpoint.tensors.values()) if self.checkpoint else 0

    def bits_per_weight(self, output: OutputPlan) -> float | None:
        """Bits of an output's tensors over the number of weights; None for an importance matrix."""
        if isinstance(output, ImatrixOutput):
            return None
        if isinstance(output, GgufOutput) and output.projector and self.projectors is not None:
            return self.projectors.bits_per_weight(output)
        files = (
            [file.slots for file in output.files]
            if isinstance(output, GgufOutput)
            else [shard.places for shard in output.shards]
        )
        return 8 * sum(tensor.nbytes for tensors in files for tensor in tensors) / self.parameters


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
    calibration, callback = None, None
    if request.calibrated and isinstance(source, Checkpoint):
        calibration = _plan_calibration(source, request, samples, threads)
    elif request.calibrated and isinstance(source, Model):
        feedback = request.gguf is not None and request.gguf.solver == "feedback"
        callback = plan_callback(
            source, request.calibration, samples, gram=feedback, threads=threads, max_ram=request.max_ram
        )
    native = calibration.native if calibration else None
    if native is None and request.folders and isinstance(source, Checkpoint):
        native = Native(source)
    folders = _plan_folders(native, calibration, request, name) if native else ()
    if native is not None and request.max_ram is not None and any(not f.format.calibrated for f in folders):
        memory = direct_memory(native, threads)
        if memory > request.max_ram:
            raise UsageError(
                f"--max-ram {request.max_ram / 1e9:.2f} GB is too small; the folders need about {memory / 1e9:.2f} GB;"
                " use fewer --threads"
            )
    if request.gguf is not None and request.gguf.target is not None:
        _check_target(request.gguf)
    if request.gguf is not None and request.gguf.solver == "feedback" and not request.gguf.calibrate:
        raise UsageError(
            "--solver feedback needs the Gram matrices of a calibration; leave out --imatrix and --no-imatrix"
        )
    inputs = calibration or callback
    model, notes = _model(source, request.gguf, name) if request.gguf else (None, ())
    gguf = _plan_gguf(model, request, inputs) if model else None
    projectors = None
    if request.projectors and isinstance(source, Checkpoint) and gguf is not None:
        projector_request = ProjectorRequest(
            request.projectors, gguf.request.folder, name, request.threads, request.max_ram
        )
        projectors = plan_projectors(source, projector_request)
    text_warnings = gguf.warnings if gguf else source.warnings if isinstance(source, Model) else ()
    imatrix_file = request.imatrix_file or request.output / f"{name}-imatrix.gguf"
    imatrix = None
    if request.imatrix and calibration:
        matrices = {tensor: len(linears) for tensor, linears in calibration.imatrix_sources.items()}
        imatrix = plan_imatrix(imatrix_file, calibration.imatrix(), matrices)
    elif request.imatrix and callback:
        matrices = {tensor: count for tensor, (count, _) in callback.shapes.items()}
        imatrix = plan_imatrix(imatrix_file, callback.imatrix(), matrices)
    return ConversionPlan(
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
        native=native,
        warnings=(
            *(source.notes if isinstance(source, Checkpoint) else ()),
            *(inputs.samples.warnings if inputs else ()),
            *(_without_towers(text_warnings) if projectors else text_warnings),
        ),
        notes=notes,
        callback=callback,
        projectors=projectors,
    )


def _without_towers(warnings: Sequence[str]) -> Sequence[str]:
    """Those of towers that are left out do not hold if the projector is written."""
    return [warning for warning in warnings if not warning.endswith((VISION_LEFT_OUT, TOWERS_LEFT_OUT))]


def _plan_folders(
    native: Native, calibration: CalibrationPlan | None, request: ConversionRequest, name: str
) -> tuple[FolderPlan, ...]:
    layers = calibration.layers if calibration else all_layers(native)
    scaled = [f for f in request.folders if FORMATS[f.method].calibrated and f.scales_channels]
    if len(scaled) > 1:
        # each would scale the weights that the next one rounds
        names = " and ".join(folder.method for folder in scaled)
        raise UsageError(
            f"{names} both scale the channels of the weights, and one conversion does so once; leave one out, and make"
            " it with a command of its own"
        )
    # GPTQ runs first: it leaves the tensors of a layer as they are, the others scale them
    ordered = sorted(request.folders, key=lambda item: (not FORMATS[item.method].calibrated, item.scales_channels))
    return tuple(
        plan_folder_of(native, layers, folder, request.output / f"{name}-{FORMATS[folder.method].label}")
        for folder in ordered
    )


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
    if request.calibration.propagate and (len(calibrated), request.calibrated) != (1, 1):
        raise UsageError("--propagate quantized allows one calibrated type only; the hidden states follow that type")
    feedback = request.gguf is not None and request.gguf.solver == "feedback"
    native = Native(source, nearest=not request.folders)
    copies = GRAM_COPIES if calibrated or feedback else 0
    return plan_calibration(
        native, request.calibration, samples, gram_copies=copies, threads=threads, max_ram=request.max_ram
    )


def _refuse_without_family(source: Model, request: ConversionRequest) -> None:
    """Raise UsageError for what needs the checkpoint of a family: `source` is a GGUF, or bridged."""
    gguf = request.gguf
    for option, is_set in (
        (_labels(request.folders), bool(request.folders)),
        ("--target-size or --target-bpw", gguf is not None and gguf.target is not None),
    ):
        if is_set and source.folder is None:
            raise UsageError(
                f"{option} needs a checkpoint, but {source.name} is a GGUF; convert the original checkpoint, or name"
                " the folder or hub id of its config.json and tokenizer with --base"
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
