"""The plan of a calibration: its samples, the importance matrix it gives, the memory and disk it takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import UsageError
from quantkit.families.base.native import Native
from quantkit.forward.devices import find_device, free_memory
from quantkit.forward.linears import LayerLinears
from quantkit.gguf.keyvalues import array, string, uint32
from quantkit.gguf.layout import padded
from quantkit.imatrix.file import Imatrix
from quantkit.imatrix.names import LinearKey, Squares, as_imatrix, collect_imatrix, imatrix_columns, imatrix_sources
from quantkit.outputs.calibration_memory import (
    CalibrationMemory,
    Grams,
    dense_weights,
    device_memory,
    following_beside,
    sensitivity_memory,
)
from quantkit.outputs.memory import vocabulary_memory
from quantkit.outputs.packed_folders import all_layers
from quantkit.stream.on_device import held_states
from quantkit.stream.shared import bytes_per_token
from quantkit.texts.samples import SampleRequest, Samples, load_samples
from quantkit.units import human_bytes


@dataclass(frozen=True)
class CalibrationRequest:
    """What to calibrate on and where to compute.

    `text`: a file, a dataset of the hub, or None or "default" for the text that comes with quantkit; or several of
    these, which share the samples equally (see `load_samples`). `device`: "auto", "cpu" or "cuda". `propagate`: the
    hidden states follow the quantized layers, not the source's.
    """

    text: str | Sequence[str] | None = None
    samples: int = 128
    seq_len: int = 512
    chat: bool | None = None
    device: str = "auto"
    propagate: bool = False
    offline: bool = False


@dataclass(frozen=True)
class CalibrationPlan:
    """A calibration that can be run. `memory` and `disk` (states) in bytes.

    `gram`: Gram matrices of the source's inputs are summed too. `following_memory`: bytes where matrices are rounded
    for the inputs of rounded layers, instead of `memory`. `device_memory`: bytes of a GPU's memory, estimated; 0 on the
    CPU. `hold_states`: they stay in memory.
    """

    native: Native
    samples: Samples
    layers: tuple[LayerLinears, ...]
    gram: bool
    propagate: bool
    device: Any
    memory: int
    following_memory: int
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
        """Bytes that the choice of types for a given size takes."""
        return sensitivity_memory(self.layers, int(self.native.config["vocab_size"]), threads)

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
    grams: Grams,
    threads: int,
    max_ram: int | None,
) -> CalibrationPlan:
    """What a calibration of `native` takes. `samples` replace those of `request.text`.

    `grams`: the Gram matrices that are summed beside the source's squares.

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
    needed = CalibrationMemory(layers, n_samples, seq_len, threads, grams)
    memory = max(needed.source, vocabulary.reading, vocabulary.checking)
    if max_ram is not None and memory > max_ram:
        raise UsageError(
            f"--max-ram {human_bytes(max_ram)} is too small; the calibration needs about {human_bytes(memory)} for the"
            " weights and statistics of one layer; use fewer --threads or a smaller --seq-len"
        )
    on_device = device_memory(layers, seq_len, grams)
    device = _device_with_room(request.device, on_device)
    of_layers = native, samples, layers, grams.source, request.propagate, device
    if device is None:
        return CalibrationPlan(*of_layers, memory, max(memory, needed.following) if grams.follow else memory)
    memory = max(memory, replace(needed, grams=Grams(source=grams != Grams(), scaled=grams.scaled)).source)
    memory += 4 * max(map(dense_weights, layers), default=0)  # the next layer, read while this one is computed
    beside = following_beside(layers) if grams.follow else 0
    room = None if max_ram is None else max(0, max_ram - memory - beside)
    held = held_states(n_samples, seq_len, native.decoder.width, room)
    return CalibrationPlan(*of_layers, memory + held, memory + held + beside, on_device, held > 0)


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


def plan_imatrix(path: Path, imatrix: Imatrix, matrices: Mapping[str, int]) -> ImatrixOutput:
    """The file that `write_imatrix` writes for `imatrix`; its size is exact. `matrices`: how many each tensor has."""
    keys = [string("general.type", "imatrix"), array("imatrix.datasets", string("", "").kind, imatrix.datasets)]
    keys += [uint32("imatrix.chunk_count", imatrix.chunks), uint32("imatrix.chunk_size", imatrix.chunk_size)]
    head, data = 24 + sum(len(key.pack()) for key in keys), 0
    for name, values in imatrix.values.items():
        head += sum(8 + len(name + suffix) + 4 + 2 * 8 + 4 + 8 for suffix in (".in_sum2", ".counts"))
        data += padded(4 * values.size) + padded(4 * matrices[name])
    return ImatrixOutput(path, len(imatrix.values), padded(head) + data)
