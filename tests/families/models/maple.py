"""Maple, which transformers has no class of."""

from collections.abc import Iterator, Mapping
from typing import Any

from tests.families.models.case import VOCAB, Case, Tensors

MAPLE: dict[str, Any] = {
    "architectures": ["MapleForCausalLM"],
    "model_type": "maple",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    "max_position_embeddings": 512,
    "moe_intermediate_size": 32,
    "nope_on_global_attention": True,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 2,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "sliding_window": 7,
    "tie_word_embeddings": False,
    "vocab_size": VOCAB,
}


def layout(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors, as published."""
    return dict(_layout(config))


def _layout(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, head, expert = config["hidden_size"], config["head_dim"], config["moe_intermediate_size"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{at}.{name}.weight", (hidden,)
        for name, rows in (("q", queries), ("k", keys), ("v", keys)):
            yield f"{at}.self_attn.{name}_proj.weight", (rows, hidden)
        yield f"{at}.self_attn.o_proj.weight", (hidden, queries)
        yield f"{at}.self_attn.q_norm.weight", (head,)
        yield f"{at}.self_attn.k_norm.weight", (head,)
        yield f"{at}.mlp.gate.weight", (config["num_experts"], hidden)
        for number in range(config["num_experts"]):
            for name, shape in (("gate", (expert, hidden)), ("up", (expert, hidden)), ("down", (hidden, expert))):
                yield f"{at}.mlp.experts.{number}.{name}_proj.weight", shape
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (config["vocab_size"], hidden)


def _large(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Gates and up projections so large that their limit of 7 counts."""
    scaled = ("gate_proj.weight", "up_proj.weight")
    tensors.update({name: values * 4 for name, values in tensors.items() if name.endswith(scaled)})
    return config, tensors


CASES = (Case("maple", MAPLE, _large, newest=True, reference="maple"),)
