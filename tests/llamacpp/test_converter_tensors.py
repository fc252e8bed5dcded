"""Rows of the converter's lazy tensors equal those of gguf's own evaluation (`LazyBase.to_eager`)."""

from typing import Any

import gguf
import numpy as np
import pytest
from gguf.lazy import LazyNumpyTensor

from quantkit.llamacpp.converter_tensors import TensorBytes

ROWS, COLUMNS = 24, 64


class Stored:
    """A tensor in a mapped file; `reads` are the row ranges that were taken."""

    def __init__(self, seed: int) -> None:
        self.values = np.random.default_rng(seed).standard_normal((ROWS, COLUMNS)).astype(np.float16)
        self.reads: list[tuple[int, int]] = []

    def mmap_bytes(self) -> Any:
        return self.values.view(np.uint8)

    def part(self, start: int, stop: int) -> "Part":
        self.reads.append((start, stop))
        return Part(self.values[start:stop])


class Part:
    def __init__(self, values: Any) -> None:
        self.values = values


def load(tensor: Any) -> Any:
    return tensor.values


def stack(items: list[Any], dim: int = 0) -> Any:
    return np.stack(items, dim)


def stored(seed: int) -> Any:
    meta = LazyNumpyTensor.meta_with_dtype_and_shape(np.float16, (ROWS, COLUMNS))
    return LazyNumpyTensor(meta=meta, args=(Stored(seed),), func=load)


def stacked(items: list[Any]) -> Any:
    meta = LazyNumpyTensor.meta_with_dtype_and_shape(np.float32, (len(items), ROWS, COLUMNS))
    return LazyNumpyTensor(meta=meta, args=(items,), kwargs={"dim": 0}, func=stack)


def bf16(tensor: Any) -> Any:
    return gguf.quants.quantize(tensor, gguf.GGMLQuantizationType.BF16)


GRAPHS = {
    "stored": lambda: stored(0),
    "widened": lambda: stored(0).astype(np.float32),
    "rounded": lambda: bf16(stored(0).astype(np.float32)),
    "experts": lambda: bf16(stacked([stored(n).astype(np.float32) for n in range(3)])),
    "scaled": lambda: stored(0).astype(np.float32) * 0.5,
}
WHOLE = {
    "transposed": lambda: bf16(stored(0).astype(np.float32).T),
    "permuted": lambda: bf16(stored(0).astype(np.float32).reshape(2, 2, 6, COLUMNS).swapaxes(1, 2).reshape(24, 64)),
    "squared": lambda: (lambda value: value * value)(stored(0).astype(np.float32)),
}


@pytest.mark.parametrize("name", [*GRAPHS, *WHOLE])
def test_any_rows_have_the_bytes_of_gguf_own_evaluation(name: str) -> None:
    make = {**GRAPHS, **WHOLE}[name]
    expected = LazyNumpyTensor.to_eager(make()).tobytes()
    served = TensorBytes({"t": make()}, gguf.LazyBase, None)
    rng = np.random.default_rng(7)
    for _ in range(40):
        start, stop = sorted(rng.integers(0, len(expected), 2))
        assert bytes(served.read("t", start, stop - start)) == expected[start:stop]
    with pytest.raises(EOFError, match=f"ends at byte {len(expected)}"):
        served.read("t", 0, len(expected) + 1)


@pytest.mark.parametrize("name", GRAPHS)
def test_row_by_row_graphs_read_the_requested_rows_alone(name: str) -> None:
    tensor = GRAPHS[name]()
    served = TensorBytes({"t": tensor}, gguf.LazyBase, None)
    width = tensor.shape[-1] * tensor.dtype.itemsize
    served.read("t", 3 * width, 2 * width)
    leaf: Any = tensor
    while not isinstance(leaf, Stored):
        leaf = leaf[0] if isinstance(leaf, list) else leaf._args[0]
    assert leaf.reads == [(3, 5)]
    assert served.whole_elements() == 0


def test_the_largest_part_that_is_computed_whole_is_known() -> None:
    tensors = {name: make() for name, make in {**GRAPHS, **WHOLE}.items()}
    assert TensorBytes(tensors, gguf.LazyBase, None).whole_elements() == ROWS * COLUMNS
