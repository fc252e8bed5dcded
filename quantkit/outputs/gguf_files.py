"""The plan of a pass: every output's types, layout and size, the disk and memory it takes, before a weight is read."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray

from quantkit import __version__
from quantkit.errors import ImatrixError, UnsupportedError, UsageError
from quantkit.gguf.file_types import FileType, file_type
from quantkit.gguf.kernels import require
from quantkit.gguf.keyvalues import KeyValue
from quantkit.gguf.layout import FileLayout, lay_out
from quantkit.gguf.metadata import quantization_keys
from quantkit.gguf.mix import Choice, MixOptions, MixTensor, choose_types, idle_overrides
from quantkit.imatrix.file import Imatrix
from quantkit.machine import cores, resident_memory
from quantkit.outputs.model import Model, ModelTensor

CHUNK_ELEMENTS = 1 << 19
_FLOATS = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)


@dataclass(frozen=True)
class Request:
    """What the user asked of one pass."""

    types: tuple[FileType, ...]
    folder: Path
    mix: MixOptions = field(default_factory=MixOptions)
    imatrix: Imatrix | None = None
    imatrix_name: str | None = None
    split_max_size: int | None = None
    allow_requantize: bool = False
    threads: int = 0
    max_ram: int | None = None


@dataclass(frozen=True)
class Output:
    """One asked type: the type of each tensor, and its file or shards."""

    type: FileType
    stem: str
    choices: tuple[Choice, ...]
    files: tuple[FileLayout, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def mix(self) -> dict[str, int]:
        """How many tensors take each type."""
        counts: dict[str, int] = {}
        for choice in self.choices:
            counts[choice.type.name] = counts.get(choice.type.name, 0) + 1
        return counts


@dataclass(frozen=True)
class Plan:
    """A pass that can be run. Memory and disk in bytes."""

    model: Model
    request: Request
    outputs: tuple[Output, ...]
    weights: Mapping[str, NDArray[np.float32]]
    threads: int
    chunk_elements: int
    peak_memory: int
    disk: int
    fingerprint: str
    warnings: tuple[str, ...]

    @property
    def n_elements(self) -> int:
        return sum(tensor.n_elements for tensor in self.model.tensors)

    def bits_per_weight(self, output: Output) -> float:
        return 8 * sum(slot.nbytes for file in output.files for slot in file.slots) / self.n_elements


def plan_gguf(model: Model, request: Request) -> Plan:
    """Decide everything about a pass.

    Raises:
        UsageError: options that cannot be met (memory, shard size).
        ImatrixError: a type needs an importance matrix that is missing or of the wrong size.
        UnsupportedError: a quantized source without leave to requantize it.
    """
    tensors = [MixTensor(t.name, t.shape, t.type) for t in model.tensors]
    weights, warnings = _importance(model, request)
    warnings += [
        f"--tensor-type {pattern} matches no tensor that is quantized; their names are such as blk.0.attn_v.weight"
        for pattern in idle_overrides(model.sizes, tensors, request.mix)
    ]
    outputs = []
    fallbacks: dict[str, int] = {}
    for type_ in request.types:
        choices = choose_types(model.sizes, type_, tensors, request.mix)
        kept = _as_published(model, request, type_)
        choices = [replace(each, type=kept.get(each.name, each.type)) for each in choices]
        _check_importance(choices, type_, weights)
        for tensor, choice in zip(model.tensors, choices, strict=True):
            if choice.type != tensor.type:
                if tensor.type not in _FLOATS and not request.allow_requantize:
                    raise UnsupportedError(_quantized_already(model, tensor))
                require(choice.type, weighted=choice.name in weights)
        fallbacks[type_.label] = sum(choice.fallback for choice in choices)
        # a file of floats and blocks is of the blocks' type (llama.cpp's converter, prepare_metadata)
        ftype = file_type("mxfp4").ftype if kept else type_.ftype
        keys = [*model.keys, *quantization_keys(ftype), *_imatrix_keys(request)]
        stem = f"{model.name}-{type_.label}"
        shapes = [(t.name, t.shape, choice.type) for t, choice in zip(model.tensors, choices, strict=True)]
        files = lay_out(stem, keys, shapes, request.split_max_size)
        outputs.append(Output(type_, stem, tuple(choices), tuple(files)))
    if any(fallbacks.values()):
        counts = ", ".join(f"{label} {count}" for label, count in fallbacks.items() if count)
        warnings.append(
            f"some rows do not fit their type's blocks, so as in llama.cpp these of {len(tensors)} tensors take a near"
            f" type: {counts}"
        )
    threads, chunk, peak = _fit_memory(model.tensors, len(outputs), request)
    return Plan(
        model=model,
        request=request,
        outputs=tuple(outputs),
        weights=weights,
        threads=threads,
        chunk_elements=chunk,
        peak_memory=peak,
        disk=sum(output.size for output in outputs),
        fingerprint=_fingerprint(model, request, outputs),
        warnings=(*model.warnings, *warnings),
    )


def _as_published(model: Model, request: Request, asked: FileType) -> dict[str, GGMLQuantizationType]:
    """Weights that a checkpoint was published with in a type of ggml's: in an unquantized GGUF they stay what they are.

    llama.cpp's converter does so for gpt-oss's experts in MXFP4.
    """
    if asked.tensor_type not in _FLOATS or model.checkpoint is None or request.allow_requantize:
        return {}
    return {tensor.name: tensor.type for tensor in model.tensors if tensor.type not in _FLOATS}


def _quantized_already(model: Model, tensor: ModelTensor) -> str:
    found = f"{model.name} is quantized already ({tensor.name} is {tensor.type.name}) and quantizing it again costs"
    found += " quality twice; "
    if model.checkpoint is not None:
        return found + "take -t mxfp4 or -t bf16, which leave those weights as they are, or add --allow-requantize"
    same = (
        "take -t mxfp4, which leaves those weights as they are, " if tensor.type == GGMLQuantizationType.MXFP4 else ""
    )
    return found + same + "convert the original checkpoint or an f16, bf16 or f32 GGUF, or add --allow-requantize"


def _importance(model: Model, request: Request) -> tuple[dict[str, NDArray[np.float32]], list[str]]:
    """Importance of each tensor's columns, (experts, n_columns) float32, for the tensors the imatrix covers."""
    weights: dict[str, NDArray[np.float32]] = {}
    if request.imatrix is None:
        return weights, []
    for tensor in model.tensors:
        values = request.imatrix.values.get(tensor.name)
        if values is None:
            continue
        experts = tensor.n_rows // tensor.matrix_rows
        if values.size != experts * tensor.n_columns:
            if tensor.name == "token_embd.weight":
                continue
            raise ImatrixError(
                f"{request.imatrix_name}: {tensor.name} has {values.size} values where the tensor needs"
                f" {experts * tensor.n_columns}; this imatrix was made for another model"
            )
        weights[tensor.name] = np.ascontiguousarray(values, dtype=np.float32).reshape(experts, tensor.n_columns)
    if not weights:
        raise ImatrixError(f"{request.imatrix_name} covers no tensor of {model.name}; it was made for another model")
    return weights, []


def _check_importance(choices: Sequence[Choice], type_: FileType, weights: Mapping[str, object]) -> None:
    for choice in choices:
        if choice.requires_imatrix and choice.name not in weights:
            lacking = (
                "which the given one does not cover; give it another with --tensor-type, or take a larger type"
                if weights
                else "and none was given; --calibrate computes one, --imatrix FILE takes llama-imatrix's, or take a"
                " larger type"
            )
            raise ImatrixError(
                f"{type_.name} makes {choice.name} {choice.type.name}, which needs an importance matrix, {lacking}"
            )


def _imatrix_keys(request: Request) -> list[KeyValue]:
    """The keys llama-quantize leaves about the importance matrix; its path is cut to the file's name."""
    if request.imatrix is None:
        return []
    datasets = request.imatrix.datasets
    keys = [KeyValue("quantize.imatrix.file", GGUFValueType.STRING, request.imatrix_name or "imatrix")]
    if datasets:
        keys.append(KeyValue("quantize.imatrix.dataset", GGUFValueType.STRING, datasets[0]))
    keys.append(KeyValue("quantize.imatrix.entries_count", GGUFValueType.UINT32, len(request.imatrix.values)))
    if request.imatrix.chunks > 0:
        keys.append(KeyValue("quantize.imatrix.chunks_count", GGUFValueType.UINT32, request.imatrix.chunks))
    return keys


def _fit_memory(tensors: Sequence[ModelTensor], n_outputs: int, request: Request) -> tuple[int, int, int]:
    """Threads, elements of a chunk and expected peak memory in bytes, within `--max-ram` if that can be."""
    threads = request.threads or cores()
    largest_step = max(tensor.row_step * tensor.n_columns for tensor in tensors)
    base = resident_memory() + (48 << 20)

    def peak(threads: int, chunk: int) -> int:
        # Source rows, their reordered copy, float32, the finite mask, and one quantized block at a time.
        return base + threads * max(chunk, largest_step) * (4 + 4 + 4 + 1 + 4)

    chunk = CHUNK_ELEMENTS
    if request.max_ram is not None:
        while peak(threads, chunk) > request.max_ram and (threads > 1 or chunk > 1 << 14):
            threads, chunk = (threads - 1, chunk) if threads > 1 else (threads, chunk // 2)
        if peak(threads, chunk) > request.max_ram:
            raise UsageError(
                f"--max-ram {request.max_ram / 1e6:.0f} MB is too little: this conversion needs"
                f" about {peak(threads, chunk) / 1e6:.0f} MB"
            )
    return threads, chunk, peak(threads, chunk)


def _fingerprint(model: Model, request: Request, outputs: Sequence[Output]) -> str:
    """A hash of all that decides the output's bytes: a resumed run must have the same."""
    stamps = {}
    for path in model.weight_files:
        status = path.stat() if path.exists() else None
        stamps[path.name] = [status.st_size, status.st_mtime_ns] if status else None
    facts = {
        "version": __version__,
        "origin": dict(model.origin),
        "weights": stamps,
        "imatrix": request.imatrix.sha256 if request.imatrix else None,
        "files": [
            [file.name, file.size, hashlib.sha256(file.header).hexdigest()]
            for output in outputs
            for file in output.files
        ],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
