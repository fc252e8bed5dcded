"""GGUF files to write: the type of every tensor, the layout and size of every file, the memory, from headers alone."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from quantkit.errors import UnsupportedError
from quantkit.gguf.file_types import FileType, file_type
from quantkit.gguf.kernels import require
from quantkit.gguf.keyvalues import KeyValue, boolean
from quantkit.gguf.layout import FileLayout, lay_out, padded
from quantkit.gguf.metadata import REORDERED_KEY, quantization_keys
from quantkit.gguf.mix import Choice, MixOptions, MixTensor, choose_types, idle_overrides
from quantkit.imatrix.file import Imatrix
from quantkit.outputs.importance import check_importance, column_weights, imatrix_keys
from quantkit.outputs.memory import checked_at_once, llama_memory
from quantkit.outputs.model import Model, ModelTensor, Mtp
from quantkit.outputs.pass_memory import fit_memory, vocabulary_size
from quantkit.outputs.target import Candidates, Target, candidates, even_types, labelled, target_choices
from quantkit.outputs.templates import Template
from quantkit.quant.feedback import SWEEPS
from quantkit.quant.neurons import REORDERED
from quantkit.units import listed

Solver = Literal["llama.cpp", "feedback"]
"""How weights are rounded to a type: with llama.cpp's bytes, or with error feedback."""
# A type with fewer bits per weight than the target minus this is not tried: the choice never takes one so poor.
_BELOW_TARGET = 2.0
FLOATS = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)


@dataclass(frozen=True)
class GgufRequest:
    """GGUF files to write, one for each type. Sizes in bytes; 0 threads are all cores.

    `target`: write one more file, of a given size, whose types the calibration chooses; it needs `calibrate`.
    `calibrate`: the importance matrix comes from the calibration of the same conversion. `pre` (BPE pre-tokenizer) and
    `chat_template` (see `choose_template`) replace those of a checkpoint. `mtp`: see `model_from_checkpoint`.
    `solver`: "feedback" rounds with error feedback over the Gram matrix and descends in `sweeps` sweeps (see
    `quant.feedback`); it needs `calibrate`. `reorder`: the neurons of feed-forwards may have another order (see
    `quant.neurons`); it needs this solver. `asymmetric`: the solver rounds each matrix for the inputs that the
    rounded layers give (see `quant.asymmetric`).
    """

    types: tuple[FileType, ...]
    target: Target | None = None
    folder: Path = Path()
    mix: MixOptions = field(default_factory=MixOptions)
    imatrix: Imatrix | None = None
    imatrix_name: str | None = None
    calibrate: bool = False
    split_max_size: int | None = None
    allow_requantize: bool = False
    pre: str | None = None
    chat_template: Template | None = None
    mtp: Mtp = "keep"
    solver: Solver = "llama.cpp"
    sweeps: int = SWEEPS
    reorder: bool = False
    asymmetric: bool = False
    threads: int = 0
    max_ram: int | None = None


@dataclass(frozen=True)
class GgufOutput:
    """The file of one type, or its shards, and the type of each tensor. `projector`: it is not of the text model."""

    type: FileType
    folder: Path
    stem: str
    choices: tuple[Choice, ...]
    files: tuple[FileLayout, ...]
    projector: bool = False

    @property
    def label(self) -> str:
        """The type in file names, such as Q4_K_M; mmproj-F16 of a projector."""
        return f"mmproj-{self.type.label}" if self.projector else self.type.label

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def mix(self) -> dict[str, int]:
        """How many tensors have each type."""
        counts: dict[str, int] = {}
        for choice in self.choices:
            counts[choice.type.name] = counts.get(choice.type.name, 0) + 1
        return counts


@dataclass(frozen=True)
class GgufPlan:
    """One pass over a model that writes every GGUF file. `weights`: the importance of each tensor's columns.

    `peak_memory` in bytes. `threads` and `chunk_elements` (elements that a thread quantizes at once) fit into it.
    """

    model: Model
    request: GgufRequest
    outputs: tuple[GgufOutput, ...]
    weights: Mapping[str, NDArray[np.float32]]
    threads: int
    chunk_elements: int
    peak_memory: int
    warnings: tuple[str, ...]

    @property
    def disk(self) -> int:
        """Bytes of all outputs."""
        return sum(output.size for output in self.outputs)

    @property
    def n_elements(self) -> int:
        """Number of parameters."""
        return sum(tensor.n_elements for tensor in self.model.tensors)

    @property
    def checked_at_once(self) -> int:
        """Outputs whose checks run at the same time."""
        return checked_at_once(self.disk, self.threads, self.request.max_ram)

    @property
    def llama_memory(self) -> int:
        """Bytes of memory of the processes in which llama.cpp computes the outputs' logits."""
        sizes = [output.size for output in self.outputs]
        return (
            llama_memory(sizes, vocabulary_size(self.model), self.checked_at_once)
            if self.model.folder is not None
            else 0
        )

    def bits_per_weight(self, output: GgufOutput) -> float:
        """Bits of tensor data per parameter."""
        return 8 * sum(slot.nbytes for file in output.files for slot in file.slots) / self.n_elements

    def with_imatrix(self, imatrix: Imatrix) -> "GgufPlan":
        """The same plan with the values of another importance matrix of the same tensors."""
        return plan_gguf(self.model, replace(self.request, imatrix=imatrix))

    def with_reordered(self, labels: Collection[str]) -> "GgufPlan":
        """The same plan, in which the key of reordered neurons is true in the files `labels` only."""
        true, false = (boolean(REORDERED_KEY, value).pack() for value in (True, False))

        def denied(output: GgufOutput) -> GgufOutput:
            files = (replace(file, header=file.header.replace(true, false)) for file in output.files)
            return replace(output, files=tuple(files))

        outputs = tuple(output if output.label in labels else denied(output) for output in self.outputs)
        return replace(self, outputs=outputs)

    def candidates(self) -> list[Candidates]:
        """The types that each tensor of a file of a given size may have."""
        return _candidates(self.model, self.request, self.weights)

    @property
    def target_output(self) -> GgufOutput | None:
        """The file of a given size."""
        return self.outputs[-1] if self.request.target is not None else None

    @property
    def target_budget(self) -> int:
        """Bytes that the tensors of the file of a given size may take."""
        return _target_budget(self.model, self.request)

    def with_types(self, types: Mapping[str, GGMLQuantizationType]) -> "GgufPlan":
        """The same plan with these types in the file of a given size."""
        assert self.request.target is not None
        return plan_gguf(self.model, replace(self.request, target=replace(self.request.target, types=types)))


def plan_gguf(model: Model, request: GgufRequest) -> GgufPlan:
    """Decide the type of every tensor and the place of every byte.

    Raises:
        UsageError: the memory or the shard size is too small.
        ImatrixError: a type needs an importance matrix that is missing or has the wrong size.
        UnsupportedError: the source is quantized already and `allow_requantize` is not set.
    """
    tensors = [MixTensor(t.name, t.shape, t.type) for t in model.tensors]
    weights = {} if request.imatrix is None else column_weights(model, request.imatrix, request.imatrix_name)
    warnings = [
        f"--tensor-type {pattern} matches no quantized tensor; a tensor name is for example blk.0.attn_v.weight"
        for pattern in idle_overrides(model.sizes, tensors, request.mix)
    ]
    unquantized = [type_.label for type_ in request.types if type_.tensor_type in FLOATS]
    if request.mix.tensor_types and unquantized:
        warnings.append(
            f"--tensor-type has no effect on {listed(unquantized)}, as in llama.cpp; use --embedding-type and"
            " --output-type, or choose a quantized type"
        )
    outputs = []
    fallbacks: dict[str, int] = {}
    rounded_twice = set()
    mixes = [(type_, choose_types(model.sizes, type_, tensors, request.mix)) for type_ in request.types]
    if request.target is not None:
        mixes.append(_target_mix(model, request, request.target, weights))
    for type_, choices in mixes:
        kept = _as_published(model, request, type_)
        choices = [replace(choice, type=kept.get(choice.name, choice.type)) for choice in choices]
        check_importance(choices, type_, weights)
        for tensor, choice in zip(model.tensors, choices, strict=True):
            if choice.type != tensor.type:
                if tensor.type not in FLOATS and not request.allow_requantize:
                    raise UnsupportedError(_quantized_already(model, tensor))
                if tensor.type not in FLOATS and model.checkpoint is None:
                    rounded_twice.add(tensor.type.name)
                require(choice.type, weighted=choice.name in weights)
        fallbacks[type_.label] = sum(choice.fallback for choice in choices)
        # llama.cpp's converter (prepare_metadata) gives a file of floats and MXFP4 blocks the file type of the blocks
        ftype = file_type("mxfp4").ftype if kept else type_.ftype
        stem = f"{model.name}-{type_.label}"
        shapes = [(t.name, t.shape, choice.type) for t, choice in zip(model.tensors, choices, strict=True)]
        files = lay_out(stem, _keys(model, request, ftype, choices), shapes, request.split_max_size)
        outputs.append(GgufOutput(type_, request.folder, stem, tuple(choices), tuple(files)))
    if rounded_twice:
        warnings.append(
            f"{model.name} is quantized already ({', '.join(sorted(rounded_twice))}); the errors that are measured are"
            " relative to it, and its own come on top"
        )
    if any(fallbacks.values()):
        counts = ", ".join(f"{count} of {label}" for label, count in fallbacks.items() if count)
        warnings.append(
            f"tensors whose rows do not fit the blocks of their type get a similar type, as in llama.cpp: {counts}"
        )
    threads, chunk, peak = fit_memory(model, [output.size for output in outputs], request.threads, request.max_ram)
    return GgufPlan(model, request, tuple(outputs), weights, threads, chunk, peak, (*model.warnings, *warnings))


def _keys(model: Model, request: GgufRequest, ftype: int, choices: Sequence[Choice] | None = None) -> list[KeyValue]:
    """The model's keys, then those of this quantization, which replace an earlier one's as in llama.cpp.

    choices: the types of the tensors; None if they are not known yet.
    """
    quantization = [*quantization_keys(ftype), *imatrix_keys(request.imatrix, request.imatrix_name)]
    if request.reorder and (
        choices is None or any(choice.type == REORDERED and ".ffn_down" in choice.name for choice in choices)
    ):
        quantization.append(boolean(REORDERED_KEY, True))
    replaced = {key.key for key in quantization}
    return [*(key for key in model.keys if key.key not in replaced), *quantization]


def _candidates(model: Model, request: GgufRequest, weights: Mapping[str, object]) -> list[Candidates]:
    tensors = [MixTensor(t.name, t.shape, t.type) for t in model.tensors]
    budget = _target_budget(model, request)
    least = 8 * budget / sum(tensor.n_elements for tensor in model.tensors) - _BELOW_TARGET
    options = candidates(model.sizes, tensors, request.mix, frozenset(weights), least=least)
    if sum(min(option.bytes) for option in options) <= budget:
        return options
    return candidates(model.sizes, tensors, request.mix, frozenset(weights))


def _target_budget(model: Model, request: GgufRequest) -> int:
    assert request.target is not None
    return request.target.tensor_budget(_overhead(model, request), sum(t.n_elements for t in model.tensors))


def _target_mix(
    model: Model, request: GgufRequest, target: Target, weights: Mapping[str, object]
) -> tuple[FileType, list[Choice]]:
    """The file of a given size: its type, and the types of its tensors, even ones until they are chosen."""
    options = _candidates(model, request, weights)
    overhead = _overhead(model, request)
    types = target.types or even_types(target, options, overhead)
    mix = target_choices(options, types)
    kind = target.file_type(overhead, sum(tensor.n_elements for tensor in model.tensors))
    return labelled(kind, mix, [option.tensor for option in options]), mix


def _overhead(model: Model, request: GgufRequest) -> int:
    """Bytes of a file outside its tensors. They do not depend on the types."""
    shapes = [(tensor.name, tensor.shape, GGMLQuantizationType.F32) for tensor in model.tensors]
    file = lay_out(model.name, _keys(model, request, 0), shapes)[0]
    return file.size - sum(padded(slot.nbytes) for slot in file.slots)


def _as_published(model: Model, request: GgufRequest, type_: FileType) -> dict[str, GGMLQuantizationType]:
    """Weights that a checkpoint was published with in a type of ggml: an unquantized GGUF keeps that type.

    llama.cpp's converter does so for gpt-oss's experts in MXFP4.
    """
    if type_.tensor_type not in FLOATS or model.checkpoint is None or request.allow_requantize:
        return {}
    unquantized = (*FLOATS, GGMLQuantizationType.I32)
    return {tensor.name: tensor.type for tensor in model.tensors if tensor.type not in unquantized}


def _quantized_already(model: Model, tensor: ModelTensor) -> str:
    text = f"{model.name} is quantized already ({tensor.name} is {tensor.type.name}); quantizing it again loses quality"
    if model.checkpoint is not None:
        return text + "; pass -t mxfp4 or -t bf16 to keep those weights as they are, or add --allow-requantize"
    mxfp4_hint = "pass -t mxfp4 to keep those weights, " if tensor.type == GGMLQuantizationType.MXFP4 else ""
    return f"{text}; {mxfp4_hint}convert the original checkpoint or an f16, bf16 or f32 GGUF, or add --allow-requantize"
