"""The indexer of DeepSeek Sparse Attention (DeepSeek-V3.2-Exp, section 2.1): which keys each query attends to."""

from typing import Protocol

import numpy as np

from quantkit.forward.arithmetic import turn
from quantkit.forward.arrays import Array, ascending, device, namespace, place
from quantkit.forward.config_keys import Config
from quantkit.forward.mixers import Indexer
from quantkit.forward.parts import Norm
from quantkit.forward.weights import Weights

_EPS = 1e-6
_ROWS = 64


class Layer(Protocol):
    """The layer, as far as its indexer depends on it."""

    @property
    def weights(self) -> Weights: ...
    @property
    def config(self) -> Config: ...

    def norm(self, name: str, x: Array, norm: Norm, eps: float | None = None) -> Array: ...


def excluded_keys(
    part: Indexer, layer: Layer, at: str, x: Array, short: Array, angles: tuple[Array, Array]
) -> Array | None:
    """Which keys a query does not attend to: bool (n, n), queries first; None if all keys are chosen.

    `x` (n, hidden) is the input of attention, `short` (n, rank) the compressed queries, `angles` cos and sin. The score
    of a key is the sum over index heads of weight * max(0, query . key). Names are below `at`.
    """
    config, n = layer.config, len(x)
    heads, size, top = part.heads(config), part.width(config), part.top(config)
    q = layer.weights.linear(at + part.queries, short, heads * size).reshape(n, heads, size).swapaxes(0, 1)
    k = layer.norm(at + part.norm, layer.weights.linear(at + part.keys, x, size), Norm("layer"), _EPS)
    weights = layer.weights.linear(at + part.weights, x, heads)
    if n <= top:
        return None
    xp, where = namespace(x), device(x)
    q, k = turn(q, *angles, part.pairs), turn(k[None], *angles, part.pairs)[0]
    excluded: Array = place(np.ones((n, n), bool), where)
    for start in range(0, n, _ROWS):
        stop = min(start + _ROWS, n)
        relations = xp.clip(q[:, start:stop] @ k[:stop].swapaxes(0, 1), 0.0, None)
        scores = xp.einsum("rh,hrk->rk", weights[start:stop], relations)
        later = place(np.arange(stop)[None, :] > np.arange(start, stop)[:, None], where)
        scores = xp.where(later, -np.inf, scores)
        excluded[start:stop, :stop] = ascending(ascending(-scores)) >= top
    return excluded
