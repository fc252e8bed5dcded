"""A compute graph for its memory alone: shapes, strides, views and operands.

The operations are ggml's (ggml/src/ggml.c); only the shape of the result matters here, and whether it may
overwrite an operand (ggml_op_can_inplace of ggml-alloc.c). Shapes are ggml's: innermost dimension first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

F32, F16, I32, I64 = 4, 2, 4, 8

Shape = tuple[int, int, int, int]
Stride = tuple[float, float, float, float]
WITHOUT_GAPS: Stride = (0.0, 0.0, 0.0, 0.0)
"""Stands for the strides of a tensor without gaps."""


@dataclass(slots=True, eq=False)
class Tensor:
    """A node or a leaf. `kind` is "op", "input", "constant", "cache" or "wait" (a copy).

    Inputs and constants are allocated before the graph runs. `size` is bytes of an element; `stride` bytes to the next
    one in each dimension. `root` is the tensor whose memory a view is a part of. `weight` is the name in the file of
    the weight that an operation takes, which decides where it runs; `layer` the layer of a cache or of flash attention.
    `kept`: nothing may overwrite it, the caller reads it. `on_cpu`: llama.cpp computes it on the CPU. `norm_of`:
    the layer of a norm.
    """

    shape: Shape
    size: float
    src: "tuple[Tensor, ...]" = ()
    kind: str = field(default="op", kw_only=True)
    inplace: bool = field(default=False, kw_only=True)
    root: "Tensor | None" = field(default=None, kw_only=True)
    stride: Stride = field(default=WITHOUT_GAPS, kw_only=True)
    name: str = field(default="", kw_only=True)
    weight: str | None = field(default=None, init=False)
    layer: int | None = field(default=None, init=False)
    norm_of: int | None = field(default=None, init=False)
    kept: bool = field(default=False, init=False)
    on_cpu: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.root is not None:
            self.root = self.root.root or self.root
        if self.stride is WITHOUT_GAPS:
            self.stride = contiguous(self.shape, self.size)

    @property
    def nbytes(self) -> int:
        """Bytes from the first element to the last, with the gaps between them (ggml_nbytes)."""
        if not all(self.shape):
            return 0
        (a, b, c, d), (step_a, step_b, step_c, step_d) = self.shape, self.stride
        return int(self.size + ((a - 1) * step_a + (b - 1) * step_b + (c - 1) * step_c + (d - 1) * step_d))

    def same_layout(self, other: "Tensor") -> bool:
        """Whether shape, element size and strides are equal."""
        return self.shape == other.shape and self.size == other.size and self.stride == other.stride


class Graph:
    """Nodes in execution order, leaves in the order of their first use."""

    def __init__(self) -> None:
        self.nodes: list[Tensor] = []
        self.leaves: list[Tensor] = []
        self._visited: set[int] = set()

    def expand(self, tensor: Tensor) -> Tensor:
        """Append the operands of `tensor` from left to right, then the tensor (ggml_build_forward_expand)."""
        stack: list[tuple[Tensor, int]] = [(tensor, 0)] if id(tensor) not in self._visited else []
        self._visited.add(id(tensor))
        while stack:
            node, at = stack[-1]
            while at < len(node.src) and id(node.src[at]) in self._visited:
                at += 1
            if at < len(node.src):
                stack[-1] = (node, at + 1)
                self._visited.add(id(node.src[at]))
                stack.append((node.src[at], 0))
                continue
            (self.nodes if node.kind == "op" else self.leaves).append(node)
            stack.pop()
        return tensor


def contiguous(shape: Shape, size: float) -> Stride:
    """Strides of a tensor without gaps."""
    a, b, c, _ = shape
    return (size, size * a, size * a * b, size * a * b * c)


def dims(*sizes: int) -> Shape:
    """A shape of four dimensions."""
    a, b, c, d = (*sizes, 1, 1, 1)[:4]
    return (a, b, c, d)


def leaf(name: str, *sizes: int, size: int = F32) -> Tensor:
    """An input of the graph, allocated from the start."""
    return Tensor(dims(*sizes), size, kind="input", name=name)


def cache_of(name: str, *sizes: int, size: float = F16, layer: int | None = None) -> Tensor:
    """A cache, outside the graph's memory. `size`: bytes of an element, a fraction in a quantized one."""
    tensor = Tensor(dims(*sizes), size, kind="cache", name=name)
    tensor.layer = layer
    return tensor


def matmul(weight: str, rows: int, x: Tensor) -> Tensor:
    """W x for a weight of `rows` rows (ggml_mul_mat)."""
    out = Tensor((rows, *x.shape[1:]), F32, (x,))
    out.weight = weight
    return out


def product(a: Tensor, b: Tensor) -> Tensor:
    """The matrix product of two computed tensors or caches."""
    return Tensor((a.shape[1], b.shape[1], b.shape[2], b.shape[3]), F32, (a, b))


def matmul_id(weight: str, rows: int, x: Tensor, ids: Tensor) -> Tensor:
    """As `matmul`, each token with its own experts (ggml_mul_mat_id)."""
    out = Tensor((rows, ids.shape[0], x.shape[2], 1), F32, (x, ids))
    out.weight = weight
    return out


def same(a: Tensor, *others: Tensor, weight: str | None = None, inplace: bool = True) -> Tensor:
    """An elementwise operation whose result may overwrite an operand: add, mul, scale, rope, norms."""
    out = Tensor(a.shape, a.size, (a, *others), inplace=inplace)
    out.weight = weight
    return out


def fresh(sizes: Sequence[int], *src: Tensor, size: float = F32) -> Tensor:
    """An operation whose result needs new memory."""
    return Tensor(dims(*sizes), size, src)


def view(a: Tensor, sizes: Sequence[int], stride: Sequence[float] | None = None) -> Tensor:
    """A part of a tensor, or without `stride` the tensor in another shape."""
    shape = dims(*sizes)
    if stride is None:
        return Tensor(shape, a.size, (a,), root=a)
    b, c, d = (*stride, 0, 0)[:3]
    b = b or shape[0] * a.size
    c = c or b * shape[1]
    d = d or c * shape[2]
    return Tensor(shape, a.size, (a,), root=a, stride=(a.size, b, c, d))


def permuted(a: Tensor) -> Tensor:
    """The two middle dimensions exchanged (ggml_permute 0 2 1 3)."""
    s, t = a.shape, a.stride
    return Tensor((s[0], s[2], s[1], s[3]), a.size, (a,), root=a, stride=(t[0], t[2], t[1], t[3]))


def stored(cache: Tensor, x: Tensor, index: Tensor) -> Tensor:
    """Rows written into a cache (ggml_set_rows): a view of the cache."""
    return Tensor(cache.shape, cache.size, (x, index, cache), root=cache)
