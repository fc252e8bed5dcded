"""Llama and Mixtral checkpoints of any size, written at the disk's speed: a random block, SmolLM2's real tokenizer."""

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks.lines import WORK
from demo.inputs import CACHE
from demo.smollm2 import CONFIG, smollm2_checkpoint

VOCAB = 49152
_BLOCK = 1 << 22
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
TOKENIZER_FOLDER = "SmolLM2-tokenizer"


@dataclass(frozen=True)
class Shape:
    """A Llama with tied embeddings; with `experts` a Mixtral, two of whose experts see each token.

    Rows are whole super-blocks, so that K-quants are what they are in large models.
    """

    name: str
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    experts: int = 0
    vocab: int = VOCAB

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        kv = self.hidden // self.heads * self.kv_heads
        yield "model.embed_tokens.weight", (self.vocab, self.hidden)
        for layer in range(self.layers):
            at = f"model.layers.{layer}."
            yield f"{at}input_layernorm.weight", (self.hidden,)
            if self.experts:
                yield f"{at}block_sparse_moe.gate.weight", (self.experts, self.hidden)
                for expert in range(self.experts):
                    own = f"{at}block_sparse_moe.experts.{expert}."
                    yield f"{own}w1.weight", (self.ffn, self.hidden)
                    yield f"{own}w2.weight", (self.hidden, self.ffn)
                    yield f"{own}w3.weight", (self.ffn, self.hidden)
            else:
                yield f"{at}mlp.down_proj.weight", (self.hidden, self.ffn)
                yield f"{at}mlp.gate_proj.weight", (self.ffn, self.hidden)
                yield f"{at}mlp.up_proj.weight", (self.ffn, self.hidden)
            yield f"{at}post_attention_layernorm.weight", (self.hidden,)
            yield f"{at}self_attn.k_proj.weight", (kv, self.hidden)
            yield f"{at}self_attn.o_proj.weight", (self.hidden, self.hidden)
            yield f"{at}self_attn.q_proj.weight", (self.hidden, self.hidden)
            yield f"{at}self_attn.v_proj.weight", (kv, self.hidden)
        yield "model.norm.weight", (self.hidden,)

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for _, shape in self.tensors())

    def config(self) -> dict[str, Any]:
        """config.json."""
        config = {
            **CONFIG,
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocab,
        }
        if self.experts:
            mixtral = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "sliding_window": None}
            config |= {**mixtral, "num_local_experts": self.experts, "num_experts_per_tok": 2}
        return config


# The largest tensor of each is under 256 MB.
SHAPES = (
    Shape("Synthetic-0.1B", hidden=768, ffn=2048, layers=12, heads=12, kv_heads=4),
    Shape("Synthetic-0.8B", hidden=1536, ffn=4096, layers=29, heads=12, kv_heads=4),
    Shape("Synthetic-3B", hidden=2560, ffn=6912, layers=41, heads=20, kv_heads=5),
)
# The same width at three depths: what a layer takes should not depend on how many there are.
DEPTHS = tuple(Shape(f"Depth-{n}", hidden=512, ffn=1536, layers=n, heads=8, kv_heads=4) for n in (8, 30, 60))
# A layer of Qwen2.5-1.5B.
LAYER = Shape("Layer-of-1.5B", hidden=1536, ffn=8960, layers=1, heads=12, kv_heads=2)
# Mixtral 8x7B at half its width, with a quarter of its layers: 3.0B parameters.
MIXTURE = Shape("Mixture-3B", hidden=2048, ffn=7168, layers=8, heads=16, kv_heads=4, experts=8)


@contextmanager
def synthetic(shape: Shape, bytes_a_parameter: float) -> Iterator[Path | None]:
    """The checkpoint of a shape for as long as it is measured; None if the disk is too small for all of it."""
    needed = shape.parameters * bytes_a_parameter
    if shutil.disk_usage(WORK).free < 1.2 * needed:
        print(f"  {shape.name} left out: it takes {needed / 1e9:.0f} GB of disk", flush=True)
        yield None
        return
    folder = WORK / shape.name
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield write_synthetic(folder, shape)
    finally:
        for used in (folder, WORK / "ours", WORK / "theirs"):
            shutil.rmtree(used, ignore_errors=True)


def write_synthetic(folder: Path, shape: Shape) -> Path:
    """Write the checkpoint in bf16 and return its folder. Same shape, same bytes."""
    folder.mkdir(parents=True)
    header, offset = {}, 0
    for name, dims in shape.tensors():
        size = 2 * math.prod(dims)
        header[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [offset, offset + size]}
        offset += size
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    noise = np.random.RandomState(0).standard_normal(_BLOCK).astype(np.float32)
    # A stride of a prime number of values keeps tensors from being copies of each other.
    block = memoryview((noise * 0.02).astype(ml_dtypes.bfloat16).tobytes() * 2)
    ones = np.ones(shape.hidden, dtype=ml_dtypes.bfloat16).tobytes()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for number, (_, dims) in enumerate(shape.tensors()):
            left = 2 * math.prod(dims)
            if len(dims) == 1:
                file.write(ones)
                continue
            start = 2 * (number * 7919 % _BLOCK)
            while left:
                piece = block[start : start + min(left, 2 * _BLOCK)]
                file.write(piece)
                left -= len(piece)
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=2) + "\n")
    for name in TOKENIZER:
        shutil.copy(tokenizer_folder() / name, folder / name)
    return folder


def tokenizer_folder(*, here: bool = False) -> Path:
    """The folder of SmolLM2's tokenizer: alone, as benchmarks.gpu_bundle installs it, or with its weights.

    `here`: the first, whether it is there or not.
    """
    alone = CACHE / TOKENIZER_FOLDER
    return alone if here or alone.is_dir() else smollm2_checkpoint()
