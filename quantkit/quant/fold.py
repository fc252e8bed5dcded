"""Folding of AWQ scales into the previous norm or linear, so that the model's output does not change.

For each channel, the input x of linears W becomes x / s, and W becomes W s (AWQ, arXiv 2306.00978, section 3.2). The
previous norm, or the linear whose rows become the channels, is changed to compute x / s. All functions change float32
arrays in place (numpy arrays, or torch tensors on one device). `tensors`: the contiguous tensors of a layer by name, in
the checkpoint's shape. `scale`: a positive value for each channel of the input, (width,).
"""

from collections.abc import Mapping

import numpy as np

from quantkit.forward.arrays import Array, empty
from quantkit.forward.linears import Input, LayerLinears, Linear, NormFold, RowFold


def apply_fold(tensors: Mapping[str, Array], layer: LayerLinears, fold: NormFold | RowFold, scale: Array) -> None:
    """Apply one fold: divide the source of its inputs by `scale`, and multiply the columns of their linears by it.

    If only part of the layer is in memory, call `fold_source` once and `fold_input` for each input of the fold.
    """
    fold_source(tensors, fold, scale)
    for key in fold.inputs if isinstance(fold, NormFold) else (fold.input,):
        fold_input(tensors, layer.find(key), scale)


def fold_source(tensors: Mapping[str, Array], fold: NormFold | RowFold, scale: Array) -> None:
    """Divide the source of the fold's inputs by `scale`: the norm, or the rows of the previous linear."""
    if isinstance(fold, NormFold):
        fold_norm(tensors[fold.norm + ".weight"], tensors.get(fold.norm + ".bias"), fold, scale)
    else:
        fold_rows(matrix(tensors, fold.linear), bias(tensors, fold.linear), fold, scale)


def fold_input(tensors: Mapping[str, Array], input: Input, scale: Array) -> None:
    """Multiply the columns of all linears of `input` by `scale`, including linears that are never quantized."""
    for linear in input.linears:
        scale_columns(matrix(tensors, linear), scale)


def fold_norm(weight: Array, bias: Array | None, fold: NormFold, scale: Array) -> None:
    """Divide the weight and bias (width,) of a norm by `scale`."""
    weight[:] = (weight + fold.offset) / scale - fold.offset
    if bias is not None:
        bias /= scale


def fold_rows(weight: Array, bias: Array | None, fold: RowFold, scale: Array) -> None:
    """Divide the rows of weight (n_out, n_in) and bias (n_out,) that become the fold's input by `scale`.

    All channels of one row must have the same scale: see `pooled`.
    """
    divisor = empty((len(weight),), weight)
    divisor[:] = 1.0
    divisor[list(fold.rows)] = scale
    weight /= divisor[:, None]
    if bias is not None:
        bias /= divisor


def scale_columns(weight: Array, scale: Array) -> None:
    """Multiply the columns of weight (n_out, n_in) by `scale`, for an input divided by it."""
    weight *= scale


def pooled(fold: NormFold | RowFold, values: Array) -> Array:
    """Channel values, numpy (width,), averaged over the channels of one row, which must share a scale."""
    if isinstance(fold, NormFold):
        return values
    rows = np.array(fold.rows)
    mean = np.bincount(rows, values) / np.maximum(np.bincount(rows), 1)
    return np.asarray(mean[rows], np.float32)


def matrix(tensors: Mapping[str, Array], linear: Linear) -> Array:
    """The linear's weight as a view (n_out, n_in) of its tensor, also if the tensor is transposed or stacked.

    A matrix of a stack may be there alone, see `Linear.alone`.
    """
    if linear.weight not in tensors:
        return tensors[linear.alone]
    shape = (linear.n_in, linear.n_out) if linear.form.turned else (linear.n_out, linear.n_in)
    stored: Array = tensors[linear.weight].reshape(-1, *shape)[linear.index or 0]
    return stored.T if linear.form.turned else stored


def is_loaded(tensors: Mapping[str, Array], linear: Linear) -> bool:
    """Whether `matrix` finds the linear's weight."""
    return linear.weight in tensors or linear.alone in tensors


def bias(tensors: Mapping[str, Array], linear: Linear) -> Array | None:
    """The linear's bias as a view (n_out,) of its tensor; None without a bias."""
    stored = tensors.get(linear.name + linear.form.bias)
    return None if stored is None else stored.reshape(-1, linear.n_out)[linear.index or 0]
