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

_BAICHUAN_KEYS = (
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
    config = {key: native.get(key) for key in _BAICHUAN_KEYS} | {
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
        published[at + "W_pack.weight"] = np.concatenate([tensors[f"{at}{each}_proj.weight"] for each in "qkv"])
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


CASES = (
    _baichuan("baichuan"),
    _baichuan("baichuan2", second=True),
    _baichuan("baichuan-13b", alibi=True),
    _baichuan("baichuan2-13b", alibi=True, second=True),
)
