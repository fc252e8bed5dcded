"""Expert routing of a layer, and the extra tokens that calibrate an expert which received too few."""

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
