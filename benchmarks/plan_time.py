"""The time of a plan: `quantkit plan` for folders with the headers of published models, in front of holes.

`python -m benchmarks.plan_time`. A figure is the minimum of RUNS processes, from the start of Python to the last line.
"""

import json
import struct
import sys
import tempfile
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from benchmarks.lines import Lines, Target, figures, machine, print_machine
from benchmarks.process import measure

RUNS = 5
BOUND = 3.0
_SHARD = 4_000_000_000
_BYTES = 2  # of a bfloat16

_COMMON = {
    "hidden_act": "silu",
    "max_position_embeddings": 40960,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
QWEN3_235B = _COMMON | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "mlp_only_layers": [],
    "moe_intermediate_size": 1536,
    "norm_topk_prob": True,
    "num_attention_heads": 64,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 94,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "vocab_size": 151936,
}
LLAMA3_70B = _COMMON | {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e5,
    "vocab_size": 128256,
}
MODELS = {"Qwen3-235B": QWEN3_235B, "Llama-3-70B": LLAMA3_70B}


def tensors(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes in the order of the published files."""
    hidden, vocab, heads = config["hidden_size"], config["vocab_size"], config["num_attention_heads"]
    head = config.get("head_dim", hidden // heads)
    queries, keys = heads * head, config["num_key_value_heads"] * head
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        for name, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            yield f"{at}self_attn.{name}.weight", (rows, hidden)
        yield f"{at}self_attn.o_proj.weight", (hidden, queries)
        experts = config.get("num_experts", 0)
        if experts:
            yield f"{at}self_attn.q_norm.weight", (head,)
            yield f"{at}self_attn.k_norm.weight", (head,)
            yield f"{at}mlp.gate.weight", (experts, hidden)
        inner = config["moe_intermediate_size"] if experts else config["intermediate_size"]
        for part in [f"mlp.experts.{expert}" for expert in range(experts)] or ["mlp"]:
            yield f"{at}{part}.gate_proj.weight", (inner, hidden)
            yield f"{at}{part}.up_proj.weight", (inner, hidden)
            yield f"{at}{part}.down_proj.weight", (hidden, inner)
        yield f"{at}input_layernorm.weight", (hidden,)
        yield f"{at}post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocab, hidden)


def write_headers(folder: Path, config: dict[str, Any]) -> int:
    """The checkpoint's config.json, index and shards, whose data are holes; returns the number of tensors."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    shards: list[dict[str, Any]] = [{}]
    end = 0
    for name, shape in tensors(config):
        size = _BYTES * prod(shape)
        if shards[-1] and end + size > _SHARD:
            shards.append({})
            end = 0
        shards[-1][name] = {"dtype": "BF16", "shape": shape, "data_offsets": (end, end + size)}
        end += size
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        text = json.dumps(shard, separators=(",", ":")).encode()
        data = max(entry["data_offsets"][1] for entry in shard.values())
        with (folder / file).open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            out.truncate(8 + len(text) + data)
        weight_map |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return len(weight_map)


def main() -> None:
    """Print the seconds and write bench-output/plan_time.json."""
    facts = machine()
    print_machine(facts)
    lines = Lines()
    with tempfile.TemporaryDirectory() as folder:
        for name, config in MODELS.items():
            count = write_headers(Path(folder) / name, config)
            command = [sys.executable, "-m", "quantkit", "plan", name, "--vram", "24G", "--ram", "256G"]
            runs = [measure(command, folder=Path(folder)) for _ in range(RUNS)]
            best = min(runs, key=lambda run: run.seconds)
            lines.raw[name] = [figures(run) for run in runs]
            lines.add(Target(f"plan of {count} tensors", name, best.seconds, "s", at_most=BOUND))
            lines.add(Target("  its CPU time", name, min(run.cpu_seconds for run in runs), "s"))
    lines.save("plan_time", facts)


if __name__ == "__main__":
    main()
