"""Which experts of a layer each token is sent to, and whom an expert that few were sent to learns from."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EXPERT_FLOOR = 256
"""An expert that fewer tokens than this were routed to learns from others too."""


@dataclass(frozen=True)
class Routes:
    """Which experts each token goes to, best first, and how much each counts: (samples, tokens, experts per token)."""

    chosen: NDArray[np.int64]
    share: NDArray[np.float32]

    def others(self, expert: int, floor: int) -> dict[int, NDArray[np.int64]]:
        """Rows by sample of tokens that did not go to `expert`, evenly spread: as many as it lacks of `floor`."""
        routed = (self.chosen == expert).any(axis=-1)
        free = np.flatnonzero(~routed.reshape(-1))
        wanted = min(floor - int(routed.sum()), len(free))
        if wanted <= 0:
            return {}
        picked = free[np.linspace(0, len(free) - 1, wanted).round().astype(np.int64)]
        length = routed.shape[1]
        return {int(sample): picked[picked // length == sample] % length for sample in np.unique(picked // length)}
