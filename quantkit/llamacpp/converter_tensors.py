"""Rows of the converter's lazy tensors: part of the script converter_child.py, without imports of quantkit.

The converter describes a tensor as a graph of operations over mapped files. Most graphs treat each row alone: read,
widen to float32, round to the output's type, stack experts. Of these only the requested rows are computed. The part of
a graph below another operation (a transpose, a permutation) is computed whole, and kept until the next tensor.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

_ELEMENTWISE = frozenset(("to", "float", "half", "bfloat16", "type", "contiguous", "clone"))
_SCALED = frozenset(("__add__", "__radd__", "__sub__", "__mul__", "__rmul__", "__truediv__", "__neg__"))
_VIEWS = frozenset(("reshape", "view", "squeeze", "unsqueeze", "flatten"))
"""Methods that keep the order of the elements."""
_JOINS = frozenset(("stack", "cat", "concat", "concatenate"))
_NUMPY, _ASTYPE = "LazyTorchTensor.numpy.<locals>.<lambda>", "LazyNumpyTensor.astype.<locals>.<lambda>"
_QUANTIZE = "__quantize_array"


def array_bytes(array: Any) -> memoryview:
    """The bytes of an array, in order."""
    data: memoryview = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    return data


class TensorBytes:
    """Bytes of the converter's tensors. `lazy`: gguf's LazyBase; `chunked`: its LazyChunkedTensor, if it has one."""

    def __init__(self, tensors: dict[str, Any], lazy: Any, chunked: Any) -> None:
        self._tensors, self._lazy, self._chunked = tensors, lazy, chunked
        self._name: str | None = None
        self._rows: _Rows | None = None
        self._pieces = _Pieces(iter(()))

    def read(self, name: str, offset: int, size: int) -> memoryview:
        """`size` bytes of a tensor from byte `offset` on. Raises EOFError if it ends before."""
        tensor = self._tensors[name]
        chunked = self._chunked is not None and isinstance(tensor, self._chunked)
        if name != self._name or (chunked and offset < self._pieces.start):
            # first, so that two tensors are never in memory together
            self._name, self._rows, self._pieces = name, None, _Pieces(iter(()))
            if chunked:
                self._pieces = _Pieces(self._chunks(tensor))
            else:
                self._rows = _Rows(tensor, self._lazy)
        return self._pieces.read(offset, size) if self._rows is None else self._rows.read(offset, size)

    def whole_elements(self) -> int:
        """Elements of the largest tensor that is computed whole."""
        plain = [
            tensor for tensor in self._tensors.values() if not (self._chunked and isinstance(tensor, self._chunked))
        ]
        return max((_Rows(tensor, self._lazy).whole_elements for tensor in plain), default=0)

    def _chunks(self, tensor: Any) -> Iterator[memoryview]:
        import gguf

        for load in tensor._chunks:
            chunk = load()
            if tensor._qtype is not None:
                chunk = gguf.quants.quantize(chunk, tensor._qtype)
            yield array_bytes(_Evaluation(self._lazy).value(chunk))


class _Pieces:
    """The bytes of a tensor that comes in pieces; `start` is the offset of the piece in memory."""

    def __init__(self, pieces: Iterator[memoryview]) -> None:
        self._pieces = pieces
        self.start = 0
        self._piece = memoryview(b"")

    def read(self, offset: int, size: int) -> memoryview:
        while offset + size > self.start + len(self._piece):
            following = next(self._pieces, None)
            if following is None:
                raise EOFError(f"ends at byte {self.start + len(self._piece)}")
            unread = self._piece[max(0, offset - self.start) :]
            self.start += len(self._piece) - len(unread)
            self._piece = memoryview(bytes(unread) + bytes(following)) if len(unread) else following
        return self._piece[offset - self.start : offset - self.start + size]


class _Rows:
    """A tensor as rows of its last dimension; only what the requested rows need is computed."""

    def __init__(self, tensor: Any, lazy: Any) -> None:
        self._tensor, self._lazy = tensor, lazy
        self._whole: dict[int, Any] = {}

    def read(self, offset: int, size: int) -> memoryview:
        shape = _shape(self._tensor)
        width = (shape[-1] if shape else 1) * np.dtype(self._tensor.dtype).itemsize
        first, last = offset // width, -(-(offset + size) // width)
        data = array_bytes(self._of(self._tensor, first, last))
        if len(data) != (last - first) * width:
            raise EOFError(f"ends at byte {first * width + len(data)}")
        return data[offset - first * width : offset - first * width + size]

    @property
    def whole_elements(self) -> int:
        """Elements of the largest value that is computed whole."""
        return self._largest_whole(self._tensor, False, {})

    def _largest_whole(self, value: Any, whole: bool, known: dict[int, int]) -> int:
        """`whole`: the value is an input of one that is computed whole. `known`: results by id of such inputs."""
        if isinstance(value, (list, tuple)):
            return max((self._largest_whole(item, whole, known) for item in value), default=0)
        if not isinstance(value, self._lazy) or value._data is not None:
            return 0
        row_wise, inputs = (False, []) if whole else self._inputs(value)
        if row_wise:
            return self._largest_whole(inputs, False, known)
        if id(value) not in known:
            known[id(value)] = max(math.prod(_shape(value)), self._largest_whole(value._args, True, known))
        return known[id(value)]

    def _of(self, value: Any, start: int, stop: int) -> Any:
        """Rows start..stop of a value of the graph, (stop - start, columns)."""
        if isinstance(value, self._lazy) and value._data is None:
            row_wise, inputs = self._inputs(value)
            if row_wise and not inputs:
                tensor = value._args[0]
                if hasattr(tensor, "part"):
                    return value._func(tensor.part(start, stop))
                value = value._func(tensor)
            elif row_wise and _name(value) in _JOINS:
                return self._joined(inputs, start, stop)
            elif row_wise:
                rows = self._of(inputs[0], start, stop)
                return rows if _name(value) in _VIEWS else value._func(rows, *value._args[1:], **value._kwargs)
            else:
                if id(value) not in self._whole:
                    computed = _Evaluation(self._lazy).value(value)
                    self._whole[id(value)] = computed.reshape(-1, computed.shape[-1] if computed.ndim else 1)
                value = self._whole[id(value)]
        elif isinstance(value, self._lazy):
            value = value._data
        return value.reshape(-1, value.shape[-1] if value.ndim else 1)[start:stop]

    def _joined(self, inputs: list[Any], start: int, stop: int) -> Any:
        parts, first = [], 0
        for item in inputs:
            count = math.prod(_shape(item)[:-1])
            if first < stop and start < first + count:
                parts.append(self._of(item, max(start - first, 0), min(stop - first, count)))
            first += count
        if len(parts) == 1:
            return parts[0]
        if isinstance(parts[0], np.ndarray):
            return np.concatenate(parts)
        import torch

        return torch.cat(parts)

    def _inputs(self, value: Any) -> tuple[bool, list[Any]]:
        """Whether each row of a lazy value depends on the same row of its inputs alone, and the inputs.

        A tensor of the checkpoint has no inputs.
        """
        args, name, shape = value._args, _name(value), _shape(value)
        if len(shape) < 2:
            return False, []
        if len(args) == 1 and hasattr(args[0], "mmap_bytes"):
            return True, []
        if name in _JOINS and args and isinstance(args[0], (list, tuple)):
            items = list(args[0])
            dimension = args[1] if len(args) > 1 else value._kwargs.get("dim", 0)
            same_rows = all(
                isinstance(item, self._lazy) and len(_shape(item)) > 1 and _shape(item)[-1] == shape[-1]
                for item in items
            )
            return dimension == 0 and same_rows, items
        if not args or not isinstance(args[0], self._lazy) or len(_shape(args[0])) < 2:
            return False, []
        before, parameters = _shape(args[0]), (*args[1:], *value._kwargs.values())
        plain = not any(isinstance(item, (self._lazy, list)) for item in parameters)
        if name in _ELEMENTWISE:
            return plain and before == shape, [args[0]]
        if name in _SCALED:
            return all(isinstance(item, (int, float)) for item in parameters) and before == shape, [args[0]]
        if name == _QUANTIZE:
            return not parameters and before[:-1] == shape[:-1], [args[0]]
        if name in _VIEWS:
            return plain and before[-1] == shape[-1] and value.dtype == args[0].dtype, [args[0]]
        return False, []


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape)


def _name(value: Any) -> str:
    """The name of the operation of a lazy value; "" for an operation that this module does not know."""
    function: Callable[..., Any] = value._func
    qualified_name = getattr(function, "__qualname__", "")
    if qualified_name.endswith((_NUMPY, _ASTYPE)):
        return "to"
    code = getattr(function, "__code__", None)
    if qualified_name.endswith("__getattr__.<locals>.<lambda>") and code is not None and "args" in code.co_varnames:
        # gguf's LazyMeta: a method, whose name is the closure's only variable
        cells = getattr(function, "__closure__", None) or ()
        names = [cell.cell_contents for cell in cells if isinstance(cell.cell_contents, str)]
        return names[0] if len(names) == 1 else ""
    name = getattr(function, "__name__", "")
    return _QUANTIZE if name.endswith(_QUANTIZE) else name


class _Evaluation:
    """The value of a lazy tensor as its `to_eager` gives it, but nothing stays in memory after its last use."""

    def __init__(self, lazy: Any) -> None:
        self._lazy = lazy
        self._uses: dict[int, int] = {}
        self._kept: dict[int, Any] = {}

    def value(self, tensor: Any) -> Any:
        self._count(tensor)
        return self._compute(tensor)

    def _count(self, value: Any) -> None:
        """How many times each lazy tensor below `value` is an argument."""
        if isinstance(value, (list, tuple)):
            for item in value:
                self._count(item)
        elif isinstance(value, self._lazy):
            self._uses[id(value)] = self._uses.get(id(value), 0) + 1
            if self._uses[id(value)] == 1:
                self._count(value._args)

    def _compute(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._compute(item) for item in value]
        if isinstance(value, tuple):
            return tuple(self._compute(item) for item in value)
        if not isinstance(value, self._lazy):
            return value
        if value._data is not None:
            return value._data
        key = id(value)
        self._uses[key] -= 1
        if key in self._kept:
            return self._kept[key] if self._uses[key] else self._kept.pop(key)
        result = value._func(*self._compute(value._args), **value._kwargs)
        if self._uses[key]:
            self._kept[key] = result
        return result
