"""How far the correlations of a Gram matrix are trusted: chosen by the error on held-out samples, input by input.

Error feedback fits the Gram matrix H of the calibration text. Correlations by chance, and those that another text does
not have, make the error on that text larger. Two numbers limit it: `shrink`, a fraction of each diagonal entry that is
added to it, and `damp`, a fraction of the mean diagonal. Strong limits cost little on the held-out samples and gain
much on texts of other kinds. So the strongest limits within a tolerance of the least error are taken: 5 % for AWQ and
GPTQ, 15 % for GGUF types.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import inf, isfinite

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import CalibrationError
from quantkit.forward.arrays import (
    ascending,
    copied,
    device,
    empty,
    inner_product,
    namespace,
    place,
    set_diagonal,
    square,
)
from quantkit.quant.factor import SHRINK, Triangle, factor_gram, usual_damp
from quantkit.quant.grid import Array
from quantkit.workers import SERIAL, Workers, parts

_LEAST_TOKENS = 64
_ROWS = 64
_COLUMNS = 128
_FIRST = 2  # of the limits, the first ones that are tried


@dataclass(frozen=True)
class Trust:
    """`shrink`, `damp`: see the module. `error`: with feedback over without, on held-out samples; None if not measured.

    `feedback`: False if rounding each weight alone has no larger error on the held-out samples. `fitted`: the factor of
    the other samples' Gram matrix with these limits, if it was asked for and is still in memory.
    """

    shrink: float
    damp: float
    error: float | None = None
    feedback: bool = True
    fitted: Triangle | None = field(default=None, compare=False, repr=False)


# From the most trusting to the most careful.
LADDER = ((0.1, 0.01), (0.3, 0.03), (0.3, 0.2), (0.5, 0.5), (1.5, 0.5))


@dataclass(frozen=True)
class Rule:
    """The strongest of `limits` (shrink, damp) whose error is at most the least one times `tolerance` are taken."""

    tolerance: float
    limits: tuple[tuple[float, float], ...]


PACKED_RULE = Rule(1.05, LADDER)
GGUF_RULE = Rule(1.15, LADDER[1:])
"""Against a tolerance of 1.05, 1.15 lowers the divergence on WikiText, calibrated on the default text: q4_0 by 6 %,
q3_k_m by 3 %. There the least limits gain nothing over the second ones, and their factorisation takes time."""
ALONE = Trust(1e6, 0.0, 1.0, feedback=False)
"""Correlations count for nothing: the weighted search, each weight alone."""


@dataclass(frozen=True)
class HeldOut:
    """The part of a Gram matrix, float32 (n_in, n_in), that comes from the `count` tokens of held-out samples."""

    gram: Array | None = None
    count: int = 0


def choose_trust(
    gram: Array,
    count: int,
    held_out: HeldOut,
    steps: Array,
    workers: Workers = SERIAL,
    *,
    rule: Rule = PACKED_RULE,
    keep: bool = False,
) -> Trust:
    """The limits for an input.

    gram: float32 (n_in, n_in), H, the sum of x x' over `count` tokens.
    held_out: the part of it from held-out samples.
    steps: float32 (n_in,), the size of a rounding step of each column.

    rule: the limits to choose from, and how. keep: keep `Trust.fitted`, if that takes no factorisation more.

    The error of feedback is predicted for random rounding errors of these sizes, which ranks the limits as rounding
    does. With fewer than 64 held-out tokens, the limits depend on the number of tokens alone (`usual_damp`).
    """
    held_gram, held_count = held_out.gram, held_out.count
    if held_gram is None or held_count < _LEAST_TOKENS or count - held_count < _LEAST_TOKENS:
        return Trust(SHRINK, usual_damp(len(gram), count) if count else 0.0)
    rounding = np.random.default_rng(0).uniform(-1, 1, (_ROWS, len(gram))).astype(np.float32) * steps
    rounding = place(rounding, device(gram))
    alone = _energy(rounding, held_gram)
    if not alone > 0:
        return Trust(SHRINK, usual_damp(len(gram), count))
    trial = _Trial.of(gram - held_gram, held_gram, rounding, workers)
    errors, kept = _measured(rule, partial(trial.run, count - held_count), keep=keep)
    least = min(errors.values())
    if least == inf:
        return Trust(SHRINK, usual_damp(len(gram), count))
    if PACKED_RULE.tolerance * (least / alone) >= 1:
        return ALONE
    strongest = _strongest(errors, rule)
    fitted = trial.triangle(kept[strongest]) if strongest in kept else None
    return Trust(*rule.limits[strongest], errors[strongest] / alone, fitted=fitted)


def _strongest(errors: Mapping[int, float], rule: Rule) -> int:
    """The number of the strongest limits whose error is small enough."""
    least = min(errors.values())
    return max(number for number, error in errors.items() if error <= rule.tolerance * least)


def _measured(
    rule: Rule, run: Callable[[float, float], tuple[float, Array | None]], *, keep: bool
) -> tuple[dict[int, float], dict[int, Array]]:
    """The errors of those of the rule's limits that decide the choice, by their numbers.

    keep: with the factor of the strongest limits that may be chosen, if they were so all the time.

    The error falls to a minimum and rises after it: so it was for all 312 inputs of stories15M and SmolLM2 that were
    measured. So weaker limits are tried until they raise it, then stronger ones until they raise it too much. Each
    takes a factorisation: the first one is in the middle, and wide inputs, which have few tokens for each channel and
    whose factorisations take the longest, have their minimum there or above.
    """
    errors: dict[int, float] = {}
    kept: dict[int, Array] = {}

    def measure(number: int) -> None:
        errors[number], factor = run(*rule.limits[number])
        strongest = _strongest(errors, rule)
        if keep and factor is not None:
            kept[number] = factor
        for other in [other for other in kept if other != strongest]:
            del kept[other]

    weakest = strongest = _FIRST
    measure(_FIRST)
    while weakest > 0 and errors[weakest] <= min(errors.values()):
        weakest -= 1
        measure(weakest)
    while strongest + 1 < len(rule.limits) and errors[strongest] <= rule.tolerance * min(errors.values()):
        strongest += 1
        measure(strongest)
    return errors, kept


@dataclass(frozen=True)
class _Trial:
    """Feedback by the Gram matrix of some samples, `fitted`, whose columns are in `order`, and its error on others.

    `diagonal`: of `fitted`, without the limits. `held_gram`: of the others; `rounding`: errors (n, n_in). Both have
    their columns in `order` too, but on a device, which has less room for one more matrix, `held_gram` as stored.
    """

    fitted: Array
    diagonal: Array
    held_gram: Array
    rounding: Array
    order: NDArray[np.intp]
    workers: Workers

    @classmethod
    def of(cls, fitted: Array, held_gram: Array, rounding: Array, workers: Workers) -> "_Trial":
        """Of Gram matrices and errors whose columns are as stored."""
        order = ascending(-fitted.diagonal())
        fitted = square(fitted, order)
        if device(fitted) is None:
            held_gram = square(held_gram, order)
        return cls(fitted, copied(fitted.diagonal()), held_gram, rounding[:, order], order, workers)

    def run(self, count: int, shrink: float, damp: float) -> tuple[float, Array | None]:
        """The error with these limits, infinite where `fitted`, of `count` tokens, has no factor, and the factor R."""
        set_diagonal(self.fitted, self.diagonal * (1 + shrink))
        try:
            _, factor, _ = factor_gram(
                self.fitted, count, damp=damp, act_order=False, name="the input", workers=self.workers
            )
        except CalibrationError:
            return inf, None
        # T = R / diag(R), without an array for T
        errors = propagated(self.rounding * factor.diagonal(), factor)
        error = _energy(errors if device(errors) is None else taken_back(errors, self.order), self.held_gram)
        return (error if isfinite(error) else inf), factor

    def triangle(self, factor: Array) -> Triangle:
        """T and its pivots, from a factor R of `run`, which it replaces."""
        pivots = copied(factor.diagonal())
        importance = empty((len(pivots),), pivots)
        importance[self.order] = pivots * pivots
        factor /= pivots
        return Triangle(self.order, factor, importance)


def propagated(rounding: Array, triangle: Array, inverses: Sequence[Array] | None = None) -> Array:
    """The errors E of feedback whose roundings differ from their targets by `rounding` (n, n_in): E T = rounding.

    triangle: T, upper triangular, as in `Factor`, in the order of rounding.
    inverses: those of its diagonal blocks, see `block_inverses`, for many calls with one T.
    """
    xp, errors = namespace(rounding), empty(tuple(rounding.shape), rounding)
    for number, block in enumerate(parts(len(triangle), _COLUMNS)):
        target = rounding[:, block] - errors[:, : block.start] @ triangle[: block.start, block]
        if inverses is None:
            errors[:, block] = xp.linalg.solve(triangle[block, block].T, target.T).T
        else:
            errors[:, block] = target @ inverses[number]
    return errors


def propagated_back(wanted: Array, triangle: Array, inverses: Sequence[Array]) -> Array:
    """Y (n, n_in) with Y T' = `wanted`, T as in `propagated`; the inverses are those of `block_inverses`."""
    solved = empty(tuple(wanted.shape), wanted)
    for block, inverse in zip(reversed(list(parts(len(triangle), _COLUMNS))), reversed(inverses), strict=True):
        target = wanted[:, block] - solved[:, block.stop :] @ triangle[block, block.stop :].T
        solved[:, block] = target @ inverse.T
    return solved


def block_inverses(feedback: Array) -> list[Array]:
    """The inverses of the diagonal blocks of T, for `propagated`. feedback: T or T - 1, as in `Factor`."""
    inverse = namespace(feedback).linalg.inv
    blocks = [copied(feedback[block, block]) for block in parts(len(feedback), _COLUMNS)]
    for block in blocks:
        set_diagonal(block, namespace(block).ones_like(block.diagonal()))
    return [inverse(block) for block in blocks]


def taken_back(errors: Array, order: NDArray[np.int64]) -> Array:
    """Errors (n, n_in), whose columns are in `order`, with the columns as stored."""
    stored = empty(tuple(errors.shape), errors)
    stored[:, order] = errors
    return stored


def step_sizes(weight: Array, group: int) -> Array:
    """The root mean square over the rows (n, n_in) of each group's largest weight: float32 (n_in,).

    A rounding step is proportional to it.
    """
    width = group if weight.shape[1] % group == 0 else weight.shape[1]
    largest = np.abs(weight.reshape(len(weight), -1, width)).max(axis=2)
    return np.repeat(np.sqrt(np.mean(largest * largest, axis=0)), width).astype(np.float32)


def _energy(errors: Array, gram: Array) -> float:
    return inner_product(errors @ gram, errors)
