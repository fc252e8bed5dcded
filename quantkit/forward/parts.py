"""What every part of a layer has: the form in which linears are stored, and the kind of norm."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Form:
    """How linears are stored: the endings of weight and bias; `turned`: the weight is (in, out)."""

    weight: str = ".weight"
    bias: str = ".bias"
    turned: bool = False


@dataclass(frozen=True)
class Norm:
    """An RMSNorm or a LayerNorm; `offset` is added to the weight; `weighted` False: it has none.

    `eps`: an epsilon of its own; None: the model's.
    """

    kind: Literal["rms", "layer"] = "rms"
    offset: float = 0.0
    weighted: bool = True
    eps: float | None = None
