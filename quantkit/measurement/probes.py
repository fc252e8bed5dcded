"""Small models that show how fast a device reads weights, runs operations and receives tensors.

They are files in memory with the architecture `llama`. Their matrices have weights of the measured model, or random
ones (probe_weights.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf import GGMLQuantizationType

from quantkit.gguf.layout import lay_out
from quantkit.gguf.metadata import plain_key
from quantkit.gguf.types import block_size, row_bytes
from quantkit.measurement.probe_weights import Weights, random_weights
from quantkit.planning.planned_tensors import PlannedTensor
from quantkit.planning.shape import ModelShape, model_shape

HEAD = 64
_VOCAB = 64
_F32 = GGMLQuantizationType.F32
_MOST_LAYERS = 96


@dataclass(frozen=True)
class Probe:
    """A small model: its file, its shape and its tensors."""

    path: Path
    shape: ModelShape
    tensors: tuple[PlannedTensor, ...]


@dataclass(frozen=True)
class ProbeSizes:
    """Layers, width of the hidden states, of the feed-forward, and number of experts (0 for a dense model)."""

    layers: int
    n_embd: int
    n_ff: int
    experts: int = 0


def write_probe(
    folder: Path, name: str, sizes: ProbeSizes, type_: GGMLQuantizationType, weights: Weights | None = None
) -> Probe:
    """Write a probe whose matrices are of `type_`, with these weights; None for random ones. Raises OSError."""
    keys: dict[str, tuple[str, int | float | str]] = {
        "general.architecture": ("str", "llama"),
        "llama.block_count": ("u32", sizes.layers),
        "llama.context_length": ("u32", 4096),
        "llama.embedding_length": ("u32", sizes.n_embd),
        "llama.feed_forward_length": ("u32", sizes.n_ff),
        "llama.attention.head_count": ("u32", sizes.n_embd // HEAD),
        "llama.attention.head_count_kv": ("u32", 1),
        "llama.attention.layer_norm_rms_epsilon": ("f32", 1e-5),
        "llama.rope.dimension_count": ("u32", HEAD),
        "llama.vocab_size": ("u32", _VOCAB),
        "tokenizer.ggml.model": ("str", "no_vocab"),
    }
    if sizes.experts:
        keys |= {"llama.expert_count": ("u32", sizes.experts), "llama.expert_used_count": ("u32", 1)}
    tensors = tuple(PlannedTensor(*tensor) for tensor in _tensors(sizes, type_))
    header_keys = [plain_key(key, kind, value) for key, (kind, value) in keys.items()]
    (layout,) = lay_out(name, header_keys, [(tensor.name, tensor.shape, tensor.type) for tensor in tensors])
    path = folder / layout.name
    filling = {type_: weights or random_weights(type_)}
    filling.setdefault(_F32, random_weights(_F32))
    with path.open("wb") as file:
        file.write(layout.header)
        for slot in layout.slots:
            file.seek(slot.offset)
            file.write(filling[slot.type].take(slot.nbytes))
        file.truncate(layout.size)
    values = {key: value for key, (_, value) in keys.items()}
    shape = model_shape(values, [(tensor.name, tensor.shape) for tensor in tensors], layout.name)
    return Probe(path, shape, tensors)


_Tensors = list[tuple[str, tuple[int, ...], GGMLQuantizationType]]


def _tensors(sizes: ProbeSizes, type_: GGMLQuantizationType) -> _Tensors:
    n, ff, count = sizes.n_embd, sizes.n_ff, sizes.experts
    tensors: _Tensors = [("token_embd.weight", (_VOCAB, n), _F32)]
    for layer in range(sizes.layers):
        end, outer = ("_exps", (count,)) if count else ("", ())
        matrices: dict[str, tuple[int, ...]] = {
            "attn_q": (n, n),
            "attn_k": (HEAD, n),
            "attn_v": (HEAD, n),
            "attn_output": (n, n),
            f"ffn_gate{end}": (*outer, ff, n),
            f"ffn_up{end}": (*outer, ff, n),
            f"ffn_down{end}": (*outer, n, ff),
        }
        tensors += [(f"blk.{layer}.{part}.weight", shape, type_) for part, shape in matrices.items()]
        tensors += [(f"blk.{layer}.{part}.weight", (n,), _F32) for part in ("attn_norm", "ffn_norm")]
        if count:
            tensors.append((f"blk.{layer}.ffn_gate_inp.weight", (count, n), _F32))
    return [*tensors, ("output_norm.weight", (n,), _F32), ("output.weight", (_VOCAB, n), _F32)]


def wide_sizes(shape: ModelShape, type_: GGMLQuantizationType, least_bytes: int) -> ProbeSizes:
    """A probe as wide as a model, with as many layers as `least_bytes` of weights need."""
    downs = [
        layer.tensors[name][-1]
        for layer in shape.layers
        for name in ("ffn_down_exps.weight", "ffn_down.weight")
        if layer.has(name)
    ]
    block = max(HEAD, block_size(type_)[0])
    n_embd = -(-shape.n_embd // block) * block
    n_ff = -(-max(downs, default=2 * n_embd) // block) * block
    of_layer = 2 * (n_embd + HEAD) * row_bytes(type_, n_embd) + 2 * n_ff * row_bytes(type_, n_embd)
    of_layer += n_embd * row_bytes(type_, n_ff)
    return ProbeSizes(min(max(-(-least_bytes // of_layer), 1), _MOST_LAYERS), n_embd, n_ff)


def main_types(work: Sequence[Mapping[str, int]], share: float = 0.02) -> list[GGMLQuantizationType]:
    """The tensor types of at least `share` of the bytes of a token, the largest first. `work`: bytes by type name."""
    totals: dict[str, int] = {}
    for moved in work:
        for name, size in moved.items():
            if name in GGMLQuantizationType.__members__:
                totals[name] = totals.get(name, 0) + size
    enough = share * sum(totals.values())
    names = sorted((name for name in totals if totals[name] >= enough), key=lambda name: -totals[name])
    return [GGMLQuantizationType[name] for name in names]
