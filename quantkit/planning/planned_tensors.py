"""The tensors of a GGUF that exists or is planned, and their sums, which a search for a placement needs many times."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple

from gguf import GGMLQuantizationType

from quantkit.gguf.layout import tensor_bytes
from quantkit.gguf.types import row_bytes
from quantkit.planning.repack import repacked

# the pattern of --n-cpu-moe: weights, biases and scales of experts
_EXPERTS = re.compile(r"ffn_(up|down|gate|gate_up)_(ch|)exps\.")
_LAYER = re.compile(r"(?:enc\.|dec\.)?blk\.(\d+)\.")
_CUDA_ROW = 512


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor of the file: name, numpy shape, type."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return tensor_bytes(self.type, self.shape)

    @cached_property
    def gpu_nbytes(self) -> int:
        """Bytes on a GPU.

        CUDA pads the last row of a quantized matrix to 512 elements (ggml_backend_cuda_buffer_type_get_alloc_size).
        """
        short = -self.shape[-1] % _CUDA_ROW
        quantized = self.type not in (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)
        return self.nbytes + (row_bytes(self.type, short) if short and quantized else 0)

    @cached_property
    def layer(self) -> int | None:
        """The tensor's layer, None outside the layers."""
        match = _LAYER.match(self.name)
        return int(match[1]) if match else None

    @cached_property
    def kind(self) -> str:
        """Its name without the layer."""
        return self.name if self.layer is None else _LAYER.sub("", self.name, count=1)

    @cached_property
    def is_expert(self) -> bool:
        """Whether --n-cpu-moe moves it."""
        return self.layer is not None and _EXPERTS.match(self.kind) is not None

    @property
    def n_elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)


class Group(NamedTuple):
    """Tensors that are on the same device in every placement: their sizes in bytes, on the CPU and on a GPU."""

    first: PlannedTensor
    names: tuple[str, ...]
    nbytes: int
    gpu_nbytes: int


class PlannedTensors(tuple[PlannedTensor, ...]):
    """The tensors of a file."""

    @classmethod
    def of(cls, tensors: Iterable[PlannedTensor]) -> "PlannedTensors":
        """`tensors` themselves if they are of this class, so that their sums are computed once."""
        return tensors if isinstance(tensors, PlannedTensors) else cls(tensors)

    @cached_property
    def _members(self) -> list[list[PlannedTensor]]:
        """The members of `groups`."""
        groups: defaultdict[tuple[int | None, str | bool], list[PlannedTensor]] = defaultdict(list)
        for tensor in self:
            # outside the layers the name decides the device
            groups[tensor.layer, tensor.name if tensor.layer is None else tensor.is_expert].append(tensor)
        return list(groups.values())

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The experts of each layer, the other tensors of each layer, and each tensor outside the layers alone."""
        return tuple(
            Group(
                members[0],
                tuple(tensor.name for tensor in members),
                sum(tensor.nbytes for tensor in members),
                sum(tensor.gpu_nbytes for tensor in members),
            )
            for members in self._members
        )

    @cached_property
    def one_of_each(self) -> tuple[PlannedTensor, ...]:
        """The first tensor of each group."""
        return tuple(group.first for group in self.groups)

    @cached_property
    def _repacked(self) -> dict[frozenset[str], tuple[int, ...]]:
        return {}

    def repacked(self, features: frozenset[str]) -> tuple[int, ...]:
        """Bytes of each group that llama.cpp repacks on a CPU with `features`, the flags of /proc/cpuinfo."""
        if features not in self._repacked:
            self._repacked[features] = tuple(
                sum(t.nbytes for t in members if repacked(t.name, t.type, t.shape, features))
                for members in self._members
            )
        return self._repacked[features]

    @cached_property
    def largest_of_a_kind(self) -> dict[str, int]:
        """Bytes by name; a tensor of a layer counts as the largest of its kind, because types vary by layer."""
        largest: defaultdict[str, int] = defaultdict(int)
        for tensor in self:
            largest[tensor.kind] = max(largest[tensor.kind], tensor.nbytes)
        return {tensor.name: largest[tensor.kind] for tensor in self}
