"""What a weight is rounded to: integers of a few bits, a scale and a zero point for each group of inputs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Grid:
    """`bits` of an integer; `group` inputs that share a scale and a zero point (-1: all inputs of a row).

    `symmetric`: the zero point is 2^(bits - 1) everywhere, as GPTQ has it; else it is an integer of its own, no smaller
    than `least_zero` (1 for GPTQ's files, which hold the zero point less one: some kernels read 0 back as 2^bits).
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
        """Inputs of a group in rows of `n_in`."""
        return n_in if self.group == -1 else self.group

    def groups(self, n_in: int) -> NDArray[np.int32]:
        """The group of each input, i // group size: int32 (n_in,)."""
        return np.arange(n_in, dtype=np.int32) // np.int32(self.group_size(n_in))


@dataclass(frozen=True)
class Quantized:
    """A quantized matrix (n_out, n_in): weight[o, i] = (q[o, i] - zeros[o, g]) * scales[o, g] with g = groups[i].

    q, zeros: uint8 (n_out, n_in) and (n_out, n_groups); scales: float32 of float16's values, (n_out, n_groups);
    groups: int32 (n_in,), i // group size unless GPTQ made its groups in another order.
    """

    grid: Grid
    q: NDArray[np.uint8]
    scales: Array
    zeros: NDArray[np.uint8]
    groups: NDArray[np.int32]

    def dequantized(self) -> Array:
        """The matrix as a runtime sees it, float32 (n_out, n_in)."""
        scales, zeros = self.scales[:, self.groups], self.zeros[:, self.groups]
        return (self.q.astype(np.float32) - zeros.astype(np.float32)) * scales
