"""The importance matrix that a calibration of ours gives: for the GGUF types of the same run, or as a file."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.imatrix.file import Imatrix, write_imatrix
from quantkit.imatrix.names import LinearKey, Squares, as_imatrix, collect_imatrix, imatrix_sources
from quantkit.outputs.calibration import CalibratedPlan
from quantkit.outputs.model import Model


@dataclass(frozen=True)
class Written:
    """A written importance matrix: how many tensors it weighs, and experts that no token came to, by tensor."""

    path: Path
    entries: int
    unseen: dict[str, int]


@dataclass(frozen=True)
class Importance:
    """What `plan` will know of each tensor of the GGUF."""

    plan: CalibratedPlan
    sources: dict[str, tuple[LinearKey, ...]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", imatrix_sources(self.plan.native))

    @property
    def name(self) -> str:
        """What the files made with it call it."""
        return f"{self.plan.samples.name}, calibrated here"

    def placeholder(self) -> Imatrix:
        """One of the right sizes, to plan with before there is a true one."""
        squares: dict[LinearKey, tuple[NDArray[np.float64], int]] = {}
        for layer in self.plan.layers:
            for each in layer.inputs:
                squares |= {(linear.name, linear.index): (np.ones(each.width), 1) for linear in each.linears}
        return self.of(squares)

    def of(self, squares: Squares) -> Imatrix:
        """The importance matrix of these sums."""
        sums, counts = collect_imatrix(squares, self.sources)
        tokens = self._tokens
        return as_imatrix(
            sums, counts, datasets=[self.plan.samples.name], chunks=len(tokens), chunk_size=tokens.shape[1]
        )

    def write(self, path: Path, squares: Squares) -> Written:
        """Write `path` in llama.cpp's GGUF format, under another name until it is whole. Raises OutputError."""
        sums, counts = collect_imatrix(squares, self.sources)
        tokens = self._tokens
        partial = path.with_name(path.name + ".partial")
        write_imatrix(
            partial,
            sums,
            counts,
            datasets=[self.plan.samples.name],
            chunk_size=int(tokens.shape[1]),
            chunks=len(tokens),
        )
        partial.replace(path)
        unseen = {name: int((count == 0).sum()) for name, count in counts.items()}
        return Written(path, len(sums), {name: number for name, number in unseen.items() if number})

    def recorded(self, model: Model) -> Model:
        """The model with its origin telling what it was calibrated on."""
        return replace(model, origin={**model.origin, "calibration": self.plan.samples.record()})

    @property
    def _tokens(self) -> NDArray[np.int32]:
        return self.plan.samples.tokens
