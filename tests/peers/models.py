"""Small checkpoints for other loaders, written without torch: two layers of random weights, a trained tokenizer.

Widths are those that their kernels want: GPTQModel's take 32 inputs and outputs at a time, AutoAWQ's 8 outputs. Groups
of 32 divide all of them.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from demo.safetensors_file import write_safetensors
from tests.families.models import weight
from tests.helpers.tiny import tiny_llama
from tests.helpers.tiny_tokenizers import write_byte_level_bpe

VOCAB = 512
PROMPT: list[int] = np.random.RandomState(0).randint(3, VOCAB, 24).tolist()
"""What every small model reads."""
_QWEN: dict[str, Any] = {
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 128,
    "intermediate_size": 256,
    "max_position_embeddings": 2048,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_cache": True,
    "vocab_size": VOCAB,
}
_MOE: dict[str, Any] = {
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 64,
    "norm_topk_prob": False,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "output_router_logits": False,
}
CONFIGS: Mapping[str, dict[str, Any]] = {
    "qwen2": {**_QWEN, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
    "qwen2moe": {
        **_QWEN,
        **_MOE,
        "architectures": ["Qwen2MoeForCausalLM"],
        "model_type": "qwen2_moe",
        "shared_expert_intermediate_size": 128,
    },
    "qwen3moe": {
        **_QWEN,
        **_MOE,
        "architectures": ["Qwen3MoeForCausalLM"],
        "attention_bias": False,
        "head_dim": 32,
        "model_type": "qwen3_moe",
        "norm_topk_prob": True,
    },
}


def small_model(name: str, folder: Path) -> Path:
    """Write llama, mixtral or one of CONFIGS into `folder`, in float32, and return it."""
    if name in ("llama", "mixtral"):
        variant = {"llama": "llama3", "mixtral": "mixtral"}[name]
        return tiny_llama(folder, variant=variant, dtype="f32", hidden=128, intermediate=256)
    config = CONFIGS[name]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True))
    tensors = {key: ("F32", weight(0, key, shape)) for key, shape in _shapes(config)}
    write_safetensors(folder / "model.safetensors", dict(sorted(tensors.items())))
    write_byte_level_bpe(folder, "smollm", VOCAB)
    return folder


def _shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, heads, kv_heads = (config[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    head = config.get("head_dim", hidden // heads)
    yield "model.embed_tokens.weight", (VOCAB, hidden)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (VOCAB, hidden)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        yield f"{at}input_layernorm.weight", (hidden,)
        yield f"{at}post_attention_layernorm.weight", (hidden,)
        for name, rows in (("q", heads * head), ("k", kv_heads * head), ("v", kv_heads * head)):
            yield f"{at}self_attn.{name}_proj.weight", (rows, hidden)
            if config["model_type"].startswith("qwen2"):
                yield f"{at}self_attn.{name}_proj.bias", (rows,)
        yield f"{at}self_attn.o_proj.weight", (hidden, heads * head)
        if config["model_type"].startswith("qwen3"):
            yield f"{at}self_attn.q_norm.weight", (head,)
            yield f"{at}self_attn.k_norm.weight", (head,)
        if "num_experts" not in config:
            yield from _mlp(f"{at}mlp.", hidden, config["intermediate_size"])
            continue
        yield f"{at}mlp.gate.weight", (config["num_experts"], hidden)
        for expert in range(config["num_experts"]):
            yield from _mlp(f"{at}mlp.experts.{expert}.", hidden, config["moe_intermediate_size"])
        if "shared_expert_intermediate_size" in config:
            yield f"{at}mlp.shared_expert_gate.weight", (1, hidden)
            yield from _mlp(f"{at}mlp.shared_expert.", hidden, config["shared_expert_intermediate_size"])


def _mlp(at: str, hidden: int, inner: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{at}gate_proj.weight", (inner, hidden)
    yield f"{at}up_proj.weight", (inner, hidden)
    yield f"{at}down_proj.weight", (hidden, inner)
