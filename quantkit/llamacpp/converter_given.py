"""Tensors of the checkpoint that the caller gives: part of the script converter_child.py, without imports of quantkit.

The converter takes such a tensor for one of its weight files. The caller's process merges its rows with an adapter.
They come over the pipe when the converter computes them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Rows = Callable[[str, int, int], bytes]


@dataclass(frozen=True)
class _GivenTensor:
    """What gguf's LocalTensor is for a tensor in a file; `dtype` as safetensors names it, rows `first`.. of `name`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    rows: Rows
    first: int = 0

    def mmap_bytes(self) -> Any:
        count = math.prod(self.shape[:-1])
        return np.frombuffer(bytearray(self.rows(self.name, self.first, self.first + count)), np.uint8)

    def part(self, start: int, stop: int) -> "_GivenTensor":
        """Rows start..stop of the tensor seen as (prod(shape[:-1]), shape[-1])."""
        return _GivenTensor(self.name, self.dtype, (stop - start, self.shape[-1]), self.rows, self.first + start)


def take_from_caller(described: dict[str, Any], rows: Rows) -> None:
    """From now on the converter reads the tensors `described` (name -> dtype and shape) through `rows`.

    One that no weight file has is added to the model, which is an output head that was tied before.
    Raises AttributeError or ImportError if the converter is of another version.
    """
    import gguf
    import torch
    from conversion.base import LazyTorchTensor, ModelBase

    tensors = {name: _GivenTensor(name, item["dtype"], tuple(item["shape"]), rows) for name, item in described.items()}
    missing = set(tensors)
    opened, load, index = gguf.utility.SafetensorsLocal.__init__, torch.load, ModelBase.index_tensors

    def replaced(names: Any) -> dict[str, Any]:
        missing.difference_update(names)
        return {name: tensors[name] for name in names if name in tensors}

    def open_with_given(self: Any, *arguments: Any, **settings: Any) -> None:
        opened(self, *arguments, **settings)
        self.tensors.update(replaced(list(self.tensors)))

    def load_with_given(*arguments: Any, **settings: Any) -> Any:
        state = load(*arguments, **settings)
        lazy = {name: LazyTorchTensor.from_local_tensor(item) for name, item in replaced(list(state)).items()}
        return {**state, **lazy}

    def index_with_given(self: Any, *arguments: Any, **settings: Any) -> Any:
        indexed = index(self, *arguments, **settings)
        for name in sorted(missing):
            item = self.filter_tensors((name, lambda name=name: LazyTorchTensor.from_local_tensor(tensors[name])))
            if item is not None:
                indexed[item[0]] = item[1]
        return indexed

    gguf.utility.SafetensorsLocal.__init__ = open_with_given
    torch.load = load_with_given
    ModelBase.index_tensors = index_with_given
