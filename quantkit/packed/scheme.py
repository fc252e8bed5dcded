"""How the linears of a quantized folder are stored, as a reader sees it: one class for each layout."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from quantkit.checkpoint.tensor import TensorInfo
from quantkit.forward.weights import Array

FLOATS = ("F16", "BF16", "F32")


@dataclass(frozen=True)
class PackedLinear:
    """A linear as stored: matrix (n_out, n_in), `n_groups` groups of inputs."""

    name: str
    n_out: int
    n_in: int
    n_groups: int


class StoredTensors(Protocol):
    """The tensors of a folder as they are stored; see `QuantizedFolder`."""

    folder: Path
    tensors: Mapping[str, TensorInfo]

    def stored(self, name: str) -> NDArray[Any]: ...
    def stored_rows(self, name: str, start: int, stop: int) -> NDArray[Any]: ...


class Scheme(ABC):
    """The scheme of a folder. `group`: -1 for all inputs of a row."""

    method: str
    """The kind of folder: "awq", "gptq", "fp8", "compressed-tensors", "mlx"."""
    bits: int
    group: int
    parts: tuple[str, ...]
    """The suffixes of the tensors of a linear."""

    @abstractmethod
    def linears(self, tensors: Mapping[str, TensorInfo], folder: Path) -> list[PackedLinear]:
        """The quantized linears. Raises CheckpointError if a tensor is missing or shapes contradict each other."""

    @abstractmethod
    def dequantized(self, stored: StoredTensors, linear: PackedLinear, start: int, stop: int) -> Array:
        """Outputs start..stop of a linear, float32 (stop - start, n_in). Raises CheckpointError for damaged values."""

    def forget(self) -> None:  # noqa: B027 (most schemes keep nothing)
        """Free what is in memory."""
