"""Rotary position frequencies, as config.json asks for them.

Scaling: linear, proportional, dynamic, llama3, YaRN and LongRoPE.

Sources: RoFormer (arXiv 2104.09864); position interpolation (2306.15595); YaRN (2309.00071); LongRoPE (2402.13753) as
Phi-3 has it; Llama 3.1's own code.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.errors import UnsupportedError

Frequencies = npt.NDArray[np.float64]


def rope_frequencies(config: Mapping[str, Any], head_dim: int, length: int) -> tuple[Frequencies, float]:
    """The angle per position of each pair, (head_dim / 2,) in radians, and the factor on cos and sin.

    `head_dim` is how many values of a head turn. `length` is the sequence's: dynamic scaling and LongRoPE hang on it.
    Both spellings of the settings are read: `rope_scaling` beside `rope_theta`, and `rope_parameters` holding all.
    Raises UnsupportedError for another rope type.
    """
    scaling = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    theta = float(scaling.get("rope_theta") or config.get("rope_theta") or 10000.0)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    pairs = np.arange(0, head_dim, 2) / head_dim
    trained = int(config.get("max_position_embeddings") or length)
    if kind == "dynamic" and scaling.get("alpha"):
        # NTK-aware scaling with a fixed alpha: the base is stretched alike for every length
        theta *= float(scaling["alpha"]) ** (head_dim / (head_dim - 2))
    elif kind == "dynamic":
        factor = float(scaling.get("factor") or 1.0)
        stretch = factor * max(length, trained) / trained - (factor - 1)
        theta *= stretch ** (head_dim / (head_dim - 2))
    plain = theta**-pairs
    if kind in ("default", "dynamic"):
        return plain, 1.0
    if kind == "proportional":
        # the pairs after the rotated fraction stand still
        turning = int(float(scaling.get("partial_rotary_factor") or 1.0) * head_dim // 2)
        return np.where(np.arange(len(plain)) < turning, plain, 0.0) / float(scaling.get("factor") or 1.0), 1.0
    if kind == "linear":
        return plain / float(scaling["factor"]), 1.0
    if kind == "llama3":
        return _llama3(plain, scaling), 1.0
    if kind == "yarn":
        return _yarn(plain, scaling, theta, trained)
    if kind in ("longrope", "su"):
        return _longrope(plain, config, scaling, trained, length)
    raise UnsupportedError(f"the reference forward does not support rope type '{kind}' of config.json")


def _llama3(plain: Frequencies, scaling: Mapping[str, Any]) -> Frequencies:
    """`factor` divides long wavelengths, short ones stay, a blend covers the range between; defaults of Llama 3.1."""
    low, high = float(scaling.get("low_freq_factor") or 1.0), float(scaling.get("high_freq_factor") or 4.0)
    turns = float(scaling.get("original_max_position_embeddings") or 8192) * plain / (2 * math.pi)
    # Llama 4 has equal ends, and so no range between
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0) if high != low else (turns > low).astype(np.float64)
    return plain * (keep + (1 - keep) / float(scaling["factor"]))


def _yarn(plain: Frequencies, scaling: Mapping[str, Any], theta: float, trained: int) -> tuple[Frequencies, float]:
    """YaRN's "NTK by parts": pairs below `low` keep their speed, above `high` they are interpolated, a ramp between."""
    original = int(scaling.get("original_max_position_embeddings") or trained)
    factor = float(scaling.get("factor") or trained / original)
    dim = 2 * len(plain)

    def pair_turning(turns: float) -> float:
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_turning(scaling.get("beta_fast") or 32), pair_turning(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(len(plain)) - low) / max(high - low, 0.001), 0.0, 1.0)
    return plain * (1 - ramp) + plain / factor * ramp, _yarn_attention(scaling, factor)


def _yarn_attention(scaling: Mapping[str, Any], factor: float) -> float:
    def magnitude(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return magnitude(float(scaling["mscale"])) / magnitude(float(scaling["mscale_all_dim"]))
    return magnitude(1.0)


def _longrope(
    plain: Frequencies, config: Mapping[str, Any], scaling: Mapping[str, Any], trained: int, length: int
) -> tuple[Frequencies, float]:
    """A divisor for each pair, of two lists: one within the context first trained on, one beyond it."""
    stated = config.get("original_max_position_embeddings") or scaling.get("original_max_position_embeddings")
    original = int(stated or trained)
    factor = trained / original if stated else float(scaling.get("factor") or 1.0)
    table = "long" if length > original else "short"
    divisors = np.asarray(scaling[f"{table}_factor"], np.float64)
    # Phi-MoE states a magnitude for each table
    magnitude = scaling.get(f"{table}_mscale", scaling.get("attention_factor"))
    if magnitude is None:
        magnitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return plain / divisors, float(magnitude)
