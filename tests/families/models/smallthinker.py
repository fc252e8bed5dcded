"""SmallThinker, which transformers has no class of: the 4B without windows, and the 21B with them."""

from collections.abc import Iterator, Mapping
from typing import Any

from tests.families.models.case import VOCAB, Case

LARGE: dict[str, Any] = {
    "architectures": ["SmallThinkerForCausalLM"],
    "model_type": "smallthinker",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 16,
    "hidden_size": 64,
    "max_position_embeddings": 512,
    "moe_enable_early_router": True,
    "moe_enable_secondary_experts": False,
    "moe_ffn_hidden_size": 32,
    "moe_layer_layout": [1] * 5,
    "moe_num_active_primary_experts": 2,
    "moe_num_primary_experts": 6,
    "moe_primary_router_apply_softmax": False,
    "num_attention_heads": 4,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "pad_token_id": 2,
    "rms_norm_eps": 1e-6,
    "rope_layout": [0, 1, 1, 1, 0],
    "rope_scaling": None,
    "rope_theta": 1500000,
    "sliding_window_layout": [0, 1, 1, 1, 0],
    "sliding_window_size": 4096,
    "tie_word_embeddings": False,
    "vocab_size": VOCAB,
}
SMALL: dict[str, Any] = {
    **LARGE,
    "moe_layer_layout": [1] * 3,
    "moe_primary_router_apply_softmax": True,
    "num_hidden_layers": 3,
    "rope_layout": [1] * 3,
    "sliding_window_layout": [0] * 3,
    "tie_word_embeddings": True,
}


def layout(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors, as published."""
    return dict(_layout(config))


def _layout(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, head, expert = config["hidden_size"], config["head_dim"], config["moe_ffn_hidden_size"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", (hidden,)
        yield f"{at}.post_attention_layernorm.weight", (hidden,)
        for name, rows in (("q", queries), ("k", keys), ("v", keys)):
            yield f"{at}.self_attn.{name}_proj.weight", (rows, hidden)
        yield f"{at}.self_attn.o_proj.weight", (hidden, queries)
        yield f"{at}.block_sparse_moe.primary_router.weight", (config["moe_num_primary_experts"], hidden)
        for number in range(config["moe_num_primary_experts"]):
            for name, shape in (("gate", (expert, hidden)), ("up", (expert, hidden)), ("down", (hidden, expert))):
                yield f"{at}.block_sparse_moe.experts.{number}.{name}.weight", shape
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], hidden)


CASES = (
    Case("smallthinker", LARGE, newest=True, reference="smallthinker"),
    Case("smallthinker-plain", SMALL, newest=True, reference="smallthinker", seed=1),
)
