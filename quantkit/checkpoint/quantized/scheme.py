"""How the linears of a quantized checkpoint are stored, as a reader sees it: one class for each layout."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint.jsonfile import shown
from quantkit.checkpoint.tensor import TensorInfo
from quantkit.errors import CheckpointError, UnsupportedError

Array = NDArray[np.float32]

FLOATS = ("F16", "BF16", "F32")
ACTIVATION_PARTS = ("input_scale", "input_zero_point", "input_global_scale", "output_scale", "activation_scale")
"""The suffixes of scales for activations, which a weight does not need."""


@dataclass(frozen=True)
class PackedLinear:
    """A linear as stored: matrix (n_out, n_in), `n_groups` groups of inputs. It stands for the tensor NAME.weight.

    `stack`: the tensors that have several linears, whose matrix `index` this one is; None: they have its own name.
    """

    name: str
    n_out: int
    n_in: int
    n_groups: int
    stack: str | None = None
    index: int = 0

    @property
    def stored(self) -> str:
        """The name of its tensors without their suffix."""
        return self.stack or self.name


class StoredTensors(Protocol):
    """The tensors of a checkpoint as they are stored; `where` names the checkpoint in messages."""

    @property
    def where(self) -> str: ...
    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...
    def stored(self, name: str) -> NDArray[Any]: ...
    def stored_rows(self, name: str, start: int, stop: int) -> NDArray[Any]: ...


class Scheme(ABC):
    """The scheme of a checkpoint. `group`: the inputs that share a scale, -1 for all inputs of a row."""

    method: str
    """The kind of checkpoint: "awq", "gptq", "fp8", "compressed-tensors", "mlx"."""
    bits: int
    group: int
    parts: tuple[str, ...]
    """The suffixes of the tensors of a linear."""
    layout: str | None = None
    """The packing: "gemm", "pack-quantized"."""

    @abstractmethod
    def linears(self, tensors: Mapping[str, TensorInfo], where: str) -> list[PackedLinear]:
        """The quantized linears. Raises CheckpointError if a tensor is missing or shapes contradict each other."""

    @abstractmethod
    def dequantized(self, stored: StoredTensors, linear: PackedLinear, start: int, stop: int) -> Array:
        """Outputs start..stop of a linear, float32 (stop - start, n_in). Raises CheckpointError for damaged values."""

    def forget(self) -> None:  # noqa: B027 (most schemes keep nothing)
        """Free what is in memory."""

    @property
    def title(self) -> str:
        """The quantization in words: "awq 4 bit, group 128"."""
        words = f"{self.method} {self.bits} bit"
        return words + (f", group {self.group}" if self.group > 0 else "")


class MixedScheme(Scheme):
    """Linears of several schemes in one checkpoint; `scheme_of` gives the scheme of a linear by name, None for none."""

    def __init__(self, default: Scheme, scheme_of: Callable[[str], Scheme | None]) -> None:
        self.method, self.bits, self.group, self.layout = default.method, default.bits, default.group, default.layout
        self._default, self._scheme_of = default, scheme_of
        self._of: dict[str, Scheme] = {}
        self.parts = default.parts

    def linears(self, tensors: Mapping[str, TensorInfo], where: str) -> list[PackedLinear]:
        by_scheme: dict[int, tuple[Scheme, dict[str, TensorInfo]]] = {}
        for name, tensor in tensors.items():
            scheme = self._scheme_of(name.rpartition(".")[0])
            if scheme is not None:
                by_scheme.setdefault(id(scheme), (scheme, {}))[1][name] = tensor
        linears = []
        for scheme, scheme_tensors in by_scheme.values():
            some = scheme.linears(scheme_tensors, where)
            self._of |= dict.fromkeys((linear.name for linear in some), scheme)
            self.parts += tuple(part for part in scheme.parts if some and part not in self.parts)
            linears += some
        return sorted(linears, key=lambda linear: linear.name)

    def dequantized(self, stored: StoredTensors, linear: PackedLinear, start: int, stop: int) -> Array:
        return self._of[linear.name].dequantized(stored, linear, start, stop)

    def of(self, linear: PackedLinear) -> Scheme:
        """The scheme of a linear that `linears` returned."""
        return self._of[linear.name]

    def forget(self) -> None:
        for scheme in self._of.values():
            scheme.forget()

    @property
    def title(self) -> str:
        bits = sorted({scheme.bits for scheme in self._of.values()})
        return f"{self.method} {', '.join(map(str, bits))} bit, mixed" if len(bits) > 1 else self._default.title


def quantized_linears(scheme: Scheme, tensors: Mapping[str, TensorInfo], where: str) -> list[PackedLinear]:
    """The linears of `scheme` among `tensors`. Raises CheckpointError if there are none."""
    linears = scheme.linears(tensors, where)
    if not linears:
        raise CheckpointError(
            f"config.json of {where} states quantization but no packed weights exist; download it again"
        )
    return linears


def compiled(pattern: str, where: str) -> re.Pattern[str]:
    """An expression of quantization_config. Raises UnsupportedError if Python does not read it."""
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UnsupportedError(
            f"{where} names its quantized linears by the expression {shown(pattern)}, which cannot be read; take the"
            " original 16-bit checkpoint"
        ) from error


def require_finite(values: NDArray[Any], name: str, where: str) -> None:
    """Raise CheckpointError if scales contain NaN or infinity."""
    if not np.isfinite(values).all():
        raise CheckpointError(
            f"tensor {shown(name)} of {where} contains NaN or infinity; the checkpoint is damaged, download it again"
        )
