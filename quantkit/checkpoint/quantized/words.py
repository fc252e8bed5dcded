"""Integers of a few bits in 32-bit words, unpacked.

Value k of a row of words is at bit k * bits of the row; bit 0 is the lowest bit of the first word.
"""

import numpy as np
from numpy.typing import NDArray


def integers_of(
    words: NDArray[np.uint32], numbers: NDArray[np.int64], bits: int, shifts: NDArray[np.int64] | None = None
) -> NDArray[np.uint8]:
    """The integers with these adjacent numbers in each row of words: (rows, len(numbers)).

    `shifts`: the bit offsets of a word's integers, if they are not in order.
    """
    mask = np.uint32((1 << bits) - 1)
    if 32 % bits == 0:
        shifts = np.arange(0, 32, bits) if shifts is None else shifts
        first, last = numbers[0] // len(shifts), numbers[-1] // len(shifts) + 1
        values = words[:, first:last, None] >> shifts.astype(np.uint32)
        values &= mask
        start = numbers[0] - first * len(shifts)
        return values.astype(np.uint8).reshape(len(words), -1)[:, start : start + len(numbers)]
    at = numbers * bits
    word, shift = at // 32, (at % 32).astype(np.uint32)
    values = words[:, word] >> shift
    beyond = np.flatnonzero(at % 32 + bits > 32)
    if len(beyond):
        values[:, beyond] |= words[:, word[beyond] + 1] << (np.uint32(32) - shift[beyond])
    return (values & mask).astype(np.uint8)
