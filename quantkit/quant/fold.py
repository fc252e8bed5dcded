"""Scales moved from the inputs of linears into what makes those inputs, so that the model computes what it did.

An input x of linears W becomes x / s and W becomes W s, channel by channel (AWQ, arXiv 2306.00978, section 3.2); x / s
is made by the norm before it, or by the linear whose rows become its channels. All functions change float32 arrays (of
numpy, or tensors of torch on one device) in place; `tensors` are a layer's by name, as the checkpoint stores them and
contiguous; a `scale` has a positive value for each channel of the input, (width,).
"""

from collections.abc import Mapping

import numpy as np

from quantkit.forward.arrays import Array, empty
from quantkit.forward.linears import Input, LayerLinears, Linear, NormFold, RowFold


def apply_fold(tensors: Mapping[str, Array], layer: LayerLinears, fold: NormFold | RowFold, scale: Array) -> None:
    """All of one fold: what makes its inputs over `scale`, and the columns of every linear that sees them times it.

    Where not all of the layer is in memory: `fold_source` once, and `fold_input` for each of the fold's inputs.
    """
    fold_source(tensors, fold, scale)
    for key in fold.inputs if isinstance(fold, NormFold) else (fold.input,):
        fold_input(tensors, layer.find(key), scale)


def fold_source(tensors: Mapping[str, Array], fold: NormFold | RowFold, scale: Array) -> None:
    """What makes the fold's inputs, over `scale`: the norm, or the rows of the linear before."""
    if isinstance(fold, NormFold):
        fold_norm(tensors[fold.norm + ".weight"], tensors.get(fold.norm + ".bias"), fold, scale)
    else:
        fold_rows(matrix(tensors, fold.linear), bias(tensors, fold.linear), fold, scale)


def fold_input(tensors: Mapping[str, Array], input: Input, scale: Array) -> None:
    """Every linear of `input`, those never quantized too, takes its channels times `scale`."""
    for linear in input.linears:
        scale_columns(matrix(tensors, linear), scale)


def fold_norm(weight: Array, bias: Array | None, fold: NormFold, scale: Array) -> None:
    """A norm's weight and bias (width,) over `scale`."""
    weight[:] = (weight + fold.offset) / scale - fold.offset
    if bias is not None:
        bias /= scale


def fold_rows(weight: Array, bias: Array | None, fold: RowFold, scale: Array) -> None:
    """The rows of weight (n_out, n_in) and bias (n_out,) that become the fold's input, over `scale`.

    Channels made by one row must have one scale: see `pooled`.
    """
    over = empty((len(weight),), weight)
    over[:] = 1.0
    over[list(fold.rows)] = scale
    weight /= over[:, None]
    if bias is not None:
        bias /= over


def scale_columns(weight: Array, scale: Array) -> None:
    """weight (n_out, n_in) for an input that came over `scale`."""
    weight *= scale


def pooled(fold: NormFold | RowFold, values: Array) -> Array:
    """Values of channels, numpy (width,), averaged over those that must share a scale: all that one row makes."""
    if isinstance(fold, NormFold):
        return values
    rows = np.array(fold.rows)
    mean = np.bincount(rows, values) / np.maximum(np.bincount(rows), 1)
    return np.asarray(mean[rows], np.float32)


def matrix(tensors: Mapping[str, Array], linear: Linear) -> Array:
    """The linear's weight as a view (n_out, n_in) of its tensor: turned and stacked ones too."""
    shape = (linear.n_in, linear.n_out) if linear.form.turned else (linear.n_out, linear.n_in)
    stored: Array = tensors[linear.name + linear.form.weight].reshape(-1, *shape)[linear.index or 0]
    return stored.T if linear.form.turned else stored


def bias(tensors: Mapping[str, Array], linear: Linear) -> Array | None:
    """The linear's bias as a view (n_out,) of its tensor, None where there is none."""
    stored = tensors.get(linear.name + linear.form.bias)
    return None if stored is None else stored.reshape(-1, linear.n_out)[linear.index or 0]
