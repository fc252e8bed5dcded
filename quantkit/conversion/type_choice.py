"""The types of a file of a given size, chosen by what they cost the model.

The KL divergence is to first order a sum over the tensors: what an error of a tensor's group costs (`stream/
sensitivity.py`) times the tensor's error. The error of a type is measured on sampled rows, with the importance of the
columns that the calibration found. `quant/budget.py` then chooses.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from quantkit.errors import PassingError
from quantkit.files import write_atomically
from quantkit.gguf.kernels import dequantize_rows, quantize_rows
from quantkit.imatrix.names import LinearKey
from quantkit.outputs.calibration import CalibrationPlan
from quantkit.outputs.gguf_files import GgufPlan
from quantkit.outputs.model import ModelTensor, widen
from quantkit.outputs.plan import ConversionPlan
from quantkit.outputs.target import Candidates
from quantkit.progress import Progress
from quantkit.quant.budget import choose_within
from quantkit.stream.sensitivity import (
    EMBEDDING,
    HEAD,
    CoarseRounding,
    Group,
    Sensitivity,
    coarsely_rounded,
    groups_of,
    sensitivity,
)
from quantkit.workers import Workers

_T = GGMLQuantizationType
_EXACT = (_T.F32, _T.F16, _T.BF16)
# The windows take this share of the calibration's tokens, over all groups together.
_SHARE = 0.1
_WINDOWS, _LEAST_TOKENS, _MOST_TOKENS = 8, 32, 256
_MOST_GROUPS, _MOST_RANGES = 24, 3
# Size of the sample that measures the error of a type: weights, least number of rows, largest number of matrices.
_SAMPLED, _ROWS, _MATRICES = 1 << 14, 8, 8
# A group never counts less than this share of the median group: its measured divergence may be 0 by chance.
_LEAST_COST = 0.02
_FEW_BITS = 3.5
# Divergence of a type after error feedback, over that without it: the output error on held-out samples (geometric mean
# over 20 inputs of SmolLM2 with noisy weights), times 1.16, which fits the divergence of whole files. Types with minima
# gain less, because llama.cpp's own search does more for them. Types without levels gain nothing.
_WITH_FEEDBACK = {
    _T.Q2_K: 0.49, _T.Q3_K: 0.44, _T.Q4_K: 0.53, _T.Q5_K: 0.43, _T.Q6_K: 0.41, _T.Q4_0: 0.36, _T.Q4_1: 0.51,
    _T.Q5_0: 0.36, _T.Q5_1: 0.45, _T.Q8_0: 0.24, _T.IQ4_NL: 0.39, _T.IQ4_XS: 0.43,
}  # fmt: skip


@dataclass(frozen=True)
class TypeChoice:
    """`types` by tensor; `divergence`: by group, mean KL in nats when it is coarsely rounded; `expected`: the sum."""

    types: Mapping[str, GGMLQuantizationType]
    divergence: Mapping[str, float]
    expected: float


def has_chosen_types(plan: ConversionPlan) -> bool:
    """Whether an earlier run of the same plan has chosen the types."""
    return _kept(plan).exists()


def choose_target_types(plan: ConversionPlan, gguf: GgufPlan, progress: Progress) -> TypeChoice:
    """Choose the types of the file of `gguf.request.target`; `gguf` has the importance matrix of this calibration.

    The choice is kept in the work folder, so that a resumed run has the same one.

    Raises:
        CalibrationError: the model's logits are not finite.
        CheckpointError, ReadError, OutputError: a tensor or the states cannot be read or written.
    """
    path = _kept(plan)
    if path.exists():
        return _load(path.read_text())
    calibration = plan.calibration
    assert calibration is not None
    options = gguf.candidates()
    bits = 8 * gguf.target_budget / gguf.n_elements
    levels = 3 if bits < _FEW_BITS else 7
    with Workers(plan.threads) as workers:
        groups_by_name, of_tensor = _grouping(calibration)
        measured = _measure(plan, calibration, groups_by_name, levels, workers, progress)
        names = _group_names(calibration, of_tensor)
        groups = [_groups_of_tensor(option.tensor.name, names, measured) for option in options]
        progress.start("choosing types", len(options))
        errors = workers.map(lambda option: _errors(gguf, option, measured, levels, progress), options)
    costs = _costs(options, errors, groups, measured)
    sizes = [np.array(option.bytes, np.int64) for option in options]
    chosen = choose_within(sizes, costs, gguf.target_budget)
    choice = TypeChoice(
        {option.tensor.name: option.types[index] for option, index in zip(options, chosen, strict=True)},
        measured.divergence,
        float(sum(cost[index] for cost, index in zip(costs, chosen, strict=True))),
    )
    write_atomically(path, _dump(choice))
    return choice


def _kept(plan: ConversionPlan) -> Path:
    return plan.work / "types.json"


def _grouping(calibration: CalibrationPlan) -> tuple[dict[str, Group], dict[str, str]]:
    """The groups by name, and tensor name -> its group, in as many ranges of layers as the windows allow."""
    native = calibration.native
    kinds, n_layers = len(groups_of(native, 1)[0]), native.decoder.n_layers
    return groups_of(native, max(1, min(_MOST_RANGES, _MOST_GROUPS // kinds, n_layers)))


def _measure(
    plan: ConversionPlan,
    calibration: CalibrationPlan,
    groups: Mapping[str, Group],
    levels: int,
    workers: Workers,
    progress: Progress,
) -> Sensitivity:
    native, tokens = calibration.native, calibration.samples.tokens
    share = int(_SHARE * tokens.size / (len(groups) * _WINDOWS))
    length = min(tokens.shape[1], max(_LEAST_TOKENS, min(_MOST_TOKENS, share)))
    chosen = np.unique(np.linspace(0, len(tokens) - 1, _WINDOWS).astype(np.int64))
    progress.start("measuring sensitivity", native.decoder.n_layers)
    return sensitivity(
        native,
        tokens[chosen, :length],
        CoarseRounding(groups, levels),
        plan.work,
        workers=workers,
        step=lambda number: progress.advance(1, f"layer {number + 1} of {native.decoder.n_layers}"),
    )


def _group_names(calibration: CalibrationPlan, of_tensor: Mapping[str, str]) -> dict[str, str]:
    """GGUF tensor -> the group of the matrices that it consists of."""
    of_linear = {
        (linear.name, linear.index): of_tensor[linear.weight]
        for layer in calibration.layers
        for entry in layer.inputs
        for linear in entry.linears
        if linear.weight in of_tensor
    }
    sources: Mapping[str, Sequence[LinearKey]] = calibration.imatrix_sources
    return {name: of_linear[keys[0]] for name, keys in sources.items() if keys[0] in of_linear}


def _groups_of_tensor(name: str, names: Mapping[str, str], measured: Sensitivity) -> list[str]:
    """The groups that an error of a GGUF tensor counts for: a tied embedding is the head too."""
    if name == "output.weight":
        return [HEAD]
    if name == "token_embd.weight":
        return [EMBEDDING]
    return [names[name]] if name in names and names[name] in measured.divergence else []


@dataclass(frozen=True)
class _Errors:
    """The relative error of each type of a tensor, and of the coarse rounding; `as_head`: as the head's matrix."""

    of_types: NDArray[np.float64]
    coarse: float
    as_head: "_Errors | None" = None


def _errors(gguf: GgufPlan, option: Candidates, measured: Sensitivity, levels: int, progress: Progress) -> _Errors:
    progress.advance(1, option.tensor.name)
    if len(option.types) == 1:
        return _Errors(np.zeros(1), 0.0)
    tensor = next(tensor for tensor in gguf.model.tensors if tensor.name == option.tensor.name)
    samples = _sample(gguf, tensor)
    head = tensor.name == "output.weight"
    tied = tensor.name == "token_embd.weight" and all(t.name != "output.weight" for t in gguf.model.tensors)
    squares = (measured.head_squares / measured.head_tokens).astype(np.float32)
    as_head = _compare(samples, option.types, levels, squares) if head or tied else None
    if head:
        assert as_head is not None
        return as_head
    comparison = _compare(samples, option.types, levels, None)
    fed_back = gguf.request.solver == "feedback" and tensor.name in gguf.weights
    gains = [_WITH_FEEDBACK.get(kind, 1.0) if fed_back else 1.0 for kind in option.types]
    return _Errors(comparison.of_types * gains, comparison.coarse, as_head)


_Sample = tuple[NDArray[np.float32], NDArray[np.float32] | None]


def _sample(gguf: GgufPlan, tensor: ModelTensor) -> list[_Sample]:
    """Rows spread over the tensor, and the importance of their columns, one pair for each sampled matrix."""
    weights = gguf.weights.get(tensor.name)
    matrices = tensor.n_rows // tensor.matrix_rows
    count = min(matrices, _MATRICES)
    n_rows = max(_ROWS, _SAMPLED // tensor.n_columns)
    samples = []
    for matrix in np.linspace(0, matrices - 1, count).astype(int).tolist():
        step = tensor.row_step
        pieces = max(1, min(tensor.matrix_rows // step, -(-n_rows // (count * step))))
        starts = np.linspace(0, tensor.matrix_rows // step - 1, pieces).astype(int) * step + matrix * tensor.matrix_rows
        rows = [widen(gguf.model.read_rows(tensor.name, start, start + step), tensor) for start in starts.tolist()]
        samples.append((np.concatenate(rows)[: -(-n_rows // count)], None if weights is None else weights[matrix]))
    return samples


def _compare(
    samples: Sequence[_Sample], kinds: Sequence[GGMLQuantizationType], levels: int, squares: NDArray[np.float32] | None
) -> _Errors:
    """Squared errors over squares, weighted by the importance of the columns, or by `squares` where it is given."""
    totals, signal, coarse = np.zeros(len(kinds)), 0.0, 0.0
    for rows, importance in samples:
        weights = squares if squares is not None else importance
        scale = np.ones(rows.shape[1], np.float32) if weights is None else weights
        signal += _weighted(rows, scale)
        coarse += _weighted(rows - coarsely_rounded(rows, levels), scale)
        for number, kind in enumerate(kinds):
            if kind not in _EXACT:
                rounded = dequantize_rows(kind, quantize_rows(kind, rows, importance), rows.shape[1])
                totals[number] += _weighted(rows - rounded, scale)
    return _Errors(totals / max(signal, 1e-30), coarse / max(signal, 1e-30))


def _weighted(rows: NDArray[np.float32], scale: NDArray[np.float32]) -> float:
    return float(np.einsum("ij,ij,j->", rows, rows, scale, dtype=np.float64))


def _costs(
    options: Sequence[Candidates],
    errors: Sequence[_Errors],
    groups: Sequence[Sequence[str]],
    measured: Sensitivity,
) -> list[NDArray[np.float64]]:
    """The divergence that each type of each tensor costs, in nats."""
    coarse: dict[str, float] = {}
    for error, names in zip(errors, groups, strict=True):
        for name in names:
            coarse[name] = coarse.get(name, 0.0) + error.coarse
        if error.as_head is not None:
            coarse[HEAD] = error.as_head.coarse
    prices = {name: measured.divergence[name] / total for name, total in coarse.items() if total > 0}
    inner = [price for name, price in prices.items() if name not in (EMBEDDING, HEAD)]
    usual = float(np.median(inner)) if inner else 1.0
    prices = {name: max(price, _LEAST_COST * usual) for name, price in prices.items()}
    costs = []
    for error, names in zip(errors, groups, strict=True):
        # a tensor of no group (a factor of latent attention) costs what the median group costs
        price = sum(prices.get(name, usual) for name in names) if names else usual
        cost = price * error.of_types
        if error.as_head is not None:
            cost = cost + prices.get(HEAD, usual) * error.as_head.of_types
        costs.append(cost)
    return costs


def _dump(choice: TypeChoice) -> str:
    types = {name: kind.name for name, kind in choice.types.items()}
    return json.dumps({"types": types, "divergence": dict(choice.divergence), "expected": choice.expected})


def _load(text: str) -> TypeChoice:
    """Raises PassingError when the file of an earlier run is damaged."""
    try:
        data = json.loads(text)
        return TypeChoice(
            {name: _T[kind] for name, kind in data["types"].items()}, data["divergence"], data["expected"]
        )
    except (ValueError, KeyError, TypeError) as error:
        raise PassingError("types.json in the work folder is damaged; add --force to start over") from error
