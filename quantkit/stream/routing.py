"""Expert routing of a layer, and the extra tokens that calibrate an expert which received too few."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EXPERT_FLOOR = 256
"""An expert that receives fewer tokens than this is calibrated on extra tokens too."""


@dataclass(frozen=True)
class Routes:
    """The experts of each token, best first, and their weights; both (n_samples, n_tokens, experts per token)."""

    chosen: NDArray[np.int64]
    share: NDArray[np.float32]

    def others(self, expert: int, floor: int) -> dict[int, NDArray[np.int64]]:
        """Rows by sample of tokens not routed to `expert`, evenly spread, until `expert` has `floor` tokens."""
        routed = (self.chosen == expert).any(axis=-1)
        free = np.flatnonzero(~routed.reshape(-1))
        n_picked = min(floor - int(routed.sum()), len(free))
        if n_picked <= 0:
            return {}
        picked = free[np.linspace(0, len(free) - 1, n_picked).round().astype(np.int64)]
        length = routed.shape[1]
        return {int(sample): picked[picked // length == sample] % length for sample in np.unique(picked // length)}


@dataclass(frozen=True)
class RoutedExpert:
    """An expert of a layer and its tokens. `extra`: rows by sample of tokens of others, see `Routes.others`."""

    layer: int
    number: int
    routes: Routes
    extra: Mapping[int, NDArray[np.int64]]

    @property
    def n_tokens(self) -> int:
        """Tokens that the router sends to the expert."""
        return int((self.routes.chosen == self.number).sum())

    def tokens_of(self, sample: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The rows of its tokens in a sample, and the place of the expert among those of each token."""
        rows, slots = np.nonzero(self.routes.chosen[sample] == self.number)
        return rows, slots
