"""The quantized linears of a checkpoint as tensors of the model: NAME.weight, dequantized row by row as it is read."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint.jsonfile import parse_object
from quantkit.checkpoint.quantized.bitsandbytes import BitsAndBytes4
from quantkit.checkpoint.quantized.float8 import Float8Scheme
from quantkit.checkpoint.quantized.reading import read_scheme
from quantkit.checkpoint.quantized.scheme import MixedScheme, PackedLinear, Scheme, quantized_linears
from quantkit.checkpoint.quantized.settings import BESIDE, from_file_beside, stated_quantization
from quantkit.checkpoint.stored import StoredWeights
from quantkit.checkpoint.tensor import FLOAT8, TensorInfo

_PACKED_ENDS = (".qweight", ".weight_packed", ".weight_scale_2")


class QuantizedWeights:
    """The quantized linears of a checkpoint. Many threads can read at once.

    Attributes:
        scheme: the parsed settings.
        linears: the quantized linears by name, without those in 8-bit floats.
        tensors: the tensors of the model: stored ones, and NAME.weight in float32 for each linear.
        weights_of: the weights that each stored tensor of a linear stands for: all for its first, none for the others.
        has_shapes: false if only headers came, and the shapes of the linears are in the data (bitsandbytes' 4 bit).
    """

    def __init__(self, scheme: Scheme, stored: StoredWeights) -> None:
        """Raises CheckpointError if a tensor is missing, or shapes contradict each other."""
        self.scheme, self._stored, self.turned = scheme, stored, False
        self.has_shapes = not isinstance(scheme, BitsAndBytes4) or stored.descriptors is not None
        if not self.has_shapes:
            self.linears: dict[str, PackedLinear] = {}
            self.weights_of: dict[str, int] = {}
            parts = tuple(f".{part}" for part in scheme.parts if part != "weight")
            self.tensors = {name: tensor for name, tensor in stored.tensors.items() if not name.endswith(parts)}
            return
        if isinstance(scheme, BitsAndBytes4):
            scheme.read_states(stored)
        linears = _linears(scheme, stored)
        self.linears = {linear.name: linear for linear in linears}
        hidden = {f"{linear.stored}.{part}" for linear in linears for part in scheme.parts}
        self.tensors = {name: tensor for name, tensor in stored.tensors.items() if name not in hidden}
        self.weights_of = dict.fromkeys(hidden & stored.tensors.keys(), 0)
        for linear in linears:
            parts_of = [f"{linear.stored}.{part}" for part in scheme.parts]
            first = next(part for part in parts_of if part in stored.tensors)
            self.weights_of[first] += linear.n_out * linear.n_in
            self.tensors[f"{linear.name}.weight"] = _as_float(linear, stored.tensors[first].file)

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows start..stop of NAME.weight, float32. Raises CheckpointError for damaged values."""
        linear = self.linears[name]
        if self.turned:
            whole = self.scheme.dequantized(self._stored, linear, 0, linear.n_out)
            return np.ascontiguousarray(whole.T[start:stop])
        if start == stop:
            return np.empty((0, linear.n_in), np.float32)
        return self.scheme.dequantized(self._stored, linear, start, stop)

    @property
    def note(self) -> str:
        """The sentence for the user."""
        if not self.has_shapes:
            return f"the weights are quantized ({self.scheme.title}); their shapes are in the weight files"
        count = "1 weight is" if len(self.linears) == 1 else f"{len(self.linears)} weights are"
        return f"{count} quantized ({self.scheme.title}); quantkit dequantizes each as it reads it"


def settings_of(config: dict[str, Any], tensors: Mapping[str, TensorInfo], folder: Path) -> dict[str, Any]:
    """config.json with a quantization_config: its own, or that of a file beside it if tensors are packed.

    Raises CheckpointError: the file is malformed.
    """
    if stated_quantization(config) or not any(name.endswith(_PACKED_ENDS) for name in tensors):
        return config
    for name in BESIDE:
        path = folder / name
        if path.is_file():
            contents = parse_object(path.read_bytes(), f"{name} of {folder}")
            return {**config, "quantization_config": from_file_beside(name, contents)}
    return config


def open_quantized_weights(config: Mapping[str, Any], stored: StoredWeights) -> QuantizedWeights | None:
    """The quantized linears that config.json states; None without any, and for those that other code reads.

    8-bit floats have their own reader (`checkpoint.float8`), gpt-oss's MXFP4 blocks that of the family.

    Raises:
        CheckpointError: a tensor is missing, or contradicts config.json.
        UnsupportedError: no scheme reads the weights.
    """
    settings = stated_quantization(config)
    if not settings or settings.get("quant_method") == "mxfp4":
        return None
    scheme = read_scheme(settings, stored.where)
    if isinstance(scheme, Float8Scheme):
        return None
    return QuantizedWeights(scheme, stored)


def _linears(scheme: Scheme, stored: StoredWeights) -> list[PackedLinear]:
    if not any(tensor.dtype in FLOAT8 and name.endswith(".weight") for name, tensor in stored.tensors.items()):
        return quantized_linears(scheme, stored.tensors, stored.where)
    linears = scheme.linears(stored.tensors, stored.where)
    if not isinstance(scheme, MixedScheme):
        return linears
    return [linear for linear in linears if not isinstance(scheme.of(linear), Float8Scheme)]


def _as_float(linear: PackedLinear, file: str) -> TensorInfo:
    shape, nbytes = (linear.n_out, linear.n_in), 4 * linear.n_out * linear.n_in
    return TensorInfo(f"{linear.name}.weight", "F32", shape, file, 0, nbytes, linear=linear.name)


def turned(tensor: TensorInfo) -> TensorInfo:
    """The tensor of a linear that the model stores as (inputs, outputs)."""
    return replace(tensor, shape=tensor.shape[::-1])
