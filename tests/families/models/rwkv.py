"""RWKV 6 and 7 with the World tokenizer; transformers has no class for either."""

from typing import Any

from tests.families.models.case import VOCAB, Case, Tensors

_COMMON: dict[str, Any] = {
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "tie_word_embeddings": False,
    "vocab_size": VOCAB,
}
# Heads of 64 values, the only width that llama.cpp's kernels are sure to take.
_SIX: dict[str, Any] = {
    **_COMMON,
    "architectures": ["Rwkv6ForCausalLM"],
    "attention_hidden_size": 128,
    "head_size": 64,
    "head_size_divisor": 8,
    "intermediate_size": None,
    "layer_norm_epsilon": 1e-5,
    "model_type": "rwkv6",
    "rescale_every": 2,
}
_SEVEN: dict[str, Any] = {
    **_COMMON,
    "a_low_rank_dim": 24,
    "architectures": ["RWKV7ForCausalLM"],
    "decay_low_rank_dim": 32,
    "gate_low_rank_dim": 40,
    "head_dim": 64,
    "hidden_act": "sqrelu",
    "intermediate_size": 256,
    "model_type": "rwkv7",
    "norm_bias": True,
    "norm_eps": 1e-5,
    "v_low_rank_dim": 16,
}
_ORIGINAL = (
    ("model.layers.0.pre_norm.", "model.pre_ln."),
    ("model.layers.", "model.blocks."),
    (".attn.g_norm.", ".attention.ln_x."),
    (".attn_norm.", ".ln1."),
    (".ffn_norm.", ".ln2."),
    (".attn.", ".attention."),
    (".ffn.", ".feed_forward."),
    (".r_proj.", ".receptance."),
    (".k_proj.", ".key."),
    (".v_proj.", ".value."),
    (".o_proj.", ".output."),
    ("model.norm.", "model.ln_out."),
    ("lm_head.", "head."),
)
_LOW_RANK = (("_lora.lora.0.weight", "1"), ("_lora.lora.2.weight", "2"), ("_lora.lora.2.bias", "0"))


def layout6(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of RWKV 6 as its code for transformers has them."""
    hidden, vocab, heads = config["hidden_size"], config["vocab_size"], config["hidden_size"] // config["head_size"]
    ffn = int(hidden * 3.5) // 32 * 32
    shapes: dict[str, tuple[int, ...]] = {"rwkv.embeddings.weight": (vocab, hidden), "head.weight": (vocab, hidden)}
    norms = ["rwkv.ln_out", "rwkv.blocks.0.pre_ln"]
    for layer in range(config["num_hidden_layers"]):
        at = f"rwkv.blocks.{layer}"
        time, channel = f"{at}.attention", f"{at}.feed_forward"
        norms += [f"{at}.ln1", f"{at}.ln2", f"{time}.ln_x"]
        shapes |= {f"{time}.time_maa_{part}": (1, 1, hidden) for part in "xwkvrg"}
        shapes |= {f"{time}.{name}.weight": (hidden, hidden) for name in ("receptance", "key", "value", "gate")}
        shapes |= {
            f"{time}.time_maa_w1": (hidden, 160),
            f"{time}.time_maa_w2": (5, 32, hidden),
            f"{time}.time_decay": (1, 1, hidden),
            f"{time}.time_decay_w1": (hidden, 64),
            f"{time}.time_decay_w2": (64, hidden),
            f"{time}.time_faaaa": (heads, config["head_size"]),
            f"{time}.output.weight": (hidden, hidden),
            f"{channel}.time_maa_k": (1, 1, hidden),
            f"{channel}.time_maa_r": (1, 1, hidden),
            f"{channel}.key.weight": (ffn, hidden),
            f"{channel}.receptance.weight": (hidden, hidden),
            f"{channel}.value.weight": (hidden, ffn),
        }
    return shapes | {f"{norm}.{part}": (hidden,) for norm in norms for part in ("weight", "bias")}


def _original(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """The layout of RWKV's own files: low-rank matrices the other way round, vectors with two axes in front."""
    published = {}
    for name, values in tensors.items():
        for old, new in _ORIGINAL:
            name = name.replace(old, new)
        for old, new in _LOW_RANK:
            if name.endswith(old):
                name, values = name.replace(old, new), values.T if values.ndim == 2 else values[None, None]
        if name.endswith((".k_k", ".k_a", ".x_k")) and values.ndim == 1:
            values = values[None, None]
        published[name] = values
    renamed = {
        "architectures": ["Rwkv7ForCausalLM"],
        "head_size": config["head_dim"],
        "layer_norm_epsilon": config["norm_eps"],
        "lora_rank_decay": config["decay_low_rank_dim"],
        "lora_rank_gate": config["gate_low_rank_dim"],
        "lora_rank_iclr": config["a_low_rank_dim"],
        "lora_rank_value_residual_mix": config["v_low_rank_dim"],
    }
    kept = ("hidden_size", "intermediate_size", "model_type", "num_hidden_layers", "vocab_size", *("bos_token_id",))
    return {**renamed, **{name: config[name] for name in (*kept, "eos_token_id", "tie_word_embeddings")}}, published


_SETTINGS: dict[str, Any] = {"newest": True, "tokenizer": "world", "raw_config": True}
# the converter takes a template from a file of llama.cpp's tree
_TEMPLATE = ("tokenizer.chat_template",)
CASES = (
    Case("rwkv6", _SIX, reference="rwkv6", differs=_TEMPLATE, **_SETTINGS),
    Case("rwkv7", _SEVEN, reference="rwkv7", differs=_TEMPLATE, **_SETTINGS),
    Case("rwkv7-original", _SEVEN, reference="rwkv7", publish=_original, differs=_TEMPLATE, **_SETTINGS),
)
