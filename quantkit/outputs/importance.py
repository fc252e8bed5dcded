"""An importance matrix in a GGUF: the weights of each tensor's columns, the types that need one, the keys about it."""

from collections.abc import Mapping, Sequence

import numpy as np
from gguf import GGUFValueType
from numpy.typing import NDArray

from quantkit.errors import ImatrixError
from quantkit.gguf.file_types import FileType
from quantkit.gguf.keyvalues import KeyValue
from quantkit.gguf.mix import Choice
from quantkit.imatrix.file import Imatrix
from quantkit.outputs.model import Model

_GROUPED = ".attn_output_a.weight"
"""DeepSeek-V4's linears of the groups of heads, joined in one matrix."""


def column_weights(model: Model, imatrix: Imatrix, imatrix_name: str | None) -> dict[str, NDArray[np.float32]]:
    """Importance of each tensor's columns, float32 (experts, n_columns), for the tensors that the imatrix covers.

    Raises:
        ImatrixError: the matrix covers no tensor of the model, or has another number of values for one.
    """
    weights: dict[str, NDArray[np.float32]] = {}
    for tensor in model.tensors:
        values = imatrix.values.get(tensor.name)
        if values is None:
            continue
        experts = tensor.n_rows // tensor.matrix_rows
        if tensor.name.endswith(_GROUPED) and values.size > tensor.n_columns and values.size % tensor.n_columns == 0:
            # a group of rows has an input of its own; ggml's kernels take one importance for all rows
            values = values.reshape(-1, tensor.n_columns).mean(axis=0)
        if values.size != experts * tensor.n_columns:
            if tensor.name == "token_embd.weight":
                continue
            raise ImatrixError(
                f"{imatrix_name}: {tensor.name} has {values.size} values but the tensor needs"
                f" {experts * tensor.n_columns}; this importance matrix belongs to another model"
            )
        weights[tensor.name] = np.ascontiguousarray(values, dtype=np.float32).reshape(experts, tensor.n_columns)
    if not weights:
        raise ImatrixError(f"{imatrix_name} covers no tensor of {model.name}; it belongs to another model")
    return weights


def check_importance(choices: Sequence[Choice], type_: FileType, weights: Mapping[str, object]) -> None:
    """Raise ImatrixError for a tensor whose type needs an importance matrix and that `weights` lacks."""
    for choice in choices:
        if choice.requires_imatrix and choice.name not in weights:
            reason = (
                "the given one does not cover it; choose another type with --tensor-type, or a larger type"
                if weights
                else "add --calibrate to compute one, pass --imatrix FILE, or choose a larger type"
            )
            raise ImatrixError(
                f"{type_.name} makes {choice.name} {choice.type.name}, which needs an importance matrix; {reason}"
            )


def imatrix_keys(imatrix: Imatrix | None, name: str | None) -> list[KeyValue]:
    """The keys llama-quantize writes about the importance matrix; of its path only the file's name."""
    if imatrix is None:
        return []
    keys = [KeyValue("quantize.imatrix.file", GGUFValueType.STRING, name or "imatrix")]
    if imatrix.datasets:
        keys.append(KeyValue("quantize.imatrix.dataset", GGUFValueType.STRING, imatrix.datasets[0]))
    keys.append(KeyValue("quantize.imatrix.entries_count", GGUFValueType.UINT32, len(imatrix.values)))
    if imatrix.chunks > 0:
        keys.append(KeyValue("quantize.imatrix.chunks_count", GGUFValueType.UINT32, imatrix.chunks))
    return keys
