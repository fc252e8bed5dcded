"""Quantize a small checkpoint by compressed-tensors: `python source_compressed.py SOURCE TOKENS.json ROOT`.

For each case: ROOT/CASE is the compressed folder, ROOT/CASE.npy the logits of the weights as compressed-tensors
decompresses them.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor, ModelCompressor
from compressed_tensors.compressors.nvfp4 import base as nvfp4
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from compressed_tensors.quantization.utils import calculate_qparams
from plain_logits import save_logits
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

CASES = {
    "w4a16": ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32}),
    "w4a16-asymmetric": ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False}),
    "w8a16": ("pack-quantized", {"num_bits": 8, "strategy": "channel"}),
    "int8": ("int-quantized", {"num_bits": 8, "strategy": "channel"}),
    "fp8": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    "nvfp4": ("nvfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}),
}


# by default it rounds the dequantized weights to bfloat16
nvfp4.unpack_fp4_from_uint8 = partial(nvfp4.unpack_fp4_from_uint8, dtype=torch.float32)


def main(source: str, tokens: str, root: str) -> None:
    ids = json.loads(Path(tokens).read_text())
    for name, (layout, given) in CASES.items():
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        settings = {"targets": ["Linear"], "weights": given}
        config = QuantizationConfig(config_groups={"group_0": settings}, ignore=["lm_head"], format=layout)
        apply_quantization_config(model, config)
        linears = {n: m for n, m in model.named_modules() if hasattr(m, "weight_scale")}
        for module in linears.values():
            _calibrate(module)
        compressor = ModelCompressor.from_pretrained_model(model, quantization_format=layout)
        compressor.compress_model(model)
        folder = Path(root, name)
        model.save_pretrained(folder)
        compressor.update_config(str(folder))
        AutoTokenizer.from_pretrained(source).save_pretrained(folder)
        schemes = {n: module.quantization_scheme for n, module in linears.items()}
        save_logits(source, _decompressed(folder, layout, schemes), ids, Path(root, f"{name}.npy"))


def _decompressed(folder: Path, layout: str, schemes: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights of a folder, decompressed in float32."""
    tensors = load_file(folder / "model.safetensors")
    compressor = BaseCompressor.get_value_from_registry(layout)
    weights = {}
    for name, scheme in schemes.items():
        own = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
        exact = {part: t.float() if t.is_floating_point() and t.itemsize > 1 else t for part, t in own.items()}
        weights[name] = compressor.decompress(exact, scheme)["weight"]
    return weights


def _calibrate(module: torch.nn.Module) -> None:
    """Scales and zero points of the least and largest weight of each group."""
    arguments = module.quantization_scheme.weights
    width = {"channel": module.weight.shape[1], "tensor": module.weight.numel()}.get(arguments.strategy)
    groups = module.weight.reshape(len(module.weight), -1, width or arguments.group_size)
    overall = None
    if hasattr(module, "weight_global_scale"):
        overall = (448 * 6 / module.weight.abs().max()).reshape(1)
        module.weight_global_scale.data = overall
    scale, zero = calculate_qparams(groups.amin(2), groups.amax(2), arguments, global_scale=overall)
    module.weight_scale.data = scale.to(module.weight_scale.dtype)
    if not arguments.symmetric:
        module.weight_zero_point.data = zero.to(module.weight_zero_point.dtype)


if __name__ == "__main__":
    with torch.no_grad():
        main(*sys.argv[1:])
