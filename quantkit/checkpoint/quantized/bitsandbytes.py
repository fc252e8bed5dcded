"""The linears of checkpoints that transformers saved with bitsandbytes: nf4 and fp4 (with double quantization), int8.

Sources: bitsandbytes' `QuantState.from_dict` and `dequantize_4bit`. A 4-bit matrix is one list of values, two in a
byte, the first in the high bits. `quant_map` has the 16 values; blocks of `blocksize` values share an `absmax`. With
double quantization `absmax` is 8 bits wide: a number in `nested_quant_map`, times the `nested_absmax` of its block,
plus an offset. The shape of the matrix is in the data, as JSON.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint.jsonfile import shown
from quantkit.checkpoint.quantized.integers import int8_of_bitsandbytes
from quantkit.checkpoint.quantized.scheme import Array, PackedLinear, Scheme, StoredTensors, require_finite
from quantkit.checkpoint.tensor import TensorInfo
from quantkit.errors import CheckpointError, UnsupportedError

_STATES = ("weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4")
_MAPS = ("weight.absmax", "weight.quant_map")
_NESTED = ("weight.nested_absmax", "weight.nested_quant_map")


@dataclass(frozen=True)
class _State:
    """The JSON of a linear: its shape and the sizes of blocks."""

    shape: tuple[int, int]
    block: int
    nested_block: int
    nested_offset: float


@dataclass
class BitsAndBytes4(Scheme):
    """Weights of 4 bits. `read_states` fills `states`: headers do not state the shapes."""

    kind: str = "nf4"
    method: str = "bitsandbytes"
    bits: int = 4
    group: int = -1
    parts: tuple[str, ...] = ("weight", *_MAPS, *_NESTED, *_STATES)
    states: dict[str, _State] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.layout = self.kind

    @property
    def title(self) -> str:
        return f"{self.method} {self.kind} 4 bit"

    def read_states(self, stored: StoredTensors) -> None:
        """Read the shape of every linear from its JSON. Raises CheckpointError if it is missing or not readable."""
        for name in _names(stored.tensors):
            state = next((f"{name}.{part}" for part in _STATES if f"{name}.{part}" in stored.tensors), None)
            if state is None:
                raise CheckpointError(f"linear {shown(name)} of {stored.where} has no quant_state; download it again")
            self.states[name] = _parse(stored.stored(state).tobytes(), state, stored.where)

    def linears(self, tensors: Mapping[str, TensorInfo], where: str) -> list[PackedLinear]:
        linears = []
        for name in _names(tensors):
            missing = next((part for part in _MAPS if f"{name}.{part}" not in tensors), None)
            if missing is not None:
                raise CheckpointError(f"linear {shown(name)} of {where} has no {missing}; download it again")
            state, absmax = self.states[name], tensors[f"{name}.weight.absmax"]
            rows, columns = state.shape
            nested = absmax.dtype == "U8"
            lost = next((part for part in _NESTED if nested and f"{name}.{part}" not in tensors), None)
            if lost is not None:
                raise CheckpointError(f"linear {shown(name)} of {where} has no {lost}; download it again")
            count = rows * columns
            sizes = (tensors[f"{name}.weight"].n_params, tensors[f"{name}.weight.quant_map"].n_params, absmax.n_params)
            if sizes != (-(-count // 2), 16, -(-count // state.block)) or (not nested and absmax.dtype != "F32"):
                raise CheckpointError(
                    f"linear {shown(name)} of {where} has {sizes[0]} bytes and {sizes[2]} absmax; these do not match"
                    f" its shape {list(state.shape)} in blocks of {state.block}, so download it again"
                )
            linears.append(PackedLinear(name, rows, columns, 1))
        return linears

    def dequantized(self, stored: StoredTensors, linear: PackedLinear, start: int, stop: int) -> Array:
        state = self.states[linear.name]
        first, last = start * linear.n_in, stop * linear.n_in
        packed = _elements(stored, f"{linear.name}.weight", first // 2, -(-last // 2))
        values = stored.stored(f"{linear.name}.weight.quant_map").astype(np.float32).reshape(-1)
        floats = np.empty((len(packed), 2), np.float32)
        floats[:, 0] = values[packed >> np.uint8(4)]
        floats[:, 1] = values[packed & np.uint8(15)]
        matrix = floats.reshape(-1)[first % 2 : first % 2 + last - first]
        blocks = self._absmax(stored, linear.name, state, first // state.block, -(-last // state.block))
        lead = first % state.block
        matrix *= np.repeat(blocks, state.block)[lead : lead + last - first]
        return matrix.reshape(stop - start, linear.n_in)

    def _absmax(self, stored: StoredTensors, name: str, state: _State, start: int, stop: int) -> Array:
        """The largest absolute values of blocks start..stop: float32 (stop - start,)."""
        absmax = _elements(stored, f"{name}.weight.absmax", start, stop)
        if absmax.dtype == np.uint8:
            codes, largest = (stored.stored(f"{name}.{part}").reshape(-1) for part in reversed(_NESTED))
            absmax = codes[absmax] * largest[np.arange(start, stop) // state.nested_block]
            absmax = absmax + np.float32(state.nested_offset)
        require_finite(absmax, f"{name}.weight.absmax", stored.where)
        return absmax.astype(np.float32)


def read_bitsandbytes(quantization: Mapping[str, Any], where: str) -> Scheme:
    """The scheme that the settings of bitsandbytes state. Raises UnsupportedError if they state no width."""
    if quantization.get("load_in_4bit") or quantization.get("_load_in_4bit"):
        kind = quantization.get("bnb_4bit_quant_type", "fp4")
        return BitsAndBytes4(str(kind))
    if quantization.get("load_in_8bit") or quantization.get("_load_in_8bit"):
        return int8_of_bitsandbytes()
    raise UnsupportedError(
        f"{where} is quantized by bitsandbytes with neither load_in_4bit nor load_in_8bit; take the original checkpoint"
    )


def _names(tensors: Mapping[str, TensorInfo]) -> list[str]:
    """The linears: 8-bit tensors NAME.weight with an absmax or a state beside them."""
    marks = tuple(f".{part}" for part in (*_MAPS, *_NESTED, *_STATES))
    marked = {name.removesuffix(mark) for name in tensors for mark in marks if name.endswith(mark)}
    return sorted(name for name in marked if f"{name}.weight" in tensors)


def _elements(stored: StoredTensors, name: str, start: int, stop: int) -> NDArray[Any]:
    """Elements start..stop of a tensor of shape (n, 1) or (n,)."""
    tensor = stored.tensors[name]
    if tensor.row_length == 1:
        return stored.stored_rows(name, start, stop).reshape(-1)
    return stored.stored(name).reshape(-1)[start:stop]


def _parse(data: bytes, name: str, where: str) -> _State:
    try:
        state = json.loads(data)
        rows, columns = (int(size) for size in state["shape"])
        nested = int(state.get("nested_blocksize", 256))
        parsed = _State((rows, columns), int(state["blocksize"]), nested, float(state.get("nested_offset", 0.0)))
        if min(rows, columns, parsed.block, parsed.nested_block) < 1:
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"tensor {shown(name)} of {where} does not state the shape of a matrix; download it again"
        ) from error
    return parsed
