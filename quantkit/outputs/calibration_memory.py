"""The memory that a calibration takes: its statistics, and what is rounded while they are there."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from quantkit.forward.linears import Input, LayerLinears
from quantkit.machine import resident_memory
from quantkit.quant.cross import takes_basis
from quantkit.quant.gptq import ROUNDED_ROWS
from quantkit.stream.sensitivity import LOGITS_AT_ONCE
from quantkit.stream.statistics import WIDE_BLOCK, samples_at_once

GRAM_COPIES = 4
"""Copies of a Gram matrix in memory: the factorisation needs three, beside the samples that are not held out."""
# Beside the two sums: three matrices while limits are chosen or a factor is made, and a mask of a byte a value.
_ROUNDING_COPIES = 3 + 1 / 4
# Where the channels of a GGUF file have another order: both sums in it.
_REORDERED_COPIES = 2
# Where channels are scaled: the factor, the factor of the scaled input, each two matrices, and what errors are measured
# by, with the product of two scales that it is divided by.
_SCALING_COPIES = 6
# Where channels are scaled, and rounded layers are followed: while they are rounded, measured.
_FOLLOWING_SCALED_COPIES = GRAM_COPIES + 7 / 8
# Where only rounded layers' inputs are summed.
_FOLLOWING_COPIES = 3 + 3 / 8
# For AWQ, which divides the inputs of rounded layers by its scale, measured.
_SCALED_COPIES = 3
# Memory beside the arrays that are counted one by one; of each thread, that of BLAS and what its heap has freed.
_SMALL_MEMORY = 32 << 20
_THREAD_MEMORY = 24 << 20
# Values that a further thread holds while a wide Gram matrix is factored in tiles, measured.
_WIDE_THREAD = 32 << 20
# On a GPU: the context of CUDA with its libraries; rows that are rounded at once, six arrays of 2^26 values or ten of
# 2^25; copies of a Gram matrix while the damping is chosen, beside the two sums.
_CONTEXT_MEMORY = 700 << 20
_ROUNDED_BYTES = 6 * 4 << 26
_DEVICE_COPIES, _ASYMMETRIC_COPIES = 4, 6
# For the choice of types: python, numpy, inputs that wait for their sums.
_BASE_MEMORY = 330 << 20
_WAITING_MEMORY = 192 << 20


@dataclass(frozen=True)
class Grams:
    """Whose inputs a calibration sums Gram matrices of, to round by them: those of the source's layers, and those of
    the rounded layers of GGUF files or of folders (see `quant.asymmetric`). `scaled`: the source's are divided by the
    scales of AWQ or SmoothQuant. `reordered`: those by which GGUF files are rounded get another order of channels.
    """

    source: bool = False
    files: bool = False
    folders: bool = False
    scaled: bool = False
    reordered: bool = False

    @property
    def follow(self) -> bool:
        """Whether rounded layers are followed."""
        return self.files or self.folders


@dataclass(frozen=True)
class CalibrationMemory:
    """Bytes of memory of a calibration on the CPU, by `n_samples` samples of `seq_len` tokens."""

    layers: Sequence[LayerLinears]
    n_samples: int
    seq_len: int
    threads: int
    grams: Grams

    @property
    def source(self) -> int:
        """Bytes for the largest layer: its weights in float32, its statistics, and what is computed with them.

        The peak is reached while inputs are summed, or while an input's linears are quantized: the two never overlap.
        """

        copies: float = _ROUNDING_COPIES
        if self.grams.reordered and not self.grams.files:
            copies += _REORDERED_COPIES
        if self.grams.scaled:
            copies = max(copies, _SCALING_COPIES)

        def need(inputs: Sequence[Input]) -> int:
            rounding = max(self._quantizing(entry, copies) for entry in inputs) if self.grams.source else 0
            return self._kept(inputs) + max(self._summing(inputs), rounding)

        return self._base(rounds=self.grams.source) + 4 * sum(max(map(need, parts), default=0) for parts in self._parts)

    @property
    def following(self) -> int:
        """The same where matrices are rounded for the inputs of rounded layers, one input after the other."""

        def need(inputs: Sequence[Input]) -> int:
            # the weights of the source and of the file, also of experts that are stacked in one tensor
            return self._kept(inputs) - _loaded(inputs) + 2 * _weights(inputs)

        def rounding(entry: Input) -> int:
            # x, x~ and the states' error, which wait for their sums
            waiting = self._waiting(2 * entry.width + _residual(entry)) + self._forward([entry])
            scaled = _SCALED_COPIES * entry.width**2 if self.grams.source else 0
            sums = _following(entry, holds_out=self.grams.files)
            quantizing = self._quantizing(entry, self._following_copies(entry)) + scaled
            if self.grams.files and self.grams.reordered:
                quantizing += _sums(entry, holds_out=True)
            return sums + max(waiting, quantizing)

        widest = max((rounding(entry) for parts in self._parts for inputs in parts for entry in inputs), default=0)
        needed = sum(max(map(need, parts), default=0) for parts in self._parts)
        return self._base(rounds=True) + 4 * (needed + _experts(self.layers) + widest)

    def _quantizing(self, entry: Input, n_copies: float) -> int:
        """Values of `n_copies` of an input's Gram matrix, or of its factor, its matrices, and rows that are rounded."""
        width, height = entry.width, sum(linear.n_out for linear in entry.linears)
        rows = min(height, self.threads * ROUNDED_ROWS)
        # the rows by which AWQ's scale is searched
        searched = self.threads * 6 * width * min(height, 512, max(128, (1 << 21) // width))
        searched = searched if self.grams.scaled else 0
        wide = (self.threads - 1) * _WIDE_THREAD if width > 2 * WIDE_BLOCK else 0
        copies = max(int(n_copies * width**2), 2 * width**2 + 6 * rows * width)
        return copies + 2 * height * width + searched + wide

    def _following_copies(self, entry: Input) -> float:
        """Copies of the Gram matrix of an input of rounded layers at once."""
        if self.grams.source:
            return _FOLLOWING_SCALED_COPIES
        # the part of a correction is chosen for files; a correction of many rows is a matrix of its own
        n_rows = sum(linear.n_out for linear in entry.linears)
        return _FOLLOWING_COPIES + (self.grams.files or n_rows >= entry.width)

    @property
    def _parts(self) -> tuple[list[list[Input]], list[list[Input]]]:
        """The inputs of each layer outside its routed experts, and those of an expert; without empty ones."""
        dense, routed = (
            [[entry for entry in layer.inputs if entry.expert == expert] for layer in self.layers]
            for expert in (None, 0)
        )
        return [inputs for inputs in dense if inputs], [inputs for inputs in routed if inputs][:1]

    def _base(self, *, rounds: bool) -> int:
        return resident_memory() + _SMALL_MEMORY + (self.threads * _THREAD_MEMORY if rounds else 0)

    def _kept(self, inputs: Sequence[Input]) -> int:
        """Values of the weights of a part of a layer, and of the sums of its inputs in the source."""
        # of all samples, and of those that are held out
        return _loaded(inputs) + (2 * sum(entry.width**2 for entry in inputs) if self.grams.source else 0)

    def _waiting(self, width: int) -> int:
        """Values of inputs of `width` values a token that wait for their sums."""
        return min(self.n_samples, samples_at_once(width, self.seq_len)) * self.seq_len * width

    def _forward(self, inputs: Sequence[Input]) -> int:
        """Values of one sample per thread: the widest input, the outputs of its linears, and a copy of both."""
        heights = (sum(linear.n_out for linear in entry.linears) for entry in inputs)
        return self.threads * self.seq_len * 2 * (max(entry.width for entry in inputs) + max(heights))

    def _summing(self, inputs: Sequence[Input]) -> int:
        """Values of the inputs that wait for their sums, and of the forward or the sums of one sample per thread."""
        widths = sorted((entry.width for entry in inputs), reverse=True)
        total = self._waiting(sum(widths))
        # an input as one array, and its product; narrow ones side by side, wide ones in tiles
        tiles, tokens = self.threads * WIDE_BLOCK**2, total // sum(widths)
        sums = [tokens * width + (tiles if width > 2 * WIDE_BLOCK else width**2) for width in widths]
        narrow = [size for size, width in zip(sums, widths, strict=True) if width <= 2 * WIDE_BLOCK][: self.threads]
        return total + max(self._forward(inputs), max(sums[0], sum(narrow)) if self.grams.source else 0)


def _following(entry: Input, *, holds_out: bool) -> int:
    """Values of the sums of an input of rounded layers, beside the source's, and of a rounded matrix."""
    return max(linear.n_in * linear.n_out for linear in entry.linears) + _sums(entry, holds_out=holds_out)


def _sums(entry: Input, *, holds_out: bool) -> int:
    """Values of the sums of an input of rounded layers. holds_out: those of D and S of held-out samples too."""
    n_rows = sum(linear.n_out for linear in entry.linears)
    # D, or Q and Q D (`quant.cross`), beside two Gram matrices
    crosses = (2 + holds_out) * n_rows if takes_basis(n_rows, entry.width) else (1 + holds_out) * entry.width
    # folders have no S
    crosses += 2 * _residual(entry) if holds_out else 0
    return (crosses + 2 * entry.width) * entry.width


def _residual(entry: Input) -> int:
    """Width of the hidden states whose error is summed with an input, see `quant.cross`."""
    return entry.linears[0].n_out if entry.key.endswith(".down") else 0


def following_beside(layers: Sequence[LayerLinears]) -> int:
    """Bytes of the computer's memory that rounded layers take beside `CalibrationMemory.source`, with a GPU."""
    widest = max(_following(entry, holds_out=True) for layer in layers for entry in layer.inputs)
    return 4 * (max(map(dense_weights, layers)) + _experts(layers) + widest) + _WAITING_MEMORY


def _experts(layers: Sequence[LayerLinears]) -> int:
    """The number of weights of a routed expert."""
    return max(_weights(entry for entry in layer.inputs if entry.expert == 0) for layer in layers)


def dense_weights(layer: LayerLinears) -> int:
    """The number of weights of a layer's linears without its routed experts."""
    return _weights(entry for entry in layer.inputs if entry.expert is None)


def _weights(inputs: Iterable[Input]) -> int:
    return sum(linear.n_in * linear.n_out for entry in inputs for linear in entry.linears)


def _loaded(inputs: Iterable[Input]) -> int:
    """The number of weights that are loaded with their part of a layer: not of experts that are read one by one."""
    linears = (linear for entry in inputs for linear in entry.linears)
    return sum(linear.n_in * linear.n_out for linear in linears if linear.index is None)


def sensitivity_memory(layers: Sequence[LayerLinears], n_vocab: int, threads: int) -> int:
    """Bytes that the choice of types for a given size takes: a layer twice, and logits of one batch per thread."""
    base = max(_BASE_MEMORY, resident_memory() + _WAITING_MEMORY)
    logits = (1 + 2 * threads) * max(LOGITS_AT_ONCE, n_vocab)
    return base + 4 * (2 * max(map(dense_weights, layers)) + logits)


def device_memory(layers: Sequence[LayerLinears], seq_len: int, grams: Grams) -> int:
    """Bytes of a GPU's memory that the largest layer takes: its context, weights, sums, and the widest input's copies.

    Estimated by counting arrays, not measured on a GPU.
    """

    def need(layer: LayerLinears, expert: int | None) -> int:
        inputs = [entry for entry in layer.inputs if entry.expert == expert]
        loaded = [linear for entry in inputs for linear in entry.linears if linear.index is None]
        # bfloat16, and while the largest matrix is converted its float32
        weights = sum(2 * linear.n_in * linear.n_out for linear in loaded)
        weights += max((4 * linear.n_in * linear.n_out for linear in loaded), default=0)
        tokens = 4 * seq_len * sum(entry.width + sum(linear.n_out for linear in entry.linears) for entry in inputs)
        if grams == Grams():
            return weights + tokens
        widest = max((entry.width for entry in inputs), default=0)
        sums = 2 * 4 * sum(entry.width**2 for entry in inputs)
        matrix = 4 * widest**2
        if grams.follow:
            # S and four more sums, and these in another order; the weights of both streams in float32; the correction,
            # and what it is computed with
            both = 8 * _weights(inputs)
            quantizing = max(_ASYMMETRIC_COPIES * matrix, 3 * matrix + _ROUNDED_BYTES)
            more = 4 * matrix
            if grams.files:
                more += 8 * max((_residual(entry) * entry.width for entry in inputs), default=0)
                quantizing += more if grams.reordered else 0
            return sums + more + max(weights + both + 2 * tokens, weights // 2 + quantizing)
        quantizing = max(_DEVICE_COPIES * matrix, 2 * matrix + _ROUNDED_BYTES)
        return sums + max(weights + tokens, weights // 2 + quantizing)

    experts = [layer for layer in layers if any(entry.expert == 0 for entry in layer.inputs)]
    largest = max((need(layer, None) for layer in layers if layer.inputs), default=0)
    return _CONTEXT_MEMORY + largest + (need(experts[0], 0) if experts else 0)
