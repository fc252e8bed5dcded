"""What an error of a group of matrices costs the model: the KL divergence of its logits when the group is rounded.

A few short windows run through the model layer by layer, once unchanged and once for each group. A group is the
matrices of one kind in a range of layers: all `q_proj` of the first third. The embedding is a group, and so is the
head. The rounding is coarse and simple: blocks of 32 inputs with one scale.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import CalibrationError
from quantkit.families.base.native import Source
from quantkit.forward.forward import Decoder
from quantkit.forward.layer import Context
from quantkit.forward.layer_linears import layer_linears
from quantkit.forward.weights import Array, f32
from quantkit.stream.layer import LayerWeights, names_outside_experts
from quantkit.stream.states import States
from quantkit.workers import Workers

EMBEDDING, HEAD = "embedding", "head"
_BLOCK = 32
# Positions whose logits are compared, and elements of the logits of one variant that are in memory at once.
_POSITIONS, LOGITS_AT_ONCE = 256, 1 << 23


@dataclass(frozen=True)
class Group:
    """Matrices that are rounded together. `tensors`: tensor name -> whether it is stored (n_in, n_out)."""

    name: str
    tensors: Mapping[str, bool]


@dataclass(frozen=True)
class CoarseRounding:
    """What is rounded, one group at a time, and how coarsely: see `coarsely_rounded`."""

    groups: Mapping[str, Group]
    levels: int


@dataclass(frozen=True)
class Sensitivity:
    """`divergence`: mean KL divergence in nats by the name of the group.

    `head_squares`: the sum of squares of the head's input, float64 (hidden,), over `head_tokens` tokens.
    """

    divergence: Mapping[str, float]
    head_squares: NDArray[np.float64]
    head_tokens: int


def groups_of(native: Source, ranges: int) -> tuple[dict[str, Group], dict[str, str]]:
    """The groups by name, with `ranges` ranges of layers; and tensor name -> the name of its group.

    The embedding and the head are separate groups, even if they are one tensor.
    """
    decoder, groups = native.decoder, dict[str, dict[str, bool]]()
    of_tensor: dict[str, str] = {}
    for number in range(decoder.n_layers):
        linears = layer_linears(native.architecture, native.config, number, native.tensors)
        at = decoder.at(number)
        for linear in (linear for entry in linears.inputs for linear in entry.linears if not linear.kept):
            tensor = linear.weight
            if tensor not in native.tensors:
                continue
            kind = ".".join("*" if part.isdigit() else part for part in tensor.removeprefix(at).split("."))
            group = f"{kind} {number * ranges // decoder.n_layers}"
            groups.setdefault(group, {})[tensor] = linear.form.turned
            of_tensor[tensor] = group
    groups[EMBEDDING] = {decoder.embedding + ".weight": False}
    groups[HEAD] = {decoder.head + ".weight": False}
    return {name: Group(name, tensors) for name, tensors in groups.items()}, of_tensor


def coarsely_rounded(rows: Array, levels: int) -> Array:
    """Rows (n, n_in) rounded to `levels` levels of each sign, with one scale for 32 inputs of a row."""
    n_in = rows.shape[1]
    blocks = rows.reshape(len(rows), -1, _BLOCK if n_in % _BLOCK == 0 else n_in)
    scale = np.abs(blocks).max(axis=2, keepdims=True) / np.float32(levels)
    scale[scale == 0] = 1
    return np.asarray((np.rint(blocks / scale) * scale).reshape(rows.shape), np.float32)


def sensitivity(
    native: Source,
    tokens: NDArray[np.int32],
    rounding: CoarseRounding,
    folder: Path,
    *,
    workers: Workers,
    step: Callable[[int], object] = lambda number: None,
) -> Sensitivity:
    """Round one group at a time and compare the logits with those of the unchanged model.

    tokens: int32 (n_windows, n_tokens). folder: hidden states are kept in files here.
    step: receives the number of each finished layer. The result does not depend on the number of threads.

    Raises:
        CalibrationError: a logit is not finite.
        ReadError, OutputError: a tensor or the states cannot be read or written.
    """
    probe = _Probe(native, tokens, rounding, folder, workers)
    try:
        for number in range(native.decoder.n_layers):
            probe.layer(number)
            step(number)
        return probe.compare()
    finally:
        probe.states.close()


class _Probe:
    """The unchanged model (variant "") and one variant for each group; a variant starts at its first rounded layer."""

    def __init__(
        self, native: Source, tokens: NDArray[np.int32], rounding: CoarseRounding, folder: Path, workers: Workers
    ) -> None:
        self.native, self.tokens, self.levels, self.workers = native, tokens, rounding.levels, workers
        self.decoder, self.groups = native.decoder, rounding.groups
        groups = rounding.groups
        self.order = ["", *groups]
        self.states = States(folder, len(self.order) * len(tokens), tokens.shape[1], self.decoder.width)
        layers = {name: self._first_layer(group) for name, group in groups.items()}
        self.first = {"": 0, **layers, EMBEDDING: 0}
        self.contexts: dict[tuple[str, int], Context] = {}
        self._embed()

    def _first_layer(self, group: Group) -> int:
        numbers = [self.decoder.layer_of(name) for name in group.tensors]
        return min((number for number in numbers if number is not None), default=self.decoder.n_layers)

    def _embed(self) -> None:
        variants = [("", self.decoder)]
        if EMBEDDING in self.groups:
            variants.append((EMBEDDING, self._decoder(EMBEDDING)))
        for name, decoder in variants:
            for window, tokens in enumerate(self.tokens):
                self._write(0, name, window, decoder.embed(tokens.tolist()))
                self.contexts[name, window] = self.decoder.context(tokens.tolist())

    def layer(self, number: int) -> None:
        """Run every variant that has started through a layer."""
        native, decoder = self.native, self.decoder
        linears = layer_linears(native.architecture, native.config, number, native.tensors)
        tensors = {name: f32(native.whole(name)) for name in names_outside_experts(native, linears)}
        running = [name for name in self.order if self.first[name] <= number]
        for name in running:
            if name and name != EMBEDDING and self.first[name] == number:
                for window in range(len(self.tokens)):
                    self._write(number, name, window, self._read(number, "", window))
                    self.contexts[name, window] = self._copy_context(window)

        def one(job: tuple[str, int]) -> None:
            name, window = job
            x = decoder.layer(number, weights[name])(self._read(number, name, window), self.contexts[job])
            self._write(number + 1, name, window, x)

        # the matrices of one layer are rounded at most once, so all variants together take one more layer of memory
        weights = {name: self._weights(name, tensors) for name in running}
        self.workers.map(one, [(name, window) for name in running for window in range(len(self.tokens))])

    def compare(self) -> Sensitivity:
        """The mean divergence of every variant at positions spread over the windows."""
        n_layers, vocabulary = self.decoder.n_layers, int(self.native.config["vocab_size"])
        positions = np.unique(np.linspace(0, self.tokens.size - 1, _POSITIONS).astype(np.int64))
        tap = replace(self._weights("", {}), keys={(self.decoder.head, 0): HEAD})
        head = Decoder(tap, self.native.config, self.native.architecture)
        rounded_head = self._decoder(HEAD)
        sums, squares = dict.fromkeys(self.groups, 0.0), np.zeros(self.decoder.width)
        for batch in np.array_split(positions, -(-len(positions) * vocabulary // LOGITS_AT_ONCE)):
            tap.inputs.clear()
            clean = _log_probabilities(head.logits(self._final(n_layers, "", batch)))
            squares += np.einsum("ij,ij->j", tap.inputs[HEAD], tap.inputs[HEAD])

            def divergence(name: str, clean: Array = clean, batch: NDArray[np.int64] = batch) -> float:
                # the head's variant has the states of the unchanged model
                states = self._final(n_layers, name if self.first[name] < n_layers else "", batch)
                other = _log_probabilities((rounded_head if name == HEAD else self.decoder).logits(states))
                return sum(float(np.exp(p) @ (p - q)) for p, q in zip(clean, other, strict=True))

            for name, part in zip(self.groups, self.workers.map(divergence, list(self.groups)), strict=True):
                sums[name] += part
        if not all(map(np.isfinite, sums.values())):
            raise CalibrationError(
                "the model gives logits that are not finite for the calibration text; check the checkpoint for damage"
            )
        means = {name: max(0.0, total / len(positions)) for name, total in sums.items()}
        return Sensitivity(means, squares, len(positions))

    def _final(self, n_layers: int, name: str, positions: NDArray[np.int64]) -> Array:
        """The hidden states after the last layer at `positions`, counted over all windows."""
        windows = [self._read(n_layers, name, window) for window in range(len(self.tokens))]
        return np.asarray(np.concatenate(windows)[positions], np.float32)

    def _decoder(self, name: str) -> Decoder:
        return Decoder(self._weights(name, {}), self.native.config, self.native.architecture)

    def _weights(self, name: str, tensors: Mapping[str, Array]) -> LayerWeights:
        """The weights of a variant: tensors in memory, and others as they are read, are rounded if they are its own."""
        native, levels = self.native, self.levels
        rounded_tensors: Mapping[str, bool] = self.groups[name].tensors if name else {}

        def rows(tensor: str, start: int, stop: int) -> NDArray[Any]:
            values = native.rows(tensor, start, stop)
            return (
                _rounded(f32(values), levels, turned=rounded_tensors[tensor]) if tensor in rounded_tensors else values
            )

        changed = {
            tensor: _rounded(values, levels, turned=rounded_tensors[tensor]) if tensor in rounded_tensors else values
            for tensor, values in tensors.items()
        }
        return LayerWeights(native.whole, rows, native.tensors.keys(), tensors=changed)

    def _copy_context(self, window: int) -> Context:
        context = self.contexts["", window]
        return replace(context, shared=dict(context.shared))

    def _at(self, name: str, window: int) -> int:
        return self.order.index(name) * len(self.tokens) + window

    def _read(self, number: int, name: str, window: int) -> Array:
        return self.states.read(f"probe-{number % 2}", self._at(name, window))

    def _write(self, number: int, name: str, window: int, x: Array) -> None:
        self.states.write(f"probe-{number % 2}", self._at(name, window), x)


def _rounded(values: Array, levels: int, *, turned: bool) -> Array:
    """A tensor of matrices, or rows of one, rounded along the inputs: the last axis, or the one before if `turned`."""
    if not turned:
        return coarsely_rounded(values.reshape(-1, values.shape[-1]), levels).reshape(values.shape)
    inputs = np.ascontiguousarray(np.swapaxes(values, -1, -2))
    return np.ascontiguousarray(np.swapaxes(_rounded(inputs, levels, turned=False), -1, -2))


def _log_probabilities(logits: Array) -> Array:
    """Log-softmax of each row, in place."""
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits
