"""Headers of models of any size, in front of a hole: what llama.cpp and quantkit are both asked about."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType

from quantkit.gguf.reader import read_header
from quantkit.planning.planned_tensors import PlannedTensor
from quantkit.planning.shape import ModelShape, model_shape
from tests.helpers.oracle import model_metadata, model_tensors, write_sparse_gguf

_T = GGMLQuantizationType

# Five shapes, small enough to be loaded for real with a context of 32768.
SHAPES: dict[str, dict[str, Any]] = {
    "grouped queries": {"n_layer": 6, "n_embd": 1024, "n_ff": 2816, "n_head": 16, "n_head_kv": 2},
    "all heads": {"n_layer": 4, "n_embd": 512, "n_ff": 2048, "n_head": 8, "n_head_kv": 8},
    "experts": {"n_layer": 4, "n_embd": 768, "n_ff": 1536, "n_head": 12, "n_head_kv": 4, "n_expert": 8},
    "large vocabulary": {"n_layer": 4, "n_embd": 512, "n_ff": 1536, "n_head": 8, "n_head_kv": 4, "n_vocab": 151936},
}
SLIDING = {"n_layer": 12, "n_embd": 640, "n_ff": 2560, "n_head": 4, "n_head_kv": 1, "n_vocab": 32000}

# Published shapes: Llama 3 8B and 70B, Mixtral 8x7B.
LARGE: dict[str, dict[str, Any]] = {
    "8B": {"n_layer": 32, "n_embd": 4096, "n_ff": 14336, "n_head": 32, "n_head_kv": 8, "n_vocab": 128256},
    "70B": {"n_layer": 80, "n_embd": 8192, "n_ff": 28672, "n_head": 64, "n_head_kv": 8, "n_vocab": 128256},
    "Mixtral": {"n_layer": 32, "n_embd": 4096, "n_ff": 14336, "n_head": 32, "n_head_kv": 8, "n_expert": 8},
}


def write_model(path: Path, sizes: Mapping[str, Any], dtype: GGMLQuantizationType = _T.F16) -> Path:
    """A model of the Llama kind; llama.cpp is told the number of tokens and no texts."""
    keys = model_metadata("llama", **sizes)
    return _write(path, keys, model_tensors(**sizes, dtype=dtype), int(sizes.get("n_vocab", 32000)))


def write_sliding(path: Path, sizes: Mapping[str, Any] = SLIDING, window: int = 512) -> Path:
    """A Gemma 3, of whose layers every sixth sees the whole context and the others a window."""
    layers, n_embd, head = sizes["n_layer"], sizes["n_embd"], 256
    keys = model_metadata("gemma3", **sizes)
    keys |= {"gemma3.attention.sliding_window": window, "gemma3.rope.freq_base": 1e6}
    keys |= {"gemma3.attention.key_length": head, "gemma3.attention.value_length": head}
    tensors = []
    for name, shape, dtype in model_tensors(**sizes, tied=True):
        rows = {"attn_q": sizes["n_head"], "attn_k": sizes["n_head_kv"], "attn_v": sizes["n_head_kv"]}
        kind = name.split(".")[-2]
        if kind in rows:
            shape = (rows[kind] * head, n_embd)
        elif kind == "attn_output":
            shape = (n_embd, sizes["n_head"] * head)
        tensors.append((name, shape, dtype))
    for layer in range(layers):
        tensors += [
            (f"blk.{layer}.{name}.weight", (n_embd,), _T.F32) for name in ("post_attention_norm", "post_ffw_norm")
        ]
        tensors += [(f"blk.{layer}.{name}.weight", (head,), _T.F32) for name in ("attn_q_norm", "attn_k_norm")]
    return _write(path, keys, tensors, sizes["n_vocab"])


def write_described(path: Path, keys: Mapping[str, Any], tensors: list[Any]) -> Path:
    """A model as tests.families.test_large_shapes describes it."""
    vocab = next(tensor.shape[0] for tensor in tensors if tensor.name == "token_embd.weight")
    return _write(path, dict(keys), [(tensor.name, tensor.shape, tensor.dtype) for tensor in tensors], vocab)


def _write(path: Path, keys: dict[str, Any], tensors: list[Any], vocab: int) -> Path:
    arch = keys["general.architecture"]
    write_sparse_gguf(path, {**keys, "tokenizer.ggml.model": "no_vocab", f"{arch}.vocab_size": vocab}, tensors)
    return path


def read_model(path: Path) -> tuple[ModelShape, tuple[PlannedTensor, ...]]:
    """What the plan knows of a file: its header."""
    header = read_header(path)
    tensors = tuple(PlannedTensor(slot.name, slot.shape, slot.type) for slot in header.tensors)
    shape = model_shape({key.key: key.value for key in header.keys}, [(t.name, t.shape) for t in tensors], path.name)
    return shape, tensors
