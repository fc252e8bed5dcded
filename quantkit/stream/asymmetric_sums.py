"""Sums over the tokens of two models: of an input as the source gives it, and as the model that is rounded gives it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from quantkit.forward.arrays import Array, device, namespace, place
from quantkit.forward.linears import Input
from quantkit.quant.cross import Cross, basis_of
from quantkit.quant.fold import is_loaded, matrix
from quantkit.stream.statistics import WIDE_BLOCK, Statistics
from quantkit.stream.watcher import Tensors
from quantkit.texts.mixed import HELD_OUT
from quantkit.workers import SERIAL, Workers, parts

Pairs = Sequence[Sequence[Array]]

# Samples that are summed together: copies of their inputs stay in the cache of the CPU.
_TOGETHER = 4
_ROWS = 512  # of a narrow sum that one thread adds to
# A token of more than this many times the median energy of a sample's counts less, see `limited`.
_MASSIVE = 16


@dataclass(frozen=True)
class AsymmetricSums:
    """Sums over the tokens of an input x of the source and the same input x~ of the rounded model.

    `statistics`: of x~. `cross`: D, the sum of (x - x~) x~', where the Gram matrix is, with less of the tokens with
    massive activations, and S for the last input of a layer. `held_out`: that of the samples which `statistics` holds
    out, a part of `cross`, where it is used.
    """

    statistics: Statistics
    cross: Cross
    held_out: Cross | None = None

    @classmethod
    def of(
        cls, entry: Input, source: Tensors, to: Any, workers: Workers, *, hold_out: bool, residual: bool = False
    ) -> "AsymmetricSums":
        """Empty sums of an input on the device `to`. `source`: tensors, those of its linears too if they are loaded."""
        basis = None
        if all(is_loaded(source, linear) for linear in entry.linears):
            weights = [place(matrix(source, linear), to) for linear in entry.linears]
            basis = basis_of(weights, workers if to is None else SERIAL)
        statistics = Statistics.of(entry.width, gram=True, to=to)
        shape = entry.width if basis is None else len(basis), entry.width
        of_residual = (entry.linears[0].n_out, entry.width) if residual else None

        def zeros(shape: tuple[int, int]) -> Array:
            made: Array = place(np.zeros(shape, np.float32), to)
            return made

        crosses = [Cross(zeros(shape), basis, of_residual and zeros(of_residual)) for _ in range(1 + hold_out)]
        return cls(statistics, *crosses)

    def add(self, pairs: Pairs, extra: Pairs, workers: Workers) -> None:
        """Count the tokens of pairs (x, x~), each (n, width), and perhaps the states' error (n, n_out).

        Those of `extra` count as in `Statistics.add`, and in `cross`.
        """
        pairs, extra = ([limited(*pair) for pair in some] for some in (pairs, extra))
        on_device, is_wide = device(self.cross.sums) is not None, self.statistics.is_wide
        together = max(1, len(pairs)) if on_device else 1 if is_wide else _TOGETHER
        if self.cross.residual is not None:
            rows = list(parts(len(self.cross.residual), _ROWS))
            (SERIAL if on_device else workers).map(partial(self._add_residual, pairs, extra), rows)
        chunks, first = list(parts(len(pairs), together)), self.statistics.pieces + 1
        groups = [pairs[some] for some in chunks]
        holds = self.held_out is not None
        numbered = [(holds and (first + number) % HELD_OUT == 0, pair) for number, pair in enumerate(pairs)]
        by_use: list[tuple[bool, Pairs]] = [
            (use, [pair for held, pair in numbered[some] if held == use]) for some in chunks for use in (True, False)
        ]
        by_use.append((False, extra))
        if on_device:
            self._count(groups, extra, SERIAL)
            self._add_rows(by_use, slice(None))
        elif is_wide:
            self._count(groups, extra, workers)
            rows = list(parts(len(self.cross.sums), WIDE_BLOCK if self.cross.basis is None else _ROWS))
            for some in by_use:
                workers.map(partial(self._add_rows, [some]), rows)
        else:
            rows = list(parts(len(self.cross.sums), _ROWS))
            jobs = [
                partial(self._count, groups, extra, SERIAL),
                *(partial(self._add_rows, by_use, some) for some in rows),
            ]
            workers.map(lambda job: job(), jobs)

    def _count(self, groups: Sequence[Pairs], extra: Pairs, workers: Workers) -> None:
        for group in groups:
            self.statistics.add([pair[1] for pair in group], (), workers)
        self.statistics.add((), [pair[1] for pair in extra], workers)

    def _add_residual(self, pairs: Pairs, extra: Pairs, rows: slice) -> None:
        """Add to rows of S, see `add`."""
        of_all, of_held_out = self.cross.residual, None if self.held_out is None else self.held_out.residual
        assert of_all is not None
        for number, (_, seen, residual) in enumerate(pairs, start=self.statistics.pieces + 1):
            product = residual[:, rows].T @ seen
            of_all[rows] += product
            if of_held_out is not None and number % HELD_OUT == 0:
                of_held_out[rows] += product
        for _, seen, residual in extra:
            of_all[rows] += residual[:, rows].T @ seen

    def _add_rows(self, groups: Sequence[tuple[bool, Pairs]], rows: slice) -> None:
        """Add to rows of `cross`, and of `held_out` the groups that are."""
        xp, basis = namespace(self.cross.sums), self.cross.basis
        for is_held_out, group in groups:
            if not group:
                continue
            if basis is None:
                difference = [x[:, rows] - seen[:, rows] for x, seen, *_ in group]
            else:
                difference = [(x - seen) @ basis[rows].T for x, seen, *_ in group]
            inputs = [seen for _, seen, *_ in group]
            d, x = (of[0] if len(of) == 1 else xp.concatenate(of) for of in (difference, inputs))
            products = d.T @ x
            sums = self.cross.sums
            sums[rows] += products
            if is_held_out and self.held_out is not None:
                held_out = self.held_out.sums
                held_out[rows] += products


def limited(x: Array, seen: Array, *residual: Array) -> tuple[Array, ...]:
    """A pair (x, x~), each (n, width), where tokens with massive activations have an x nearer to x~, and less residual.

    A model's first token, and in some models delimiters, may have thousands of times the energy of other tokens (Sun et
    al. 2024, arXiv 2402.17762). D would be theirs alone, and what corrects their errors adds a part of itself to other
    tokens. With x - x~ reduced, W D H^-1 corrects the others and leaves these tokens' outputs as they are.
    """
    if not len(x):
        return x, seen, *residual
    part = _part(x, seen)
    if part is None:
        return x, seen, *residual
    return seen + part * (x - seen), seen, *(part * r for r in residual)


def _part(x: Array, seen: Array) -> Array | None:
    """How much each token's difference of x and x~ counts, (n, 1); None if all count in full."""
    xp = namespace(x)
    energy = xp.maximum((x * x).sum(1), (seen * seen).sum(1))
    limit = _MASSIVE * float(xp.median(energy))
    if not 0 < limit < float(energy.max()):
        return None
    part: Array = (limit / xp.clip(energy, limit, None))[:, None]
    return part
