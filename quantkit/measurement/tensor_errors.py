"""Relative Frobenius error of each weight matrix of a quantized model, by its name in a GGUF.

The family's rules map the tensors of a checkpoint to GGUF names and row order. Folders and GGUF files are comparable.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod, sqrt
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from quantkit.checkpoint import Checkpoint
from quantkit.errors import MeasureError
from quantkit.families import find_family, map_tensors, read_mapped
from quantkit.families.base.mapped import MappedTensor
from quantkit.gguf.metadata import REORDERED_KEY
from quantkit.measurement.folder_sources import Dequantized, open_source
from quantkit.outputs.gguf_source import model_from_gguf
from quantkit.outputs.model import ModelTensor, widen

_SLICE = 1 << 20
_HUGE = 1 << 25
_FOLDED = 0.02
_LAYER = re.compile(r"^blk\.(\d+)\.(.+)$")
_TIED = {"output.weight": "token_embd.weight"}


@dataclass(frozen=True)
class TensorError:
    """Relative Frobenius error of a matrix: |candidate - reference| / |reference|.

    Attributes:
        layer: None outside the layers.
        kind: the name below the layer (attn_q, ffn_down_exps, token_embd).
        type: the candidate's type of the matrix.
    """

    layer: int | None
    kind: str
    type: str
    error: float

    def document(self) -> dict[str, Any]:
        """A row of report.json's "tensor_errors"."""
        return {"layer": self.layer, "kind": self.kind, "type": self.type, "error": self.error}


def tensor_errors(reference: Path, candidate: Path) -> list[TensorError]:
    """The error of every weight matrix that both models have; stacked experts count as one matrix.

    Each model is a GGUF file or a folder of Hugging Face or quantized weights. An AWQ candidate has no errors, because
    its scales are folded into norms and neighbouring matrices; nor have the feed-forwards of a GGUF with reordered
    neurons. A tied output matrix compares with the embedding. Rows are read in slices of a million elements. A matrix
    of more than 2^25 elements is sampled: every k-th slice, about
    2^25 elements.

    Raises:
        CheckpointError, UnsupportedError: a model is not readable.
        MeasureError: the shapes differ, no matrix is common, or AWQ's scales were folded into another format.
    """
    with ExitStack() as stack:
        candidates = _open(candidate, stack)
        if candidates.method == "awq":
            return []
        references = _open(reference, stack)
        if _is_folded(candidates, references):
            raise MeasureError(
                f"the single matrices of {candidate.name}, because scales were folded into its norms (by AWQ)"
            )
        pairs = [(tensor, references.match(name)) for name, tensor in candidates.matrices.items()]
        common = [(tensor, other) for tensor, other in pairs if other is not None]
        if not common:
            raise MeasureError(
                f"{candidate.name} and {reference.name} have no weight matrix in common; pass files of one model"
            )
        errors = []
        for tensor, other in common:
            if tensor.shape != other.shape:
                raise MeasureError(
                    f"{tensor.name} is {list(tensor.shape)} in {candidate.name} and {list(other.shape)} in"
                    f" {reference.name}; pass files of one model"
                )
            layer, kind = _place(tensor.name)
            errors.append(TensorError(layer, kind, tensor.type, _error(tensor, other)))
        return sorted(errors, key=lambda error: (error.layer is not None, error.layer or 0))


@dataclass(frozen=True)
class _Matrix:
    """A matrix under its GGUF name; `rows(start, stop)` are float32, starts and stops multiples of `step`."""

    name: str
    shape: tuple[int, ...]
    step: int
    type: str
    rows: Callable[[int, int], NDArray[np.float32]]


@dataclass(frozen=True)
class _Matrices:
    matrices: Mapping[str, _Matrix]
    method: str
    norms: Mapping[str, _Matrix]

    def match(self, name: str) -> _Matrix | None:
        return self.matrices.get(name) or self.matrices.get(_TIED.get(name, ""))


def _open(path: Path, stack: ExitStack) -> _Matrices:
    if not path.is_dir():
        model = model_from_gguf(path)
        stack.callback(model.close)
        # neurons may have another order there
        reordered = any(key.key == REORDERED_KEY and key.value for key in model.keys)
        matrices = {
            t.name: _of_gguf(t, model.read_rows)
            for t in model.tensors
            if _is_matrix(t.name, t.shape) and not (reordered and ".ffn_" in t.name)
        }
        norms = {t.name: _of_gguf(t, model.read_rows) for t in model.tensors if _is_norm(t.name, t.shape)}
        return _Matrices(matrices, "gguf", norms)
    opened = open_source(path)
    stack.callback(opened.close)
    if isinstance(opened, Checkpoint):
        types = {name: tensor.dtype for name, tensor in opened.tensors.items()}
        return _of_folder(opened.config, opened.tensors, opened.read_rows, types, "hf")
    source, scheme = Dequantized(opened), opened.scheme
    packed = f"{scheme.method.upper()} {scheme.bits}-bit"
    types = {
        name: packed if name.removesuffix(".weight") in opened.linears else opened.tensors[name].dtype
        for name in source.tensors
    }
    shapes = {name: SimpleNamespace(shape=shape) for name, shape in source.tensors.items()}
    return _of_folder(opened.config, shapes, source.rows, types, scheme.method)


def _of_gguf(tensor: ModelTensor, read_rows: Callable[[str, int, int], NDArray[Any]]) -> _Matrix:
    def rows(start: int, stop: int) -> NDArray[np.float32]:
        return widen(read_rows(tensor.name, start, stop), tensor)

    return _Matrix(tensor.name, tensor.shape, 1, tensor.type.name, rows)


def _of_folder(
    config: Mapping[str, Any],
    tensors: Mapping[str, Any],
    read_rows: Callable[[str, int, int], NDArray[Any]],
    types: Mapping[str, str],
    method: str,
) -> _Matrices:
    family = find_family(config)
    mapped = [tensor for tensor in map_tensors(family, family.sizes(config, tensors), tensors) if tensor.parts]
    matrices = {t.name: _of_mapped(t, read_rows, types) for t in mapped if _is_matrix(t.name, t.shape)}
    norms = {t.name: _of_mapped(t, read_rows, types) for t in mapped if _is_norm(t.name, t.shape)}
    return _Matrices(matrices, method, norms)


def _of_mapped(
    tensor: MappedTensor, read_rows: Callable[[str, int, int], NDArray[Any]], types: Mapping[str, str]
) -> _Matrix:
    kind = GGMLQuantizationType.MXFP4 if tensor.is_mxfp4 else GGMLQuantizationType.F32
    stated = ModelTensor(tensor.name, tensor.shape, kind, tensor.row_step, tensor.parts[0].source)

    def rows(start: int, stop: int) -> NDArray[np.float32]:
        return widen(read_mapped(read_rows, tensor, start, stop), stated)

    type_ = "MXFP4" if tensor.is_mxfp4 else types[tensor.parts[0].source]
    return _Matrix(tensor.name, tensor.shape, tensor.row_step, type_, rows)


def _is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    return name.endswith(".weight") and len(shape) > 1 and prod(shape[:-1]) > 1


def _is_norm(name: str, shape: tuple[int, ...]) -> bool:
    return name.endswith("_norm.weight") and prod(shape[:-1]) == 1


def _is_folded(candidates: _Matrices, references: _Matrices) -> bool:
    """Whether scales were folded into a norm of the candidate; rounding to 16 bits changes a norm by under 1 %."""
    for name, norm in candidates.norms.items():
        other = references.norms.get(name)
        if other is not None and other.shape == norm.shape and _error(norm, other) > _FOLDED:
            return True
    return False


def _error(tensor: _Matrix, other: _Matrix) -> float:
    """The relative error; for an all-zero reference the absolute error."""
    n_rows, n_columns = prod(tensor.shape[:-1]), tensor.shape[-1]
    step = max(tensor.step, other.step)
    step *= max(1, _SLICE // (step * n_columns))
    starts = range(0, n_rows, step)
    sampled = starts[:: -(-n_rows * n_columns // _HUGE)]
    squared = total = 0.0
    for start in sampled:
        stop = min(start + step, n_rows)
        expected = other.rows(start, stop).reshape(-1)
        difference = tensor.rows(start, stop).reshape(-1) - expected
        squared += float(np.dot(difference, difference))
        total += float(np.dot(expected, expected))
    return sqrt(squared / (total or 1.0))


def _place(name: str) -> tuple[int | None, str]:
    stem = name.removesuffix(".weight")
    match = _LAYER.match(stem)
    return (int(match[1]), match[2]) if match else (None, stem)
