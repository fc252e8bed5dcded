"""How far the correlations of a Gram matrix are trusted: chosen by the error on held-out samples, input by input.

Error feedback fits the Gram matrix H of the calibration text. Correlations by chance, and those that another text does
not have, make the error on that text larger. Two numbers limit it: `shrink`, a fraction of each diagonal entry that is
added to it, and `damp`, a fraction of the mean diagonal. Strong limits cost little on the held-out samples and gain
much on texts of other kinds. So the strongest limits within a tolerance of the least error are taken: 5 % for AWQ and
GPTQ, 15 % for GGUF types.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from quantkit.quant.factor import SHRINK, factor_gram, usual_damp
from quantkit.quant.grid import Array
from quantkit.workers import SERIAL, Workers, parts

_LEAST_TOKENS = 64
_ROWS = 64
_COLUMNS = 128
_FIRST = 2  # of the limits, the first ones that are tried


@dataclass(frozen=True)
class Trust:
    """`shrink`, `damp`: see the module. `error`: with feedback over without, on held-out samples; None if not measured.

    `feedback`: False if rounding each weight alone has no larger error on the held-out samples.
    """

    shrink: float
    damp: float
    error: float | None = None
    feedback: bool = True


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
) -> Trust:
    """The limits for an input.

    gram: float32 (n_in, n_in), H, the sum of x x' over `count` tokens.
    held_out: the part of it from held-out samples.
    steps: float32 (n_in,), the size of a rounding step of each column.

    rule: the limits to choose from, and how.

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
    errors = _measured(rule, _error_of(gram - held_gram, count - held_count, held_gram, rounding, workers))
    least = min(errors.values())
    if least == inf:
        return Trust(SHRINK, usual_damp(len(gram), count))
    if PACKED_RULE.tolerance * (least / alone) >= 1:
        return ALONE
    strongest = max(number for number, error in errors.items() if error <= rule.tolerance * least)
    return Trust(*rule.limits[strongest], errors[strongest] / alone)


def _measured(rule: Rule, error_of: Callable[[float, float], float]) -> dict[int, float]:
    """The errors of those of the rule's limits that decide the choice, by their numbers.

    The error falls to a minimum and rises after it: so it was for all 316 inputs of stories15M and SmolLM2 that were
    measured. So weaker limits are tried until they raise it, then stronger ones until they raise it too much. Each
    takes a factorisation: the first one is in the middle, and wide inputs, which have few tokens for each channel and
    whose factorisations take the longest, have their minimum there or above.
    """
    weakest = strongest = _FIRST
    errors = {_FIRST: error_of(*rule.limits[_FIRST])}
    while weakest > 0 and errors[weakest] <= min(errors.values()):
        weakest -= 1
        errors[weakest] = error_of(*rule.limits[weakest])
    while strongest + 1 < len(rule.limits) and errors[strongest] <= rule.tolerance * min(errors.values()):
        strongest += 1
        errors[strongest] = error_of(*rule.limits[strongest])
    return errors


def _error_of(
    fitted: Array, count: int, held_gram: Array, rounding: Array, workers: Workers
) -> Callable[[float, float], float]:
    """The error of feedback by its shrink and damp: infinite if the Gram matrix cannot be factored with them."""
    order, on_device = ascending(-fitted.diagonal()), device(fitted) is not None
    fitted, rounding = square(fitted, order), rounding[:, order]
    diagonal = copied(fitted.diagonal())
    if not on_device:  # a device has less room for one more matrix
        held_gram = square(held_gram, order)

    def error_of(shrink: float, damp: float) -> float:
        set_diagonal(fitted, diagonal * (1 + shrink))
        try:
            _, factor, _ = factor_gram(fitted, count, damp=damp, act_order=False, name="the input", workers=workers)
        except CalibrationError:
            return inf
        # T = R / diag(R), without an array for T
        errors = propagated(rounding * factor.diagonal(), factor)
        error = _energy(taken_back(errors, order) if on_device else errors, held_gram)
        return error if isfinite(error) else inf

    return error_of


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
