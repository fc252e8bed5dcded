"""The weights that a folder's engine runs: a checkpoint, or dequantized AWQ and GPTQ weights."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint import Checkpoint
from quantkit.checkpoint.folder import read_small_file
from quantkit.checkpoint.jsonfile import parse_object
from quantkit.checkpoint.quantized.settings import quantization_config
from quantkit.errors import CheckpointError, QuantkitError
from quantkit.families import find_architecture, find_family, open_model, why_missing
from quantkit.families.base.native import Native, Source
from quantkit.forward.forward import Decoder
from quantkit.forward.weights import Array, Weights
from quantkit.packed.reader import PackedLinear, QuantizedFolder, open_quantized
from quantkit.packed.registry import type_of

# Elements of a quantized linear to unpack at once: the integers take several times the bytes of the result.
_UNPACKED = 1 << 24
_FLOATS = ("F16", "BF16", "F32", "F64")


@dataclass(frozen=True)
class _Stored:
    shape: tuple[int, ...]


class Dequantized:
    """A folder of AWQ or GPTQ weights as a `Source`; a quantized linear is the float32 matrix that a runtime uses."""

    def __init__(self, opened: QuantizedFolder) -> None:
        """Raises UnsupportedError if the forward does not support the architecture or a setting of it."""
        self.opened = opened
        self.config: Mapping[str, Any] = opened.config
        self.architecture = find_architecture(opened.config)
        self.tensors: Mapping[str, tuple[int, ...]] = dict(self._shapes())
        self.round_input = opened.round_input
        weights = Weights(self.whole, self.rows, self.tensors.keys(), self.round_input)
        self.decoder = Decoder(weights, self.config, self.architecture)

    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        opened, turned = self.opened, self.architecture.attention.form.turned
        shapes: dict[str, tuple[int, ...]] = {}
        for name in sorted(opened.names):
            linear = opened.linears.get(name.removesuffix(".weight"))
            if linear is not None:
                shapes[name] = (linear.n_in, linear.n_out) if turned else (linear.n_out, linear.n_in)
            elif opened.tensors[name].dtype in _FLOATS:
                # some tools also save masks, which are not weights
                shapes[name] = opened.tensors[name].shape
        return shapes

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows start to stop of a tensor seen as (prod(shape[:-1]), shape[-1]), in float32 if it is a quantized linear.

        Raises:
            CheckpointError: the tensor does not exist.
        """
        self._require(name)
        return self.opened.rows(name, start, stop)

    def _require(self, name: str) -> None:
        """Raise CheckpointError for a name that the folder lacks: other tools name some modules otherwise."""
        if name in self.opened.names or name in self.opened.tensors:
            return
        stored = {known: _Stored(shape) for known, shape in self.tensors.items()}
        try:
            family = find_family(self.config)
            sizes = family.sizes(self.config, stored)
        except QuantkitError:
            raise CheckpointError(
                f"tensor {name} is missing from the checkpoint; download the checkpoint again"
            ) from None
        raise why_missing(family, sizes, stored, name)

    def whole(self, name: str) -> NDArray[Any]:
        """The tensor in its shape. Raises CheckpointError if it does not exist."""
        self._require(name)
        linear = self.opened.linears.get(name.removesuffix(".weight"))
        if linear is None or not name.endswith(".weight"):
            return self.opened.whole(name)
        matrix = self._matrix(linear)
        return matrix.T if self.architecture.attention.form.turned else matrix

    def _matrix(self, linear: PackedLinear) -> Array:
        matrix, step = np.empty((linear.n_out, linear.n_in), np.float32), max(1, _UNPACKED // linear.n_in)
        for start in range(0, linear.n_out, step):
            matrix[start : start + step] = self.opened.dequantized(linear.name, start, start + step)
        return matrix


def open_source(path: Path) -> Checkpoint | QuantizedFolder:
    """Open a folder of AWQ or GPTQ weights, or a checkpoint.

    Raises:
        CheckpointError, UnsupportedError: the folder holds no such weights.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a folder; pass the folder that contains config.json and the weights")
    config = parse_object(read_small_file(path, "config.json", str(path)), f"config.json of {path}")
    quantization = quantization_config(config)
    kind = type_of(config)
    if (
        kind is not None
        or quantization.get("method") in ("awq", "gptq")
        or (not quantization and (path / "quantize_config.json").is_file())
    ):
        return open_quantized(path)
    return open_model(str(path))


def source_of(opened: Checkpoint | QuantizedFolder) -> Source:
    """The weights as the stream reads them. Raises UnsupportedError if the forward does not know the architecture."""
    return Dequantized(opened) if isinstance(opened, QuantizedFolder) else Native(opened, nearest=True)


def weight_bytes(opened: Checkpoint | QuantizedFolder) -> int:
    """Bytes of the weight files."""
    if isinstance(opened, QuantizedFolder):
        files = {tensor.file for tensor in opened.tensors.values()}
    else:
        files = set(opened.header_sha256)
    return sum((opened.folder / name).stat().st_size for name in files)


def parameter_count(source: Source) -> int:
    """The number of weights and biases before quantization.

    A tied head counts once. Layers for multi-token prediction do not count.
    """
    decoder, total = source.decoder, 0
    tied = decoder.head == decoder.embedding
    for name, tensor in source.tensors.items():
        shape: tuple[int, ...] = tensor if isinstance(tensor, tuple) else tensor.shape  # type: ignore[attr-defined]
        if (tied and name == decoder.architecture.head + ".weight") or name.endswith("_scales"):
            continue
        # a byte of MXFP4's blocks holds two
        total += math.prod(shape) * (2 if name.endswith("_blocks") else 1)
    return total
