"""NomicBERT: rotary positions, norms after each sum, a gated feed-forward or experts."""

from typing import Any

from tests.families.models.bert import encoder
from tests.families.models.case import VOCAB, Tensors, weight

PUBLISHED: dict[str, Any] = {
    "model_type": "nomic_bert",
    "architectures": ["NomicBertModel"],
    "activation_function": "swiglu",
    "causal": False,
    "dense_seq_output": True,
    "layer_norm_epsilon": 1e-12,
    "max_trained_positions": 2048,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "n_embd": 64,
    "n_head": 4,
    "n_inner": 96,
    "n_layer": 3,
    "n_positions": 8192,
    "pad_vocab_size_multiple": 64,
    "parallel_block": False,
    "prenorm": False,
    "qkv_proj_bias": False,
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "type_vocab_size": 2,
    "use_rms_norm": False,
    "vocab_size": VOCAB,
}
# what transformers' class reads, and config.json on the hub does not have
_NATIVE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}
_OF_CLASS = (*_NATIVE, "rope_parameters")


def _published(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    return {key: value for key, value in config.items() if key not in _OF_CLASS}, tensors


WITH_EXPERTS: dict[str, Any] = {
    **PUBLISHED,
    "activation_function": "gelu",
    "expert_choice_router": False,
    "mlp_fc1_bias": True,
    "mlp_fc2_bias": True,
    "moe_every_n_layers": 2,
    "moe_normalize_expert_weights": False,
    "moe_top_k": 2,
    "n_positions": 2048,
    "num_experts": 4,
    "num_shared_experts": 0,
    "pad_token_id": 1,
    "qkv_proj_bias": True,
    "rotary_emb_base": 10000,
    "type_vocab_size": 1,
}


def part_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Tensors of version 2 that transformers' class does not have, by their published names."""
    hidden, inner, experts = config["n_embd"], config["n_inner"], config["num_experts"]
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(config["n_layer"]):
        at = f"encoder.layers.{layer}."
        shapes |= {at + "attn.Wqkv.bias": (3 * hidden,), at + "attn.out_proj.bias": (hidden,)}
        if layer % config["moe_every_n_layers"] == 1:
            shapes |= {at + f"mlp.experts.mlp.{name}": (experts * inner, hidden) for name in ("w1", "w2")}
            shapes[at + "mlp.router.layer.weight"] = (experts, hidden)
            shapes[at + "mlp.experts.bias"] = (hidden,)
        else:
            shapes |= {at + "mlp.fc1.weight": (inner, hidden), at + "mlp.fc1.bias": (inner,)}
            shapes |= {at + "mlp.fc2.weight": (hidden, inner), at + "mlp.fc2.bias": (hidden,)}
    return shapes


def part_values(config: dict[str, Any]) -> Tensors:
    """Their values. The experts' bias is zero, because llama.cpp has none."""
    values = {name: weight(1, name, shape) for name, shape in part_shapes(config).items()}
    return {name: value * (not name.endswith("experts.bias")) for name, value in values.items()}


def _with_experts(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    published, tensors = _published(config, tensors)
    kept = {name: values for name, values in tensors.items() if ".mlp." not in name}
    return published, {**kept, **part_values(published)}


CASES = (
    encoder("nomic-bert", {**PUBLISHED, **_NATIVE}, publish=_published, raw_config=True),
    encoder(
        "nomic-bert-moe",
        {**WITH_EXPERTS, **_NATIVE, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        publish=_with_experts,
        patch="mix_nomic_experts",
        raw_config=True,
        tokenizer="unigram",
    ),
)
