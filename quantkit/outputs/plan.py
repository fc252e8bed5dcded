"""What a conversion writes and takes: GGUF files, packed folders, an importance matrix, projectors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quantkit.checkpoint import Checkpoint
from quantkit.families.base.multimodal import TOWERS_LEFT_OUT, VISION_LEFT_OUT
from quantkit.families.base.native import Native
from quantkit.gguf.blocks import FORMATS as BLOCKS
from quantkit.gguf.file_types import FileType
from quantkit.journal import Settings
from quantkit.outputs.bridged_projector import BridgedProjectors
from quantkit.outputs.calibration import CalibrationPlan, CalibrationRequest, ImatrixOutput
from quantkit.outputs.callback import CallbackPlan
from quantkit.outputs.direct import direct_memory
from quantkit.outputs.gguf_files import GgufOutput, GgufPlan, GgufRequest
from quantkit.outputs.packed_folders import FolderPlan, FolderRequest
from quantkit.packed.registry import FORMATS
from quantkit.quant.feedback import working_memory
from quantkit.stream.kept import HELD_BYTES, kept_width
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
    `settings` names what it covers.
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
    settings: Settings
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    native: Native | None = None
    callback: CallbackPlan | None = None
    projectors: GgufPlan | None = None
    bridged: BridgedProjectors | None = None
    max_ram: int | None = None

    def with_bridged(self, projectors: BridgedProjectors) -> "ConversionPlan":
        """The plan that also writes these projectors."""
        warnings = tuple(without_towers(self.warnings))
        fingerprint = projectors.fingerprint(self.fingerprint)
        settings = {**self.settings, "--mmproj": ", ".join(kind.name for kind in projectors.types)}
        return replace(self, bridged=projectors, warnings=warnings, fingerprint=fingerprint, settings=settings)

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
        code = sum(folder.code.size for folder in self.folders)
        kept = 0 if self.holds_values else self._kept_values
        states = self._streams * inputs.disk if inputs else 0
        return sum(output.size for output in self.outputs) + code + states + kept

    @property
    def _streams(self) -> int:
        """Streams of hidden states: of the source, and of the rounded layers of each file and folder."""
        files = self.gguf.outputs if self.gguf and self.is_asymmetric else ()
        fed_back = [any(choice.type in BLOCKS for choice in output.choices) for output in files]
        return 1 + len(self.following_folders) + sum(fed_back)

    @property
    def _kept_values(self) -> int:
        """Bytes of the values of a layer that are computed once, of the source and of one rounded stream at a time."""
        inputs = self.calibration
        if inputs is None or inputs.device is not None or self._streams == 1:
            return 0
        widest = max(kept_width(layer, inputs.native.decoder.width) for layer in inputs.layers)
        return 2 * 4 * inputs.samples.tokens.size * widest

    @property
    def holds_values(self) -> bool:
        """Whether these values stay in memory."""
        return self._kept_values <= HELD_BYTES and self.max_ram is None

    @property
    def following_folders(self) -> tuple[FolderPlan, ...]:
        """The folders that are rounded for the inputs of their own rounded layers."""
        return tuple(folder for folder in self.calibrated_folders if folder.request.follows_rounded)

    @property
    def is_asymmetric(self) -> bool:
        """Whether GGUF types are rounded for the inputs of rounded layers, which needs a family."""
        return self.gguf is not None and self.calibration is not None and self.gguf.request.asymmetric

    @property
    def peak_memory(self) -> int:
        """Bytes of memory at the peak: the largest of the stages."""
        streamed = self.checkpoint.streamed if self.checkpoint else None
        return (streamed.memory if streamed else 0) + max(
            self.calibration_memory,
            self.callback.memory if self.callback else 0,
            *(plan.peak_memory for plan in self.gguf_passes),
            direct_memory(self.native, self.threads) if self.native and self.direct_folders else 0,
        )

    @property
    def calibration_memory(self) -> int:
        """Bytes of memory of the calibration at its peak, with the rounding and the choice of types that it serves."""
        if self.calibration is None:
            return 0
        choice = self.gguf is not None and self.gguf.request.target is not None
        layers = self.calibration.following_memory if self.follows_rounded else self.calibration.memory
        return max(
            layers + self._rounding_memory,
            self.calibration.sensitivity_memory(self.threads) if choice else 0,
        )

    @property
    def follows_rounded(self) -> bool:
        """Whether anything is rounded for the inputs of rounded layers."""
        return self._streams > 1

    @property
    def _rounding_memory(self) -> int:
        """Bytes of the rows of GGUF types that threads round with error feedback at once, and of the kept values."""
        if self.calibration is None:
            return 0
        kept = self._kept_values if self.holds_values else 0
        if self.gguf is None or self.gguf.request.solver != "feedback":
            return kept
        widest = max(entry.width for layer in self.calibration.layers for entry in layer.inputs)
        return working_memory(widest, self.threads) + kept

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
        if isinstance(output, GgufOutput):
            return 8 * sum(tensor.nbytes for file in output.files for tensor in file.slots) / self.parameters
        return 8 * output.tensor_bytes / self.parameters


def without_towers(warnings: Sequence[str]) -> Sequence[str]:
    """The warnings that still hold if the projector is written: those on towers that are left out do not."""
    return [warning for warning in warnings if not warning.endswith((VISION_LEFT_OUT, TOWERS_LEFT_OUT))]
