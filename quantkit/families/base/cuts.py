"""What a rule takes from each of its source tensors: whole tensors, rows, columns, halves, heads in another order."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from quantkit.families.base.family import Family, Rule, Take
from quantkit.families.base.fused import rows
from quantkit.families.base.hyperparameters import Hyperparameters
from quantkit.families.base.mapped import MappedTensor, Part
from quantkit.families.base.projector import Projector
from quantkit.families.base.rotary import interleave_rotary_rows

STACKED = {"expert": "n_expert", "head": "n_head", "kv_head": "n_head_kv", "stream": "n_stream"}
"""Placeholders of a source name over which tensors are stacked, and the size that counts them."""


class Cuts:
    """The cuts of a family's rules. All layers of one shape share them."""

    def __init__(self, family: Family | Projector, sizes: Hyperparameters) -> None:
        self.family, self.sizes = family, sizes
        self._cuts: dict[tuple[int, tuple[int, ...]], tuple[tuple[Take, ...], bool]] = {}

    def tensor(
        self, rule: Rule, sources: Iterable[tuple[str, str | None]], shape: tuple[int, ...], layer: int | None
    ) -> MappedTensor:
        """A tensor of the GGUF. `sources`: names in the checkpoint, each with that of its scales; `shape`: of each."""
        cuts, several = self._of(rule, shape, layer)
        parts = tuple(Part(source, cut, scales) for source, scales in sources for cut in cuts)
        one = _cut_shape(shape, cuts[0])
        stacked = several or bool(rule.parts) or stacked_over(rule) is not None
        step = one[-2] if cuts[0].transposed else cuts[0].step
        target = rule.target.format(layer=layer)
        shape = (len(parts), *one) if stacked else one
        if rule.reshaped is None:
            factors = rule.factors(self.sizes) if rule.factors else ()
            return MappedTensor(target, shape, parts, None, step, rule.adjust, factors=factors)
        final = tuple(self.family.dimension(self.sizes, name, layer) for name in rule.reshaped)
        while len(final) > 1 and final[0] == 1:
            final = final[1:]  # ggml's writer leaves outer dimensions of one out
        return MappedTensor(target, final, parts, None, 1, rule.adjust, shape)

    def _of(self, rule: Rule, shape: tuple[int, ...], layer: int | None) -> tuple[tuple[Take, ...], bool]:
        """The cuts from each source, and whether the rule has several; all layers of one shape share them.

        Sharing matters for gpt-oss-120b: the row indices of all its experts take 20 MB, and it has 36 layers.
        """
        key = (id(rule), shape)
        if key not in self._cuts:
            taken: Take | tuple[Take, ...] = Take()
            if rule.heads:
                n_head = self.family.dimension(self.sizes, rule.heads, layer)
                taken = Take(interleave_rotary_rows(n_head, shape[0]), step=shape[0] // n_head)
            elif rule.half is not None:
                taken = rows(rule.half * (shape[0] // 2), shape[0] // 2)
            elif rule.take:
                taken = rule.take(self.sizes)
            several = isinstance(taken, tuple)
            cuts = taken if isinstance(taken, tuple) else (taken,)
            self._cuts[key] = tuple(_resolved(cut, shape) for cut in cuts), several
        return self._cuts[key]


def stacked_over(rule: Rule) -> str | None:
    """The placeholder of the rule's source over which tensors are stacked."""
    return next((name for name in STACKED if f"{{{name}}}" in rule.source), None)


def _resolved(take: Take, shape: tuple[int, ...]) -> Take:
    """The cut with explicit indices: vectors become columns of one row, a transposed matrix lists its rows."""
    if len(shape) == 1:
        return Take(columns=take.rows)
    if take.transposed and take.rows is None:
        return replace(take, rows=np.arange(int(np.prod(shape[:-1])), dtype=np.int64))
    return take


def _cut_shape(shape: tuple[int, ...], take: Take) -> tuple[int, ...]:
    """Shape of the cut from one source tensor: unchanged, a matrix, or a vector for a vector."""
    if take.rows is None and take.columns is None:
        return shape
    n_columns = len(take.columns) if take.columns is not None else shape[-1]
    if len(shape) == 1:
        return (n_columns,)
    if take.rows is None:
        return (*shape[:-1], n_columns)
    n_rows = len(take.rows)
    return (n_columns, n_rows) if take.transposed else (n_rows, n_columns)
