"""Baichuan and InternLM, in the layouts in which they are published for remote code."""

from typing import Any

import numpy as np

from tests.families.models.case import VOCAB, Case, Tensors

BASE = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
}

_KEYS = (
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "initializer_range",
    "num_attention_heads",
    "num_hidden_layers",
    "rms_norm_eps",
    "use_cache",
    "vocab_size",
)


def publish_baichuan(native: dict[str, Any], tensors: Tensors, *, alibi: bool, second: bool) -> tuple[dict, Tensors]:
    """As on the hub: W_pack of q, k and v; the second generation's head stored at any length of its rows."""
    config = {key: native.get(key) for key in _KEYS} | {
        "architectures": ["BaichuanForCausalLM" if alibi or second else "BaiChuanForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_baichuan.BaichuanConfig",
            "AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM",
        },
        "bos_token_id": 1,
        "eos_token_id": 2,
        "model_type": "baichuan",
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    config |= {"hidden_act": "silu", "initializer_range": 0.02, "use_cache": True}
    config |= {"model_max_length": 512} if alibi or second else {}
    config |= {} if alibi else {"max_position_embeddings": 512}
    config |= {"z_loss_weight": 0} if second else {}
    if second:
        stored = tensors["lm_head.weight"]
        length = np.sqrt((stored.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
        tensors["lm_head.weight"] = (stored / length).astype(np.float32)
        stored = stored * np.linspace(0.3, 3.0, len(stored), dtype=np.float32)[:, None]
    published = {name: value for name, value in tensors.items() if "_proj" not in name or "self_attn" not in name}
    if second:
        published["lm_head.weight"] = stored
    for layer in range(native["num_hidden_layers"]):
        at = f"model.layers.{layer}.self_attn."
        published[at + "W_pack.weight"] = np.concatenate([tensors[f"{at}{letter}_proj.weight"] for letter in "qkv"])
        published[at + "o_proj.weight"] = tensors[at + "o_proj.weight"]
    return config, published


def _baichuan(name: str, *, alibi: bool = False, second: bool = False) -> Case:
    # Two heads too many for a power of two: the slopes between are used as well.
    shape = (
        {"num_hidden_layers": 40, "num_attention_heads": 6, "hidden_size": 96} if alibi else {"num_hidden_layers": 32}
    )
    return Case(
        name,
        {**BASE, **shape, "model_type": "llama", "max_position_embeddings": 512},
        publish=lambda native, tensors: publish_baichuan(native, tensors, alibi=alibi, second=second),
        patch="attend_with_linear_biases" if alibi else None,
        # llama.cpp's converter ends in a RecursionError on every Baichuan
        converter=False,
    )


def _remote(native: dict[str, Any], name: str, **stated: Any) -> dict[str, Any]:
    return {
        **{key: native[key] for key in (*_KEYS, "max_position_embeddings") if native.get(key) is not None},
        "architectures": [f"{name}ForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": f"modeling_{name.lower()}.{name}ForCausalLM"},
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.02,
        "hidden_act": "silu",
        "model_type": name.lower(),
        "pad_token_id": 2,
        "tie_word_embeddings": False,
        "use_cache": True,
        **stated,
    }


_INTERNLM2_NAMES = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "embed_tokens": "tok_embeddings",
    "lm_head": "output",
}


def publish_internlm2(native: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """wqkv: for each key-value head its queries, then the key, then the value."""
    scaling = native["rope_scaling"]
    stated = {key: native[key] for key in ("num_key_value_heads", "rope_theta")}
    stated["rope_scaling"] = {"type": scaling["rope_type"], "factor": scaling["factor"]} if scaling else None
    published = {}
    for name, value in tensors.items():
        for theirs, ours in _INTERNLM2_NAMES.items():
            name = name.replace(theirs, ours)
        if "self_attn" not in name:
            published[name] = value
    size, groups = native["hidden_size"] // native["num_attention_heads"], native["num_key_value_heads"]
    for layer in range(native["num_hidden_layers"]):
        q, k, v = (tensors[f"model.layers.{layer}.self_attn.{part}_proj.weight"] for part in "qkv")
        q, k, v = (np.split(part, groups) for part in (q, k, v))
        rows = [part for group in zip(q, k, v, strict=True) for part in group]
        assert rows[1].shape[0] == size
        published[f"model.layers.{layer}.attention.wqkv.weight"] = np.concatenate(rows)
    return _remote(native, "InternLM2", bias=False, **stated), published


def publish_internlm3(native: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    stated = {key: native[key] for key in ("num_key_value_heads", "rope_theta", "head_dim", "rope_scaling")}
    return _remote(native, "InternLM3", bias=native["mlp_bias"], qkv_bias=native["attention_bias"], **stated), tensors


def publish_internlm(native: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    rotary = {"base": native["rope_theta"], "type": "dynamic"}
    return _remote(native, "InternLM", bias=native["attention_bias"], rotary=rotary), tensors


INTERNLM = {
    **BASE,
    "model_type": "llama",
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rope_theta": 1e6,
    "pad_token_id": 2,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}

CASES = (
    _baichuan("baichuan"),
    _baichuan("baichuan2", second=True),
    _baichuan("baichuan-13b", alibi=True),
    _baichuan("baichuan2-13b", alibi=True, second=True),
    Case("internlm2", {**INTERNLM, "rope_scaling": DYNAMIC}, publish_internlm2, tokenizer="few-letters"),
    Case(
        "internlm2-linear",
        {**INTERNLM, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        publish_internlm2,
        tokenizer="few-letters",
    ),
    Case(
        "internlm3",
        {**INTERNLM, "rope_scaling": DYNAMIC, "head_dim": 16, "attention_bias": True, "mlp_bias": True},
        publish_internlm3,
        seed=3,
        tokenizer="few-letters",
    ),
    # llama.cpp's converter knows InternLM 1 no more
    Case(
        "internlm",
        {**INTERNLM, "num_key_value_heads": 8, "attention_bias": True, "rope_theta": 20000.0},
        publish_internlm,
        converter=False,
    ),
)
