"""A tensor of the GGUF, and the tensors of the checkpoint that it is made of."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantkit.families.base.family import Adjust, Factor, Take

MXFP4_BLOCK = 32
_WHOLE = Take()


@dataclass(frozen=True)
class Part:
    """A source tensor and the matrix to cut from it. `scales`: the tensor with the scales of its MXFP4 blocks.

    `times`: a tensor of one row whose elements multiply those of the source, a vector, in float32.
    """

    source: str
    take: Take = _WHOLE
    scales: str | None = None
    times: str | None = None


@dataclass(frozen=True)
class MappedTensor:
    """A tensor of the GGUF: `parts` stacked along a new first axis, or `values` computed.

    `shape` is in numpy order. Rows may be taken in steps of `row_step`: within a step the order of rows is closed.
    `cut_shape`: the shape of what the parts give where `shape` divides the same elements otherwise. `factors` multiply
    the rows in float32, one after the other: numbers, or one number a row.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...] = ()
    values: NDArray[np.float32] | None = None
    row_step: int = 1
    adjust: Adjust | None = None
    cut_shape: tuple[int, ...] | None = None
    factors: tuple[Factor, ...] = ()

    @property
    def part_rows(self) -> int:
        """Rows of each part."""
        return int(np.prod(self.shape[:-1], dtype=np.int64)) // max(len(self.parts), 1)

    @property
    def is_product(self) -> bool:
        """Whether two tensors are multiplied."""
        return bool(self.parts) and self.parts[0].times is not None

    @property
    def is_mxfp4(self) -> bool:
        """Whether the tensor is stored in MXFP4 blocks, which are copied."""
        return bool(self.parts) and self.parts[0].scales is not None
