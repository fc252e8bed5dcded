"""Baichuan 1 and 2: Llama with q, k and v in one matrix; the 7B with rotary positions, the 13B with ALiBi.

Baichuan 2 computes its logits with the rows of the head scaled to length 1 (NormHead of its modeling_baichuan.py); the
checkpoint stores the unscaled rows. llama.cpp's `baichuan` (src/models/baichuan.cpp) does not scale them, so the
converter writes the scaled head. llama.cpp uses rotary positions for 32 layers and ALiBi for 40; no key changes this.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import UnsupportedError
from quantkit.families.base.family import Canonical, Family, Key, Rule, Take
from quantkit.families.base.hyperparameters import Hyperparameters
from quantkit.families.base.keys import base_keys
from quantkit.families.base.native_config import as_llama
from quantkit.families.base.refusals import SILU, only
from quantkit.families.base.rotary import interleave_rotary_rows
from quantkit.families.base.traits import Traits
from quantkit.families.llama import ENDS, MLP

ROTARY_LAYERS = 32
ALIBI_LAYERS = 40
BAICHUAN2_VOCABULARY = 125696

# The smallest divisor of torch.nn.functional.normalize.
_SHORTEST = np.float32(1e-12)


def has_alibi(config: Mapping[str, Any]) -> bool:
    """Whether positions are ALiBi's: the 13B's config has no max_position_embeddings."""
    return config.get("max_position_embeddings") is None


def has_normalised_head(sizes: Hyperparameters) -> bool:
    """Whether this is Baichuan 2: by its vocabulary size, or by z_loss_weight if the vocabulary was extended."""
    return sizes.vocab == BAICHUAN2_VOCABULARY or "z_loss_weight" in sizes.config


def normalised(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 rows (n, columns), each divided by its Euclidean length."""
    length = np.sqrt((rows * rows).sum(axis=1, keepdims=True, dtype=np.float32))
    return np.asarray(rows / np.maximum(length, _SHORTEST), dtype=np.float32)


def _plain_head(sizes: Hyperparameters) -> bool:
    return not has_normalised_head(sizes)


def _packed(part: int, *, rotary: bool) -> Callable[[Hyperparameters], Take]:
    """q, k or v from W_pack."""

    def take(sizes: Hyperparameters) -> Take:
        first = part * sizes.hidden
        if not rotary:
            return Take(np.arange(first, first + sizes.hidden))
        return Take(first + interleave_rotary_rows(sizes.n_head, sizes.hidden), step=sizes.head_dim)

    return take


_LAYER = "model.layers.{layer}"
_PACKED = (f"{_LAYER}.self_attn.W_pack.weight", ("packed", "hidden"))

RULES = (
    Rule(f"{_LAYER}.input_layernorm.weight", "blk.{layer}.attn_norm.weight", ("hidden",)),
    # permuted for the 13B too, like llama.cpp's converter: without rotation, scores do not depend on the order
    Rule(_PACKED[0], "blk.{layer}.attn_q.weight", _PACKED[1], take=_packed(0, rotary=True)),
    Rule(_PACKED[0], "blk.{layer}.attn_k.weight", _PACKED[1], take=_packed(1, rotary=True)),
    Rule(_PACKED[0], "blk.{layer}.attn_v.weight", _PACKED[1], take=_packed(2, rotary=False)),
    Rule(f"{_LAYER}.self_attn.o_proj.weight", "blk.{layer}.attn_output.weight", ("hidden", "hidden")),
    Rule(f"{_LAYER}.post_attention_layernorm.weight", "blk.{layer}.ffn_norm.weight", ("hidden",)),
    *(rule for rule in MLP if rule.required),
    *(rule for rule in ENDS if rule.required),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden"), when=_plain_head),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden"), adjust=normalised, when=has_normalised_head),
)

NATIVE_RULES = (
    *(Rule(_PACKED[0], f"{_LAYER}.self_attn.{name}_proj.weight", _PACKED[1], take=_packed(part, rotary=False))
      for part, name in enumerate("qkv")),
    *(Rule(rule.source, rule.source, rule.shape, adjust=rule.adjust, when=rule.when)
      for rule in RULES if rule.source != _PACKED[0]),
)  # fmt: skip


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    return [
        *base_keys(arch, sizes),
        Key(f"{arch}.tensor_data_layout", "str", "Meta AI original pth"),
        Key(f"{arch}.rope.dimension_count", "u32", sizes.head_dim),
    ]


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", *SILU, family="Baichuan")
    layers = config.get("num_hidden_layers")
    kind, known = ("ALiBi", ALIBI_LAYERS) if has_alibi(config) else ("rotary positions", ROTARY_LAYERS)
    if layers != known:
        raise UnsupportedError(
            f"config.json: this Baichuan has {layers} layers with {kind} (max_position_embeddings is"
            f" {'absent' if has_alibi(config) else 'present'}), but llama.cpp runs only {ROTARY_LAYERS} layers with"
            f" rotary positions and {ALIBI_LAYERS} with ALiBi; a GGUF cannot express other counts"
        )
    return config


def _native_config(config: Mapping[str, Any]) -> dict[str, Any]:
    # the rotary base is built into the published code
    return as_llama(config, rope_theta=10000.0, **({"alibi": True} if has_alibi(config) else {}))


def _canonical(sizes: Hyperparameters) -> Canonical:
    """Llama for the 7B. The 13B is not native: transformers has no such architecture with ALiBi."""
    return Canonical(_native_config, NATIVE_RULES, native=not has_alibi(sizes.config))


FAMILY = Family(
    name="Baichuan",
    models="Baichuan 7B/13B, Baichuan 2 7B/13B",
    architectures=("BaichuanForCausalLM", "BaiChuanForCausalLM"),
    gguf_arch="baichuan",
    rules=RULES,
    keys=_keys,
    # BaichuanConfig of the published code, which has no rotary base other than 10000.
    defaults={"baichuan": {"rms_norm_eps": 1e-6}},
    prepare=_prepare,
    dimensions=lambda sizes: {"packed": 3 * sizes.hidden},
    rope_kinds=("default",),
    canonical=_canonical,
    traits=Traits(rope_layers=32),
)
