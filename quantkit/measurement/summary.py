"""Figures from the records of scored tokens, each with its standard error; comparisons are paired by token."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.measurement.scores import TOP

Losses = NDArray[np.float64]

_EDGES = np.logspace(-6, 1.5, 61)


@dataclass(frozen=True)
class Figure:
    """An estimate and its standard error."""

    value: float
    error: float

    def document(self) -> dict[str, float]:
        """A value of report.json."""
        return {"value": self.value, "error": self.error}


def perplexity_of(losses: Losses) -> Figure:
    """exp of the mean loss, as llama-perplexity prints it with its error."""
    value = math.exp(float(losses.mean()))
    return Figure(value, value * _error(losses))


def ratio_of(losses: Losses, reference: Losses) -> Figure:
    """perplexity / the reference's, from the losses of the same tokens.

    The choice of the text moves both alike, so this error is many times smaller than that of each perplexity.
    """
    return perplexity_of(losses - reference)


def difference_of(losses: Losses, reference: Losses) -> Figure:
    """perplexity - the reference's, its error by the delta method from the losses of the same tokens."""
    perplexity, other = perplexity_of(losses), perplexity_of(reference)
    return Figure(perplexity.value - other.value, _error(perplexity.value * losses - other.value * reference))


def mean_of(values: NDArray[Any]) -> Figure:
    """The mean of `values`, and its standard error."""
    values = values.astype(np.float64)
    return Figure(float(values.mean()), _error(values))


def kl_document(kl: NDArray[np.float64]) -> dict[str, Any]:
    """The distribution of the KL divergences of tokens, in nats. Percentiles interpolate, as llama-perplexity's do."""
    mean = mean_of(kl)
    p90, p99, p999 = (float(value) for value in np.quantile(kl, (0.9, 0.99, 0.999)))
    counts, _ = np.histogram(np.clip(kl, _EDGES[0], _EDGES[-1]), _EDGES)
    return {
        "mean": mean.value,
        "error": mean.error,
        "median": float(np.median(kl)),
        "p90": p90,
        "p99": p99,
        "p999": p999,
        "max": float(kl.max()),
        "histogram": {"edges": _EDGES.tolist(), "counts": counts.tolist()},
    }


def quality_document(text: str, candidate: NDArray[np.void], reference: NDArray[np.void] | None) -> dict[str, Any]:
    """The figures of a model on one text; `reference` is None for the reference itself."""
    figures: dict[str, Any] = {"text": text, "perplexity": perplexity_of(candidate["loss"]).document()}
    if reference is None:
        return figures
    squares = mean_of(candidate["change"].astype(np.float64) ** 2)
    change, rms = mean_of(candidate["change"]), math.sqrt(squares.value)
    return figures | {
        "perplexity_difference": difference_of(candidate["loss"], reference["loss"]).document(),
        "perplexity_ratio": ratio_of(candidate["loss"], reference["loss"]).document(),
        "kl": kl_document(candidate["kl"]),
        "top1": mean_of(candidate["top1"]).document(),
        "top5": mean_of(candidate["top5"] / min(TOP, max(1, int(reference["top5"].max())))).document(),
        "probability_change": {
            "mean": change.value,
            "error": change.error,
            "rms": rms,
            "rms_error": squares.error / (2 * rms) if rms else 0.0,
        },
    }


def failures(
    quality: Mapping[str, Any], *, max_delta: tuple[float, bool] | None, max_kl: float | None, min_top1: float | None
) -> list[str]:
    """A phrase for each limit that a candidate's figures on one text exceed.

    `max_delta`: of the perplexity, (limit, whether it is a fraction of the reference's).
    """
    reasons = []
    if max_delta is not None:
        limit, relative = max_delta
        delta = quality["perplexity_ratio"]["value"] - 1 if relative else quality["perplexity_difference"]["value"]
        if not delta <= limit:
            shown = f"{delta:.1%} over {limit:.1%}" if relative else f"{delta:.4g} over {limit:.4g}"
            reasons.append(f"its perplexity is above the reference's by {shown}")
    if max_kl is not None and not quality["kl"]["mean"] <= max_kl:
        reasons.append(f"its mean KL divergence is {quality['kl']['mean']:.4g}, over {max_kl:.4g}")
    if min_top1 is not None and not quality["top1"]["value"] >= min_top1:
        reasons.append(f"its top-1 agreement is {quality['top1']['value']:.1%}, under {min_top1:.1%}")
    return reasons


def _error(values: NDArray[np.float64]) -> float:
    return float(values.std()) / math.sqrt(max(1, len(values) - 1))
