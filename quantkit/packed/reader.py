"""Reads folders of quantized weights, ours or another tool's: every linear as the float32 matrix of a runtime.

The layouts are in `quantkit.checkpoint.quantized`, which shares nothing with the writers.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from numpy.typing import NDArray

from quantkit.checkpoint.folder import read_small_file
from quantkit.checkpoint.jsonfile import parse_object
from quantkit.checkpoint.quantized.reading import read_scheme
from quantkit.checkpoint.quantized.scheme import PackedLinear, quantized_linears
from quantkit.checkpoint.quantized.settings import quantization_config, without_quantization
from quantkit.checkpoint.stored import StoredWeights
from quantkit.checkpoint.tensor import TensorInfo
from quantkit.checkpoint.weights import open_weights
from quantkit.errors import UnsupportedError
from quantkit.families import find_architecture
from quantkit.families.base.output_head import untied_config
from quantkit.forward.weights import Array, Weights
from quantkit.packed.activations import activations_of, input_rounding

__all__ = ["PackedLinear", "QuantizedFolder", "open_quantized"]


class QuantizedFolder:
    """An open folder of quantized weights. At most the words of one linear are in memory.

    Attributes:
        config: config.json without its quantization_config; untied if the head differs from the embedding.
        notes: the changes of config.json.
        header_sha256: sha256 of each weight file's header.
        quantization: the quantization_config.
        scheme: the quantization_config, parsed.
        tensors: every tensor as stored.
        round_input: how a runtime rounds the inputs of the quantized linears; None where it does not.
        linears: the quantized linears by name ("model.layers.0.mlp.down_proj").
        names: the tensors of the model before quantization (NAME.weight for each quantized linear).
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.where = folder, str(folder)
        config = parse_object(read_small_file(folder, "config.json", str(folder)), f"config.json of {folder}")
        self.quantization = quantization_config(config) or _beside(folder)
        self.config = without_quantization(config)
        self.scheme = read_scheme(self.quantization, self.where)
        self._files = open_weights(folder, self.where)
        try:
            self.tensors: Mapping[str, TensorInfo] = MappingProxyType(dict(sorted(self._files.tensors.items())))
            self._stored = StoredWeights(self.tensors, self._files.descriptors, self.where)
            self.linears = {linear.name: linear for linear in quantized_linears(self.scheme, self.tensors, self.where)}
            self.header_sha256: Mapping[str, str] = self._files.header_sha256
            self.config, self.notes = untied_config(self.config, self.tensors, self.stored_rows)
        except BaseException:
            self._files.close()
            raise
        packed = {f"{linear.stored}.{part}" for linear in self.linears.values() for part in self.scheme.parts}
        self.names = frozenset(self.tensors.keys() - packed) | {f"{name}.weight" for name in self.linears}
        self._turned = _is_turned(self.config)
        self.round_input = input_rounding(activations_of(self.quantization), self.linears, self.stored)

    @property
    def weights(self) -> Weights:
        """What the forward pass reads: rows and whole tensors of the model, quantized linears as float32."""
        return Weights(self.whole, self.rows, self.names, self.round_input)

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows of a tensor of the model, as (prod(shape[:-1]), shape[-1]). Raises LookupError for an unknown name."""
        linear = self.linears.get(name.removesuffix(".weight"))
        if linear is None or not name.endswith(".weight"):
            return self.stored_rows(name, start, stop)
        if self._turned:
            return self.dequantized(linear.name).T[start:stop]
        return self.dequantized(linear.name, start, stop)

    def whole(self, name: str) -> NDArray[Any]:
        """A tensor of the model in its shape. Raises LookupError for an unknown name."""
        linear = self.linears.get(name.removesuffix(".weight"))
        if linear is not None and name.endswith(".weight"):
            return self.dequantized(linear.name).T if self._turned else self.dequantized(linear.name)
        return self.stored(name)

    def stored(self, name: str) -> NDArray[Any]:
        """A tensor as it is stored."""
        return self._stored.stored(name)

    def stored_rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows of a tensor as they are stored, as (prod(shape[:-1]), shape[-1])."""
        return self._stored.stored_rows(name, start, stop)

    def dequantized(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Outputs start..stop of a quantized linear: float32 (stop - start, n_in).

        Raises CheckpointError for scales that are not finite, or groups that do not exist.
        """
        linear = self.linears[name]
        return self.scheme.dequantized(self, linear, start, linear.n_out if stop is None else min(stop, linear.n_out))

    def close(self) -> None:
        """Close the files."""
        self.scheme.forget()
        self._files.close()

    def __enter__(self) -> "QuantizedFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_quantized(folder: Path) -> QuantizedFolder:
    """A folder of quantized weights (see `checkpoint.quantized.reading`), headers checked.

    Raises:
        CheckpointError: a file is missing or malformed, or tensors contradict config.json.
        UnsupportedError: it is quantized by another method, or not quantized.
    """
    return QuantizedFolder(folder)


def _beside(folder: Path) -> dict[str, Any]:
    """quantize_config.json: some tools write it and leave config.json as it is."""
    name = "quantize_config.json"
    if not (folder / name).is_file():
        return {}
    return parse_object(read_small_file(folder, name, str(folder)), f"{name} of {folder}")


def _is_turned(config: Mapping[str, Any]) -> bool:
    try:
        return find_architecture(config).attention.form.turned
    except UnsupportedError:
        return False
