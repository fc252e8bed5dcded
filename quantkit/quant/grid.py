"""The quantization grid: integers of a few bits, with a scale and a zero point for each group of inputs."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Grid:
    """A quantization grid.

    `bits`: bits of an integer. `group`: number of inputs that share a scale and a zero point; -1 for all inputs of a
    row. `symmetric`: every zero point is 2^(bits - 1), as in GPTQ; otherwise each group has its own. `least_zero`: the
    smallest zero point. It is 1 for GPTQ files, which store the zero point minus one: some kernels read 0 as 2^bits.
    """

    bits: int = 4
    group: int = 128
    symmetric: bool = False
    least_zero: int = 0

    @property
    def top(self) -> int:
        """The largest integer."""
        return (1 << self.bits) - 1

    def group_size(self, n_in: int) -> int:
        """Number of inputs of a group in rows of `n_in`."""
        return n_in if self.group == -1 else self.group

    def groups(self, n_in: int) -> NDArray[np.int32]:
        """The group of each input, i // group size: int32 (n_in,)."""
        return np.arange(n_in, dtype=np.int32) // np.int32(self.group_size(n_in))


@dataclass(frozen=True)
class Quantized:
    """A quantized matrix (n_out, n_in): weight[o, i] = (q[o, i] - zeros[o, g]) * scales[o, g] with g = groups[i].

    q, zeros: uint8 (n_out, n_in) and (n_out, n_groups). scales: float32 (n_out, n_groups), with values of float16.
    groups: int32 (n_in,), i // group size, or another order from GPTQ.
    """

    grid: Grid
    q: NDArray[np.uint8]
    scales: Array
    zeros: NDArray[np.uint8]
    groups: NDArray[np.int32]

    def dequantized(self) -> Array:
        """The dequantized matrix, float32 (n_out, n_in), as in a runtime."""
        scales, zeros = self.scales[:, self.groups], self.zeros[:, self.groups]
        return (self.q.astype(np.float32) - zeros.astype(np.float32)) * scales

    def rows(self, rows: slice) -> "Quantized":
        """Some rows of the matrix."""
        return replace(self, q=self.q[rows], scales=self.scales[rows], zeros=self.zeros[rows])
