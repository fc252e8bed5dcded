"""Further files of checkpoints: encoders, projectors, adapters, quantized sources."""

import json
from collections.abc import Callable
from pathlib import Path

from quantkit.checkpoint import open_checkpoint
from tests.checkpoint.test_quantized_sources import CASES, folder_of
from tests.families.expected import write_checkpoint
from tests.families.test_pooling import with_pooling
from tests.fuzz.target import Target, command
from tests.helpers.adapters import AdapterCase, write_adapter
from tests.vision.expected import expected
from tests.vision.expected import write_checkpoint as write_seeing

QUANTIZED = (
    "awq", "gptq 4 bit v2 act-order", "gptq, own bits of some linears", "auto-round as auto_gptq", "w4a16 asymmetric",
    "nvfp4", "fp8 and w4a16", "nf4 double", "bitnet", "mlx, own bits of some linears",
)  # fmt: skip
"""One source of each layout, of those in tests/checkpoint/quantized."""


def checkpoint_targets(folder: Path, model: Path) -> dict[str, Target]:
    """The targets, with their seeds in `folder`. `model`: a sound checkpoint."""
    dry = ("-t", "q8_0", "--dry-run", "-o", folder / "out")
    encoder = with_pooling(write_checkpoint("qwen3-embedding", folder / "embedding"), {"pooling_mode_lasttoken": True})
    bert, seeing = write_checkpoint("bert", folder / "bert"), _seeing(folder)
    adapter = write_adapter(folder / "adapter", model, AdapterCase())
    index = _with_index(write_checkpoint("qwen3-embedding", folder / "indexed"))
    sees = command("gguf", seeing, "--mmproj", "f16", *dry)
    merges = command("gguf", model, "--adapter", adapter, *dry)
    targets = {
        "modules.json": Target(encoder / "modules.json", command("gguf", encoder, *dry)),
        "pooling's config.json": Target(encoder / "1_Pooling" / "config.json", command("gguf", encoder, *dry)),
        "config.json of an encoder": Target(bert / "config.json", command("gguf", bert, *dry)),
        "tokenizer.json of an encoder": Target(bert / "tokenizer.json", command("gguf", bert, *dry)),
        "config.json of a tower": Target(seeing / "config.json", sees),
        "preprocessor_config.json": Target(seeing / "preprocessor_config.json", sees),
        "index.json": Target(index, command("gguf", index.parent, *dry)),
        "adapter_config.json": Target(adapter / "adapter_config.json", merges),
        "adapter": Target(adapter / "adapter_model.safetensors", merges, 2048),
        "adapter, as a GGUF": Target(
            adapter / "adapter_config.json",
            command("lora", adapter, "--base", model, "--dry-run", "-o", folder / "out"),
        ),
    }
    for name in QUANTIZED:
        source = folder_of(CASES[name], folder / name.replace(" ", "-"))
        targets[f"config.json of {name}"] = Target(source / "config.json", _all_weights(source))
        targets[f"safetensors of {name}"] = Target(source / "model.safetensors", _all_weights(source), 2048)
    return targets


def _seeing(folder: Path) -> Path:
    return write_seeing("qwen2.5-vl", expected("qwen2.5-vl")["layout"], folder / "seeing")


def _with_index(folder: Path) -> Path:
    """Name the weights by an index, as of several shards."""
    file = folder / "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(file)
    with open_checkpoint(str(folder)) as opened:
        names = list(opened.tensors)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, file.name)}))
    return index


def _all_weights(folder: Path) -> Callable[[], str]:
    def run() -> str:
        with open_checkpoint(str(folder)) as opened:
            for name, tensor in opened.tensors.items():
                opened.read_rows(name, 0, tensor.n_rows)
            return str(opened.notes)

    return run
