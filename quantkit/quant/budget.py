"""The type of each tensor with the least total cost for a total size within a budget.

The relaxed problem has a Lagrange multiplier, the price of a byte: each tensor takes the type that minimises cost +
price x size. That type lies on the lower convex hull of its types (Shoham and Gersho 1988, for bit allocation). The
steps between neighbours on all hulls are taken in the order of their gain for a byte. The bytes that are left are then
spent on single steps, also to types that are not on a hull.
"""

from collections.abc import Sequence
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

Sizes = NDArray[np.int64]
Costs = NDArray[np.float64]


def choose_within(sizes: Sequence[Sizes], costs: Sequence[Costs], budget: int) -> list[int]:
    """For each tensor the index of its type.

    sizes, costs: for each tensor one value for each of its types, in any order; sizes in bytes.
    budget: the largest total size, in bytes.

    Raises ValueError when the smallest types together exceed the budget.
    """
    hulls = [_lower_hull(size, cost) for size, cost in zip(sizes, costs, strict=True)]
    chosen = [hull[0] for hull in hulls]
    remaining = budget - sum(int(size[index]) for size, index in zip(sizes, chosen, strict=True))
    if remaining < 0:
        raise ValueError(f"the smallest types take {budget - remaining} bytes, more than {budget}")
    queue: list[tuple[float, int, int]] = []

    def offer(tensor: int, step: int) -> None:
        if step < len(hulls[tensor]):
            before, after = hulls[tensor][step - 1], hulls[tensor][step]
            gain = costs[tensor][before] - costs[tensor][after]
            heappush(queue, (-gain / float(sizes[tensor][after] - sizes[tensor][before]), tensor, step))

    for tensor in range(len(hulls)):
        offer(tensor, 1)
    while queue:
        _, tensor, step = heappop(queue)
        more = int(sizes[tensor][hulls[tensor][step]] - sizes[tensor][chosen[tensor]])
        if more > remaining:
            # later steps of this tensor are not neighbours of its type any more
            continue
        chosen[tensor], remaining = hulls[tensor][step], remaining - more
        offer(tensor, step + 1)
    return _spend(sizes, costs, chosen, remaining)


def _lower_hull(sizes: Sizes, costs: Costs) -> list[int]:
    """The types on the lower convex hull of (size, cost), from the smallest size to the least cost."""
    hull: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda index: (sizes[index], costs[index])):
        if hull and costs[index] >= costs[hull[-1]]:
            continue
        while len(hull) > 1 and _slope(sizes, costs, hull[-2], hull[-1]) >= _slope(sizes, costs, hull[-1], index):
            hull.pop()
        hull.append(index)
    return hull


def _slope(sizes: Sizes, costs: Costs, first: int, second: int) -> float:
    return float((costs[second] - costs[first]) / (sizes[second] - sizes[first]))


def _spend(sizes: Sequence[Sizes], costs: Sequence[Costs], chosen: list[int], remaining: int) -> list[int]:
    """Take the single step with the largest gain that fits into the bytes that are left, until none does."""
    while True:
        best: tuple[float, int, int] | None = None
        for tensor, index in enumerate(chosen):
            gains = costs[tensor][index] - costs[tensor]
            gains = np.where(sizes[tensor] - sizes[tensor][index] <= remaining, gains, 0.0)
            other = int(gains.argmax())
            if gains[other] > 0 and (best is None or gains[other] > best[0]):
                best = (float(gains[other]), tensor, other)
        if best is None:
            return chosen
        _, tensor, other = best
        remaining -= int(sizes[tensor][other] - sizes[tensor][chosen[tensor]])
        chosen[tensor] = other
