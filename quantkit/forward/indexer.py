"""Which keys each query attends to: DeepSeek Sparse Attention (DeepSeek-V3.2-Exp, section 2.1), and MiniMax M3's."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quantkit.forward.arithmetic import turn
from quantkit.forward.arrays import Array, ascending, device, namespace, place
from quantkit.forward.config_keys import Config
from quantkit.forward.mixers import BlockIndexer, Indexer
from quantkit.forward.parts import Norm
from quantkit.forward.weights import Weights

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
    k = layer.norm(at + part.norm, layer.weights.linear(at + part.keys, x, size), Norm("layer"), part.eps(config))
    weights = layer.weights.linear(at + part.weights, x, heads)
    if n <= top:
        return None
    xp, where = namespace(x), device(x)
    q, k = _turned(part, q, angles), _turned(part, k[None], angles)[0]
    excluded: Array = place(np.ones((n, n), bool), where)
    for start in range(0, n, _ROWS):
        stop = min(start + _ROWS, n)
        relations = xp.clip(q[:, start:stop] @ k[:stop].swapaxes(0, 1), 0.0, None)
        scores = xp.einsum("rh,hrk->rk", weights[start:stop], relations)
        later = place(np.arange(stop)[None, :] > np.arange(start, stop)[:, None], where)
        scores = xp.where(later, -np.inf, scores)
        excluded[start:stop, :stop] = ascending(ascending(-scores)) >= top
    return excluded


def _turned(part: Indexer, x: Array, angles: tuple[Array, Array]) -> Array:
    """Index queries or keys (heads, n, width) after their rotation."""
    if not part.rotates_last:
        return turn(x, *angles, part.pairs)
    still = x.shape[-1] - 2 * angles[0].shape[-1]
    turned: Array = namespace(x).concatenate([x[..., :still], turn(x[..., still:], *angles, part.pairs)], axis=-1)
    return turned


def excluded_blocks(
    part: BlockIndexer, layer: Layer, at: str, x: Array, norm: Norm, angles: tuple[Array, Array]
) -> NDArray[np.bool_] | None:
    """Which keys a query does not attend to: bool (index heads, n, n), queries before keys; None if all are chosen.

    `x` (n, hidden) is the input of attention, `angles` cos and sin. The score of a block is that of its best key up to
    the query. Names are below `at`.
    """
    config, n = layer.config, len(x)
    heads, size, block = part.heads(config), part.width(config), part.block(config)
    top, count = part.top(config), -(-n // block)
    q = layer.weights.linear(at + part.queries, x, heads * size).reshape(n, heads, size)
    k = layer.weights.linear(at + part.keys, x, size)
    if count <= top:
        return None
    q, k = layer.norm(at + part.norms[0], q, norm), layer.norm(at + part.norms[1], k, norm)
    q, k = turn(q.swapaxes(0, 1), *angles, "half"), turn(k[None], *angles, "half")[0]
    xp, where = namespace(x), device(x)
    blocks = np.arange(count)
    excluded: NDArray[np.bool_] = place(np.ones((heads, n, n), bool), where)
    for start in range(0, n, _ROWS):
        stop = min(start + _ROWS, n)
        own = np.arange(start, stop)[:, None]
        later = place(np.arange(count * block) > own, where)
        scores = place(np.full((heads, stop - start, count * block), -np.inf, np.float32), where)
        scores[..., :n] = q[:, start:stop] @ k.swapaxes(0, 1)
        best = xp.where(later, -np.inf, scores).reshape(heads, stop - start, count, block)
        local = place((blocks <= own // block) & (blocks > own // block - part.local(config)), where)
        ranked = xp.where(local, np.inf, xp.amax(best, axis=-1))
        left_out = ascending(ascending(-ranked)) >= top
        excluded[:, start:stop] = left_out[..., place(np.arange(n) // block, where)]
    return excluded
