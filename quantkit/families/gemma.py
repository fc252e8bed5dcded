"""Gemma 1. Norms are stored without the 1 they add; llama.cpp wants it in. The embedding is the head.

Shape of the GGUF: llama.cpp's `gemma` architecture (src/models/gemma.cpp). It scales the embedding by the root of its
width and the queries by the root of head_dim; the file does not store these factors.
"""

from typing import Any

from quantkit.families.base.adjust import plus_one
from quantkit.families.base.family import Dropped, Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters
from quantkit.families.base.keys import head_dim_keys
from quantkit.families.base.refusals import GELU, only
from quantkit.families.base.traits import Traits
from quantkit.forward.description import Architecture, FeedForward
from quantkit.forward.parts import Norm
from quantkit.tokenizer.roles import SpacePrefix, TokenRoles

_LAYER = "model.layers.{layer}"
# llama.cpp's value for a file without the key; its converter stores no base for Gemma 1 and 2.
_DEFAULT_THETA = 10000.0


def norm(source: str, target: str, size: str = "hidden") -> Rule:
    """A norm of a layer: transformers' GemmaRMSNorm multiplies by 1 + weight."""
    return Rule(f"{_LAYER}.{source}.weight", f"blk.{{layer}}.{target}.weight", (size,), adjust=plus_one)


MATRICES = (
    Rule("model.embed_tokens.weight", "token_embd.weight", ("vocab", "hidden")),
    Rule("model.norm.weight", "output_norm.weight", ("hidden",), adjust=plus_one),
    Rule(f"{_LAYER}.self_attn.q_proj.weight", "blk.{layer}.attn_q.weight", ("q", "hidden")),
    Rule(f"{_LAYER}.self_attn.k_proj.weight", "blk.{layer}.attn_k.weight", ("kv", "hidden")),
    Rule(f"{_LAYER}.self_attn.v_proj.weight", "blk.{layer}.attn_v.weight", ("kv", "hidden")),
    Rule(f"{_LAYER}.self_attn.o_proj.weight", "blk.{layer}.attn_output.weight", ("hidden", "q")),
    Rule(f"{_LAYER}.mlp.gate_proj.weight", "blk.{layer}.ffn_gate.weight", ("ffn", "hidden")),
    Rule(f"{_LAYER}.mlp.up_proj.weight", "blk.{layer}.ffn_up.weight", ("ffn", "hidden")),
    Rule(f"{_LAYER}.mlp.down_proj.weight", "blk.{layer}.ffn_down.weight", ("hidden", "ffn")),
)

# The embedding serves as head; some tools store it a second time.
HEAD = Dropped(r"lm_head\.weight")


def gemma_keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The keys of Gemma 1 and 2, in the order of llama.cpp's converter."""
    keys = [
        Key(f"{arch}.context_length", "u32", sizes.context),
        Key(f"{arch}.embedding_length", "u32", sizes.hidden),
        Key(f"{arch}.block_count", "u32", sizes.n_layer),
        Key(f"{arch}.feed_forward_length", "u32", sizes.ffn),
        Key(f"{arch}.attention.head_count", "u32", sizes.n_head),
        Key(f"{arch}.attention.head_count_kv", "u32", sizes.n_head_kv),
        Key(f"{arch}.attention.layer_norm_rms_epsilon", "f32", sizes.norm_eps),
        *head_dim_keys(arch, sizes),
    ]
    theta = sizes.rope.get("rope_theta", _DEFAULT_THETA)
    return keys if theta == _DEFAULT_THETA else [*keys, Key(f"{arch}.rope.freq_base", "f32", theta)]


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse another activation, and a separate output head."""
    # Gemma's first configs say "gelu" and mean the tanh form (transformers' GemmaConfig, hidden_activation).
    only(config, "hidden_act", *GELU, family="Gemma")
    only(config, "hidden_activation", *GELU, family="Gemma")
    only(config, "tie_word_embeddings", True, family="Gemma")
    only(config, "attention_bias", False, family="Gemma")
    only(config, "use_bidirectional_attention", False, family="Gemma")
    return config


# transformers' GemmaConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma": {
        "vocab_size": 256000,
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "rope_theta": 10000.0,
    }
}

RMS_FROM_ONE = Norm("rms", offset=1.0)
FORWARD = Architecture(
    embedding_scale=lambda config: float(config["hidden_size"]) ** 0.5,
    norm=RMS_FROM_ONE,
    feed=FeedForward(activation=("hidden_activation", "hidden_act"), default_activation="gelu_pytorch_tanh"),
    tied=True,
)

FAMILY = Family(
    name="Gemma",
    models="Gemma 1, CodeGemma",
    architectures=("GemmaForCausalLM",),
    gguf_arch="gemma",
    rules=(*MATRICES, norm("input_layernorm", "attn_norm"), norm("post_attention_layernorm", "ffn_norm")),
    keys=gemma_keys,
    defaults=DEFAULTS,
    prepare=prepare,
    dropped=(HEAD,),
    rope_kinds=("default",),
    forward=FORWARD,
    traits=Traits(scaled_query=True, scaled_embedding=True),
    token_roles=TokenRoles(also={"eot": "<end_of_turn>"}, space_prefix=SpacePrefix.FALSE_LAST),
)
