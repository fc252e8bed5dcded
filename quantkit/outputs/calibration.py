"""The plan of a calibration: its samples, the importance matrix it gives, the memory and disk it takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import UsageError
from quantkit.families.base.native import Native
from quantkit.forward.devices import find_device, free_memory
from quantkit.forward.linears import Input, LayerLinears
from quantkit.gguf.keyvalues import array, string, uint32
from quantkit.gguf.layout import padded
from quantkit.imatrix.file import Imatrix
from quantkit.imatrix.names import LinearKey, Squares, as_imatrix, collect_imatrix, imatrix_columns, imatrix_sources
from quantkit.machine import resident_memory
from quantkit.outputs.memory import vocabulary_memory
from quantkit.outputs.packed_folders import all_layers
from quantkit.quant.cross import takes_basis
from quantkit.quant.gptq import ROUNDED_ROWS
from quantkit.stream.on_device import held_states
from quantkit.stream.sensitivity import LOGITS_AT_ONCE
from quantkit.stream.shared import bytes_per_token
from quantkit.stream.statistics import WIDE_BLOCK, samples_at_once
from quantkit.texts.samples import SampleRequest, Samples, load_samples
from quantkit.units import human_bytes

GRAM_COPIES = 4
"""Copies of a Gram matrix in memory: the factorisation needs three, beside the samples that are not held out."""
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
class CalibrationRequest:
    """What to calibrate on and where to compute.

    `text`: a file, a dataset of the hub, or None or "default" for the text that comes with quantkit; or several of
    these, which share the samples equally (see `load_samples`). `device`: "auto", "cpu" or "cuda". `propagate`: the
    hidden states follow the quantized layers, not the source's. `asymmetric`: GGUF types are rounded for the inputs of
    rounded layers, see `quant.asymmetric`.
    """

    text: str | Sequence[str] | None = None
    samples: int = 128
    seq_len: int = 512
    chat: bool | None = None
    device: str = "auto"
    propagate: bool = False
    offline: bool = False
    asymmetric: bool = False


@dataclass(frozen=True)
class CalibrationPlan:
    """A calibration that can be run. `gram`: Gram matrices are summed too. `memory` and `disk` (states) in bytes.

    `device_memory`: bytes of a GPU's memory, estimated; 0 on the CPU. `hold_states`: they stay in memory.
    """

    native: Native
    samples: Samples
    layers: tuple[LayerLinears, ...]
    gram: bool
    propagate: bool
    device: Any
    memory: int
    device_memory: int = 0
    hold_states: bool = False

    @property
    def disk(self) -> int:
        """Bytes of the hidden states in the work folder."""
        return self.samples.tokens.size * bytes_per_token(self.native.decoder, self.samples.tokens.shape[1])

    @cached_property
    def imatrix_sources(self) -> dict[str, tuple[LinearKey, ...]]:
        """GGUF tensor -> the linears whose inputs it multiplies (see `imatrix.names`)."""
        return imatrix_sources(self.native)

    @cached_property
    def imatrix_columns(self) -> dict[str, NDArray[np.int64]]:
        """See `quantkit.imatrix.names.imatrix_columns`."""
        return imatrix_columns(self.native)

    def imatrix(self, squares: Squares | None = None) -> Imatrix:
        """The importance matrix of `squares`; without them one of the same shapes, to plan with."""
        sums, counts = collect_imatrix(squares or self._ones(), self.imatrix_sources, self.imatrix_columns)
        chunks, chunk_size = self.samples.tokens.shape
        return as_imatrix(sums, counts, datasets=self.samples.names, chunks=chunks, chunk_size=chunk_size)

    def sensitivity_memory(self, threads: int) -> int:
        """Bytes that the choice of types for a given size takes: a layer twice, and logits of one batch per thread."""
        base = max(_BASE_MEMORY, resident_memory() + _WAITING_MEMORY)
        logits = (1 + 2 * threads) * max(LOGITS_AT_ONCE, int(self.native.config["vocab_size"]))
        return base + 4 * (2 * max(map(_dense_weights, self.layers)) + logits)

    def _ones(self) -> Squares:
        inputs = [entry for layer in self.layers for entry in layer.inputs]
        return {(linear.name, linear.index): (np.ones(entry.width), 1) for entry in inputs for linear in entry.linears}


@dataclass(frozen=True)
class ImatrixOutput:
    """The importance matrix as a file of llama.cpp's GGUF format. `entries`: how many tensors it covers."""

    path: Path
    entries: int
    size: int
    label = "imatrix"

    @property
    def folder(self) -> Path:
        """The folder of the file."""
        return self.path.parent


def plan_calibration(
    native: Native,
    request: CalibrationRequest,
    samples: Samples | None,
    *,
    gram_copies: int,
    threads: int,
    max_ram: int | None,
) -> CalibrationPlan:
    """What a calibration of `native` takes. `samples` replace those of `request.text`.

    `gram_copies`: how many copies of a Gram matrix an algorithm holds at once; 0: only squares are summed.

    Raises:
        UsageError: it needs more memory than `max_ram`.
        CalibrationError, HubError, TokenizerError: see `load_samples`.
    """
    if samples is None:
        wanted = SampleRequest(request.text, request.samples, request.seq_len, request.chat, offline=request.offline)
        samples = load_samples(native.checkpoint, wanted)
    layers = all_layers(native)
    vocabulary = vocabulary_memory(native.checkpoint.folder, int(native.config["vocab_size"]), 1)
    n_samples, seq_len = samples.tokens.shape
    stream = _memory(layers, n_samples, seq_len, threads, gram_copies)
    memory = max(stream, vocabulary.reading, vocabulary.checking)
    if max_ram is not None and memory > max_ram:
        raise UsageError(
            f"--max-ram {human_bytes(max_ram)} is too small; the calibration needs about {human_bytes(memory)} for the"
            " weights and statistics of one layer; use fewer --threads or a smaller --seq-len"
        )
    on_device = device_memory(layers, seq_len, gram=gram_copies > 0, asymmetric=request.asymmetric)
    device = _device_with_room(request.device, on_device)
    if device is None:
        return CalibrationPlan(native, samples, layers, gram_copies > 0, request.propagate, None, memory)
    memory += 4 * max(map(_dense_weights, layers), default=0)  # the next layer, read while this one is computed
    beside = asymmetric_memory(layers) if request.asymmetric else 0
    room = None if max_ram is None else max(0, max_ram - memory - beside)
    held = held_states(n_samples, seq_len, native.decoder.width, room)
    of_layers = native, samples, layers, gram_copies > 0, request.propagate
    return CalibrationPlan(*of_layers, device, memory + held, on_device, held > 0)


def _device_with_room(name: str, needed: int) -> Any:
    """The device for a calibration that needs `needed` bytes of it; "auto" takes the CPU where a GPU has less free.

    Raises UsageError for a "cuda" without them; see `find_device` too.
    """
    device = find_device(name)
    free = free_memory(device)
    if free is None or needed <= free:
        return device
    if name == "auto":
        return None
    raise UsageError(
        f"--device cuda: the calibration needs about {human_bytes(needed)} of the GPU's memory, of which"
        f" {human_bytes(free)} are free; end other programs on it, use a smaller --seq-len, or use --device cpu"
    )


def asymmetric_memory(layers: Sequence[LayerLinears]) -> int:
    """Bytes that asymmetric rounding adds: the rounded weights of a layer, a matrix, sums and a factor of an input."""

    def need(entry: Input) -> int:
        n_rows = sum(linear.n_out for linear in entry.linears)
        # D twice, or Q and Q D twice (`quant.cross`), beside two Gram matrices
        crosses = 3 * n_rows if takes_basis(n_rows, entry.width) else 2 * entry.width
        return max(linear.n_in * linear.n_out for linear in entry.linears) + (crosses + 2 * entry.width) * entry.width

    widest = max(need(entry) for layer in layers for entry in layer.inputs)
    experts = max(
        sum(linear.n_in * linear.n_out for entry in layer.inputs if entry.expert == 0 for linear in entry.linears)
        for layer in layers
    )
    return 4 * (max(map(_dense_weights, layers)) + experts + widest) + _WAITING_MEMORY


def _dense_weights(layer: LayerLinears) -> int:
    """The number of weights of a layer's linears without its routed experts."""
    linears = [linear for entry in layer.inputs if entry.expert is None for linear in entry.linears]
    return sum(linear.n_in * linear.n_out for linear in linears)


def device_memory(layers: Sequence[LayerLinears], seq_len: int, *, gram: bool, asymmetric: bool = False) -> int:
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
        if not gram:
            return weights + tokens
        widest = max((entry.width for entry in inputs), default=0)
        sums = 2 * 4 * sum(entry.width**2 for entry in inputs)
        matrix = 4 * widest**2
        if asymmetric:
            # four more sums; the weights of both streams in float32; the correction, and what it is computed with
            both = 8 * sum(linear.n_in * linear.n_out for linear in loaded)
            quantizing = max(_ASYMMETRIC_COPIES * matrix, 3 * matrix + _ROUNDED_BYTES)
            return sums + 4 * matrix + max(weights + both + 2 * tokens, weights // 2 + quantizing)
        quantizing = max(_DEVICE_COPIES * matrix, 2 * matrix + _ROUNDED_BYTES)
        return sums + max(weights + tokens, weights // 2 + quantizing)

    experts = [layer for layer in layers if any(entry.expert == 0 for entry in layer.inputs)]
    largest = max((need(layer, None) for layer in layers if layer.inputs), default=0)
    return _CONTEXT_MEMORY + largest + (need(experts[0], 0) if experts else 0)


def plan_imatrix(path: Path, imatrix: Imatrix, matrices: Mapping[str, int]) -> ImatrixOutput:
    """The file that `write_imatrix` writes for `imatrix`; its size is exact. `matrices`: how many each tensor has."""
    keys = [string("general.type", "imatrix"), array("imatrix.datasets", string("", "").kind, imatrix.datasets)]
    keys += [uint32("imatrix.chunk_count", imatrix.chunks), uint32("imatrix.chunk_size", imatrix.chunk_size)]
    head, data = 24 + sum(len(key.pack()) for key in keys), 0
    for name, values in imatrix.values.items():
        head += sum(8 + len(name + suffix) + 4 + 2 * 8 + 4 + 8 for suffix in (".in_sum2", ".counts"))
        data += padded(4 * values.size) + padded(4 * matrices[name])
    return ImatrixOutput(path, len(imatrix.values), padded(head) + data)


def _memory(layers: Sequence[LayerLinears], n_samples: int, seq_len: int, threads: int, gram_copies: int) -> int:
    """Bytes for the largest layer: its weights in float32, its statistics, and what is computed with them.

    The peak is reached while inputs are summed, or while an input's linears are quantized: the two never overlap.
    `gram_copies`: see `plan_calibration`.
    """

    def need(layer: LayerLinears, expert: int | None) -> int:
        inputs = [entry for entry in layer.inputs if entry.expert == expert]
        loaded = [linear for entry in inputs for linear in entry.linears if linear.index is None]
        weights = sum(linear.n_in * linear.n_out for linear in loaded)
        # of all samples, and of those that are held out
        sums = 2 * sum(entry.width**2 for entry in inputs) if gram_copies else 0
        summing = _summing(inputs, n_samples, seq_len, threads, gram=gram_copies > 0)
        quantizing = max(_quantizing(entry, threads, gram_copies) for entry in inputs) if gram_copies else 0
        return 4 * (weights + sums + max(summing, quantizing))

    mixed = [layer for layer in layers if any(entry.expert == 0 for entry in layer.inputs)]
    base = resident_memory() + _SMALL_MEMORY + (threads * _THREAD_MEMORY if gram_copies else 0)
    # a layer may have no linears at all
    return base + max(need(layer, None) for layer in layers if layer.inputs) + (need(mixed[0], 0) if mixed else 0)


def _summing(inputs: Sequence[Input], n_samples: int, seq_len: int, threads: int, *, gram: bool) -> int:
    """Values of the inputs that wait for their sums, and of the forward or the sums of one sample per thread."""
    widths = sorted((entry.width for entry in inputs), reverse=True)
    waiting = min(n_samples, samples_at_once(sum(widths), seq_len)) * seq_len
    # of one sample: the widest input, the outputs of its linears, and a copy of both
    heights = (sum(linear.n_out for linear in entry.linears) for entry in inputs)
    forward = threads * seq_len * 2 * (widths[0] + max(heights))
    # an input as one array, and its product; narrow ones side by side, wide ones in tiles
    tiles = threads * WIDE_BLOCK**2
    sums = [waiting * width + (tiles if width > 2 * WIDE_BLOCK else width**2) for width in widths]
    narrow = [size for size, width in zip(sums, widths, strict=True) if width <= 2 * WIDE_BLOCK][:threads]
    return waiting * sum(widths) + max(forward, max(sums[0], sum(narrow)) if gram else 0)


def _quantizing(entry: Input, threads: int, gram_copies: int) -> int:
    """Values of the copies of an input's Gram matrix, or of its factor, its matrices, and rows that are rounded."""
    width, height = entry.width, sum(linear.n_out for linear in entry.linears)
    rows = min(height, threads * ROUNDED_ROWS)
    # the rows by which AWQ's scale is searched
    searched = threads * 6 * width * min(height, 512, max(128, (1 << 21) // width))
    wide = (threads - 1) * _WIDE_THREAD if width > 2 * WIDE_BLOCK else 0
    # seven eighths of one more: what the factorisation holds beside the copies, measured at widths of 4864 and 8960
    gram = gram_copies * width**2 + 7 * width**2 // 8
    return max(gram, 2 * width**2 + 6 * rows * width) + 2 * height * width + searched + wide
