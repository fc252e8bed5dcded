"""PLaMo 3: a norm before and after each part, queries, keys and values in one matrix, a window in most layers.

Norms are stored without the constants that they add. Shape of the GGUF: llama.cpp's `plamo3` architecture
(src/models/plamo3.cpp). transformers has no class; the sources are llama.cpp's graph and converter
(conversion/plamo.py).
"""

from collections.abc import Mapping
from typing import Any

from quantkit.errors import UnsupportedError
from quantkit.families.base.adjust import plus
from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.refusals import SILU, only
from quantkit.families.base.traits import Traits
from quantkit.forward.config_keys import Config, given
from quantkit.forward.description import Architecture, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.parts import Norm
from quantkit.forward.settings import HEAD_NORMS, local_rope
from quantkit.tokenizer.roles import TokenRoles

_AT, _TO = "model.layers.layers.{layer}", "blk.{layer}"
_FAMILY = "PLaMo 3"
# What the norms after attention and after the feed-forward add to their weight; the others add 1.
_AFTER_ATTENTION, _AFTER_FEED = 1.0 / 5, 1.0 / 5**1.5
# The last of this many layers has no window where config.json does not say.
_PATTERN = 8


def _norm(source: str, target: str, constant: float = 1.0, width: str = "hidden") -> Rule:
    return Rule(f"{_AT}.{source}.weight", f"{_TO}.{target}", (width,), adjust=plus(constant))


RULES = (
    Rule("model.embed_tokens.weight", "token_embd.weight", ("vocab", "hidden")),
    _norm("pre_mixer_norm", "attn_norm.weight"),
    Rule(f"{_AT}.mixer.qkv_proj.weight", f"{_TO}.attn_qkv.weight", ("qkv", "hidden")),
    _norm("mixer.q_norm", "attn_q_norm.weight", width="head_dim"),
    _norm("mixer.k_norm", "attn_k_norm.weight", width="head_dim"),
    Rule(f"{_AT}.mixer.o_proj.weight", f"{_TO}.attn_output.weight", ("hidden", "q")),
    # llama.cpp's names of these two have no ending
    _norm("post_mixer_norm", "post_attention_norm", _AFTER_ATTENTION),
    _norm("pre_mlp_norm", "ffn_norm.weight"),
    Rule(f"{_AT}.mlp.gate_up_proj.weight", f"{_TO}.ffn_up.weight", ("gate_up", "hidden")),
    Rule(f"{_AT}.mlp.down_proj.weight", f"{_TO}.ffn_down.weight", ("hidden", "ffn")),
    _norm("post_mlp_norm", "post_ffw_norm", _AFTER_FEED),
    Rule("model.norm.weight", "output_norm.weight", ("hidden",), adjust=plus(1.0)),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden"), required=False, tied_to_embedding=True),
)


def _window(config: Mapping[str, Any]) -> int | None:
    return optional_size(config, "window_size", "sliding_window")


def _pattern(config: Config) -> int:
    return int(given(config, "sliding_window_pattern", default=_PATTERN))


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", *SILU, family=_FAMILY)
    size(config, "head_dim")
    factor = number(config, "rope_scaling_factor")
    if factor not in (None, 1.0):
        raise UnsupportedError(
            f"config.json: rope_scaling_factor is {factor:g}, but quantkit converts {_FAMILY} only without scaled"
            " positions; convert this model with llama.cpp's convert_hf_to_gguf.py"
        )
    optional_size(config, "sliding_window_pattern")
    return config


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/plamo.py)."""
    window = _window(sizes.config)
    sliding = [
        Key(f"{arch}.attention.sliding_window", "u32", window),
        Key(f"{arch}.attention.sliding_window_pattern", "u32", _pattern(sizes.config)),
    ]
    vocab = Key(f"{arch}.vocab_size", "u32", sizes.vocab)
    return [*base_keys(arch, sizes), vocab, *(sliding if window is not None else [])]


def _slides(config: Config, layer: int) -> bool:
    return _window(config) is not None and (layer + 1) % _pattern(config) != 0


_FROM_ONE = Norm(offset=1.0)
FORWARD = Architecture(
    layer="layers.layers.{}.",
    norm=_FROM_ONE,
    attention_norm="pre_mixer_norm",
    after_attention="post_mixer_norm",
    feed_norm="pre_mlp_norm",
    after_feed="post_mlp_norm",
    norms_after=(Norm(offset=_AFTER_ATTENTION), Norm(offset=_AFTER_FEED)),
    attention=Attention(
        at="mixer.",
        fused="qkv_proj",
        norms=HEAD_NORMS,
        norm=_FROM_ONE,
        rope=local_rope(_slides, "rope_local_theta"),
        window=lambda config, layer: _window(config) if _slides(config, layer) else None,
    ),
    feed=FeedForward(fused="gate_up_proj"),
)

FAMILY = Family(
    name=_FAMILY,
    models="PLaMo 3 NICT 2B to 31B",
    architectures=("Plamo3ForCausalLM", "PLaMo3ForCausalLM"),
    gguf_arch="plamo3",
    rules=RULES,
    keys=_keys,
    # Plamo3Config of the published code
    defaults={"plamo3": {"rms_norm_eps": 1e-6, "tie_word_embeddings": True}},
    prepare=_prepare,
    dimensions=lambda sizes: {
        "gate_up": 2 * sizes.ffn,
        "qkv": (sizes.n_head + 2 * sizes.n_head_kv) * sizes.head_dim,
    },
    rope_kinds=("default",),
    forward=FORWARD,
    traits=Traits(sliding_every=_PATTERN),
    token_roles=TokenRoles(also={"eot": "<|plamo:tag|>"}),
)
