"""The models quantkit grew from, as they are published: config.json and number of parameters; no weights.

The figures are from the models' own pages (parameters: total_size of the weights' index over the element size).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantkit.families import Family, Hyperparameters, Rule, find_family
from tests.helpers.tiny_tokenizers import write_byte_level_bpe


@dataclass(frozen=True)
class Published:
    """A checkpoint's config.json, its exact parameters, and the optional tensors it has (parts of names)."""

    name: str
    config: Mapping[str, Any]
    parameters: int
    has: tuple[str, ...] = ()
    prefixes: tuple[tuple[str, str], ...] = field(default=())


_LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5}
_QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "rms_norm_eps": 1e-6}
_QWEN2 |= {"max_position_embeddings": 32768, "rope_theta": 1e6, "tie_word_embeddings": False, "sliding_window": 32768}
_QWEN1 = {
    "architectures": ["QWenLMHeadModel"],
    "model_type": "qwen",
    "bf16": True,
    "kv_channels": 128,
    "layer_norm_epsilon": 1e-6,
    "max_position_embeddings": 8192,
    "no_bias": True,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "scale_attn_weights": True,
    "seq_length": 2048,
    "tie_word_embeddings": False,
    "use_dynamic_ntk": True,
    "use_flash_attn": "auto",
    "use_logn_attn": True,
}
_BAICHUAN = {
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "baichuan",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
_BLOOM = {
    "apply_residual_connection_post_layernorm": False,
    "architectures": ["BloomForCausalLM"],
    "layer_norm_epsilon": 1e-5,
    "model_type": "bloom",
    "n_layer": 30,
    "num_attention_heads": 32,
    "n_embed": 4096,
    "offset_alibi": 100,
    "seq_length": 2048,
    "slow_but_exact": False,
    "vocab_size": 250880,
}
_MIXTRAL = {
    "architectures": ["MixtralForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mixtral",
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
}


def _llama(hidden: int, inner: int, layers: int, heads: int, kv: int, vocab: int, **more: Any) -> dict[str, Any]:
    return {
        **_LLAMA,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        **more,
    }


def _qwen2(hidden: int, inner: int, layers: int, heads: int, vocab: int) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}
    return {**_QWEN2, **sizes, "num_attention_heads": heads, "num_key_value_heads": heads, "vocab_size": vocab}


def _qwen1(hidden: int, inner: int, layers: int, heads: int, vocab: int) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}
    return {**_QWEN1, **sizes, "num_attention_heads": heads, "vocab_size": vocab}


_QKV_BIAS = ("q_proj.bias", "k_proj.bias", "v_proj.bias")

MISSION = (
    Published("BlossomLM Yi-9B", _llama(4096, 11008, 48, 32, 4, 64000, rope_theta=10000.0), 8_829_407_232),
    Published("BlossomLM Yi-34B", _llama(7168, 20480, 60, 56, 8, 64000, rope_theta=5e6), 34_388_917_248),
    Published(
        "BlossomLM Qwen-1.8B",
        {**_qwen1(2048, 11008, 24, 16, 151936), "seq_length": 8192},
        1_836_828_672,
        ("c_attn.bias",),
    ),
    Published("BlossomLM Qwen-14B", _qwen1(5120, 27392, 40, 40, 152064), 14_167_290_880, ("c_attn.bias",)),
    Published("BlossomLM Qwen1.5-4B", _qwen2(2560, 6912, 40, 20, 151936), 3_950_369_280, _QKV_BIAS),
    Published("BlossomLM Qwen1.5-14B", _qwen2(5120, 13696, 40, 40, 152064), 14_167_290_880, _QKV_BIAS),
    Published(
        "BlossomLM Baichuan2-7B",
        {**_BAICHUAN, "architectures": ["BaichuanForCausalLM"], "vocab_size": 125696, "z_loss_weight": 0},
        7_505_973_248,
    ),
    Published(
        "BlossomLM Mistral-7B",
        {
            **_llama(4096, 14336, 32, 32, 8, 32000, rope_theta=10000.0, sliding_window=4096),
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "max_position_embeddings": 32768,
        },
        7_241_732_096,
    ),
    Published("Mixtral 8x7B", {**_MIXTRAL, "vocab_size": 32000}, 46_702_792_704),
    # the same layers, and (57000 - 32000) more rows of 4096 in embedding and head
    Published("Huozi-3", {**_MIXTRAL, "vocab_size": 57000}, 46_702_792_704 + 2 * 25_000 * 4096),
    Published("Huozi-1/2 (BLOOM 7B)", _BLOOM, 7_069_016_064),
    Published(
        "Baichuan-7B",
        {**_BAICHUAN, "architectures": ["BaiChuanForCausalLM"], "vocab_size": 64000},
        7_000_559_616,
    ),
)


def source_shapes(model: Published) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the checkpoint's tensors, as its family's rules would have them."""
    family = find_family(model.config)
    sizes = family.sizes(model.config)
    shapes: dict[str, tuple[int, ...]] = {}
    taken: set[tuple[str, int | None]] = set()
    for rule in family.rules:
        layers: Iterable[int | None] = range(sizes.n_layer) if "{layer}" in rule.source else (None,)
        if rule.draft:
            layers = range(sizes.n_layer, sizes.n_layer + sizes.n_draft)
        for layer in layers:
            if (rule.target, layer) in taken or not _there(rule, layer, sizes, model):
                continue
            taken.add((rule.target, layer))
            for expert in range(sizes.n_expert) if "{expert}" in rule.source else (None,):
                name = rule.source.format(layer=layer, draft=(layer or 0) - sizes.n_layer, expert=expert)
                shapes[name] = tuple(family.dimension(sizes, dimension, layer) for dimension in rule.shape)
    return shapes


def _there(rule: Rule, layer: int | None, sizes: Hyperparameters, model: Published) -> bool:
    if rule.when is not None and not rule.when(sizes):
        return False
    if layer is not None and rule.layers is not None and layer not in set(rule.layers(sizes)):
        return False
    wanted = rule.required or (rule.tied_to_embedding and not sizes.tied)
    return wanted or any(part in rule.source for part in model.has)


def write_sparse(model: Published, folder: Path) -> Path:
    """The checkpoint at its full size, bf16, on no disk to speak of: real headers, holes for weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**model.config, "torch_dtype": "bfloat16"}))
    write_byte_level_bpe(folder, "smollm", 512)
    header, offset = {}, 0
    for name, shape in source_shapes(model).items():
        size = 2
        for length in shape:
            size *= length
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    return folder


def family_of(model: Published) -> Family:
    return find_family(model.config)
