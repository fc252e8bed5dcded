"""Tiny real checkpoints of the Llama family, built on the spot: random weights, a trained tokenizer, the hub's files.

`tiny_llama(folder, variant=...)` writes what each published family publishes (its config.json keys, its tokenizer
files) at a size of a few megabytes, without torch and without a download. Same arguments, same bytes.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from demo.safetensors_file import write_safetensors
from tests.helpers.tiny_tokenizers import write_byte_level_bpe, write_sentencepiece

DTYPES = {
    "f32": ("F32", np.dtype(np.float32), "float32"),
    "f16": ("F16", np.dtype(np.float16), "float16"),
    "bf16": ("BF16", np.dtype(ml_dtypes.bfloat16), "bfloat16"),
}


@dataclass(frozen=True)
class Variant:
    """What sets one published family apart: the keys of its config.json, its shape, its tokenizer."""

    tokenizer: str
    config: Mapping[str, Any]
    hidden: int = 256
    intermediate: int = 512
    heads: int = 4
    kv_heads: int = 4
    tied: bool = False
    architecture: str = "LlamaForCausalLM"
    drop: tuple[str, ...] = field(default=())


_LLAMA3_ROPE = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
_LLAMA2 = {"max_position_embeddings": 4096, "pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_scaling": None}

VARIANTS: dict[str, Variant] = {
    "llama1": Variant(
        "llama",
        {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "pad_token_id": 0},
        drop=("num_key_value_heads",),
    ),
    "llama2": Variant("llama", _LLAMA2),
    "llama3": Variant(
        "llama3",
        {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "max_position_embeddings": 131072,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-5,
            "rope_scaling": _LLAMA3_ROPE,
            "rope_theta": 500000.0,
        },
        kv_heads=2,
    ),
    "linear-rope": Variant("llama", {**_LLAMA2, "rope_scaling": {"type": "linear", "factor": 4.0}}),
    "mistral": Variant(
        "llama",
        {"max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 4096},
        kv_heads=2,
        architecture="MistralForCausalLM",
    ),
    "mistral-nemo": Variant(
        "llama",
        {
            "attention_dropout": 0.0,
            "head_dim": 32,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1000000.0,
            "sliding_window": None,
        },
        kv_heads=2,
        architecture="MistralForCausalLM",
    ),
    "yi": Variant(
        "yi",
        {"max_position_embeddings": 4096, "pad_token_id": 0, "rms_norm_eps": 1e-5, "rope_theta": 5000000.0},
        kv_heads=2,
    ),
    "smollm2": Variant(
        "smollm",
        {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "max_position_embeddings": 8192,
            "mlp_bias": False,
            "pad_token_id": 2,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-5,
            "rope_interleaved": False,
            "rope_scaling": None,
            "rope_theta": 100000,
        },
        hidden=288,
        intermediate=768,
        heads=9,
        kv_heads=3,
        tied=True,
    ),
    "tinyllama": Variant(
        "llama",
        {**_LLAMA2, "attention_bias": False, "max_position_embeddings": 2048, "rope_theta": 10000.0},
        kv_heads=1,
    ),
    "attention-bias": Variant(
        "llama", {**_LLAMA2, "attention_bias": True, "mlp_bias": False, "rope_theta": 10000.0}, kv_heads=2
    ),
    "mixtral": Variant(
        "llama",
        {
            "attention_dropout": 0.0,
            "max_position_embeddings": 32768,
            "num_experts_per_tok": 2,
            "num_local_experts": 4,
            "output_router_logits": False,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1000000.0,
            "router_aux_loss_coef": 0.02,
            "sliding_window": None,
        },
        kv_heads=2,
        architecture="MixtralForCausalLM",
    ),
}


def tiny_llama(
    folder: Path,
    *,
    variant: str = "llama2",
    dtype: str = "bf16",
    hidden: int | None = None,
    intermediate: int | None = None,
    layers: int = 2,
    heads: int | None = None,
    kv_heads: int | None = None,
    tied: bool | None = None,
    vocab: int = 768,
    extra_rows: int = 0,
    seed: int = 0,
    shards: int = 1,
    tokenizer_model: bool = True,
    tokenizer_json: bool = True,
    unigram: bool = False,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint into `folder` (made if missing) and return it.

    `variant` is a key of VARIANTS, `dtype` one of f32, f16, bf16. `vocab` is the tokenizer's size; the embedding has
    `extra_rows` more. `tokenizer_model` and `tokenizer_json` say which of the two SentencePiece-style files to write
    (byte-level families have tokenizer.json only). `unigram` trains a unigram tokenizer.model (no larger than
    the training text allows, and with no tokenizer.json). `config` overrides keys of config.json, before the weights
    are made.
    """
    kind = VARIANTS[variant]
    hidden = hidden or kind.hidden
    heads = heads or kind.heads
    folder.mkdir(parents=True, exist_ok=True)
    if kind.tokenizer in ("llama3", "smollm"):
        special = write_byte_level_bpe(folder, kind.tokenizer, vocab)
    else:
        special = write_sentencepiece(
            folder,
            kind.tokenizer,
            vocab,
            model=tokenizer_model,
            json_too=tokenizer_json and not unigram,
            unigram=unigram,
        )
    settings: dict[str, Any] = {
        "architectures": [kind.architecture],
        "bos_token_id": special["bos"],
        "eos_token_id": special["eos"],
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": intermediate or kind.intermediate,
        "model_type": kind.architecture.removesuffix("ForCausalLM").lower(),
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads or (heads if "num_key_value_heads" in kind.drop else kind.kv_heads),
        "tie_word_embeddings": kind.tied if tied is None else tied,
        "torch_dtype": DTYPES[dtype][2],
        "transformers_version": "4.43.0",
        "use_cache": True,
        "vocab_size": special["size"] + extra_rows,
        **kind.config,
    }
    for key in kind.drop:
        del settings[key]
    settings.update(config or {})
    _write_json(folder / "config.json", dict(sorted(settings.items())))
    generation = {"bos_token_id": special["bos"], "eos_token_id": special["eos"], "transformers_version": "4.43.0"}
    _write_json(folder / "generation_config.json", {"_from_model_config": True, **generation})
    shape = {key: settings[key] for key in _SHAPE if key in settings}
    _write_weights(folder, _seeded_weights(json.dumps(shape), seed), dtype, shards)
    return folder


_SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size", "num_attention_heads")
_SHAPE += ("num_key_value_heads", "head_dim", "num_local_experts", "attention_bias", "mlp_bias", "tie_word_embeddings")
"""The keys of config.json that decide the weights."""


@lru_cache(maxsize=12)
def _seeded_weights(shape: str, seed: int) -> dict[str, np.ndarray]:
    """The weights of a JSON object of _SHAPE. Many tests of a file have the same model."""
    return dict(_weights(json.loads(shape), np.random.RandomState(seed)))


def _weights(config: Mapping[str, Any], rng: np.random.RandomState) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor under its Hugging Face name, float32, scaled so that activations and logits keep a sane size.

    RandomState is the generator whose stream numpy promises never to change, so expected numbers can be stored.
    """
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    head_dim = config.get("head_dim") or hidden // heads

    def linear(rows: int, columns: int, gain: float = 1.0) -> np.ndarray:
        return rng.standard_normal((rows, columns)).astype(np.float32) * np.float32(gain / columns**0.5)

    def vector(size: int, mean: float, spread: float) -> np.ndarray:
        return np.float32(mean) + np.float32(spread) * rng.standard_normal(size).astype(np.float32)

    yield "model.embed_tokens.weight", linear(config["vocab_size"], hidden, 2.0)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        for name, rows, columns in (
            ("q_proj", heads * head_dim, hidden),
            ("k_proj", kv_heads * head_dim, hidden),
            ("v_proj", kv_heads * head_dim, hidden),
            ("o_proj", hidden, heads * head_dim),
        ):
            yield f"{at}self_attn.{name}.weight", linear(rows, columns)
            if config.get("attention_bias"):
                yield f"{at}self_attn.{name}.bias", vector(rows, 0.0, 0.2)
        if "num_local_experts" in config:
            yield f"{at}block_sparse_moe.gate.weight", linear(config["num_local_experts"], hidden)
            for expert in range(config["num_local_experts"]):
                for name, rows, columns in (("w1", inner, hidden), ("w2", hidden, inner), ("w3", inner, hidden)):
                    yield f"{at}block_sparse_moe.experts.{expert}.{name}.weight", linear(rows, columns)
        else:
            for name, rows, columns in (
                ("gate_proj", inner, hidden),
                ("up_proj", inner, hidden),
                ("down_proj", hidden, inner),
            ):
                yield f"{at}mlp.{name}.weight", linear(rows, columns)
                if config.get("mlp_bias"):
                    yield f"{at}mlp.{name}.bias", vector(rows, 0.0, 0.2)
        yield f"{at}input_layernorm.weight", vector(hidden, 1.0, 0.1)
        yield f"{at}post_attention_layernorm.weight", vector(hidden, 1.0, 0.1)
    yield "model.norm.weight", vector(hidden, 1.0, 0.1)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", linear(config["vocab_size"], hidden, 2.0)


def _write_weights(folder: Path, tensors: dict[str, np.ndarray], dtype: str, shards: int) -> None:
    tag, stored, _ = DTYPES[dtype]
    names = sorted(tensors)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", {name: (tag, tensors[name].astype(stored)) for name in names})
        return
    weight_map, total = {}, 0
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        members = {name: (tag, tensors[name].astype(stored)) for name in mine}
        write_safetensors(folder / file, members)
        weight_map.update(dict.fromkeys(mine, file))
        total += sum(data.nbytes for _, data in members.values())
    _write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))},
    )


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
