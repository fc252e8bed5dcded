"""compressed-tensors' compressors, and transformers' BitNet layers: `python goldens_compressed.py FILE`."""

import goldens
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from transformers.integrations.bitnet import AutoBitLinear, BitLinear, pack_weights

W = torch.from_numpy(goldens.weights())
# name -> format, settings of QuantizationArgs, dtype of the scales
CASES = {
    "w4a16": ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32}, torch.bfloat16),
    "w4a16 asymmetric": (
        "pack-quantized",
        {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False},
        torch.float16,
    ),
    "w8a16 by channel": ("pack-quantized", {"num_bits": 8, "strategy": "channel"}, torch.bfloat16),
    "w3a16": ("pack-quantized", {"num_bits": 3, "strategy": "group", "group_size": 32}, torch.float32),
    "w8a8 by channel": ("int-quantized", {"num_bits": 8, "strategy": "channel"}, torch.bfloat16),
    "w8a8 asymmetric": ("int-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": False}, torch.float32),
    "w8a8 by tensor": ("naive-quantized", {"num_bits": 8, "strategy": "tensor"}, torch.float32),
    "w4 in bytes": ("int-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32}, torch.float32),
    "fp8 by channel": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}, torch.bfloat16),
    "fp8 by tensor": ("naive-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}, torch.float32),
    "nvfp4": (
        "nvfp4-pack-quantized",
        {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
        torch.float32,
    ),
    "mxfp4": (
        "mxfp4-pack-quantized",
        {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32},
        torch.float32,
    ),
}


def compressed(layout, given, dtype):
    arguments = QuantizationArgs(**given)
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments, format=layout)
    groups = {"channel": 1, "tensor": None}.get(given["strategy"], W.shape[1] // (given.get("group_size") or 1))
    values = W.reshape(1, -1) if groups is None else W.reshape(len(W) * groups, -1)
    low, high = values.min(1).values, values.max(1).values
    shape = (1,) if groups is None else (len(W), groups)
    state = {"weight": W.clone()}
    overall = None
    if layout.startswith("nvfp4"):
        overall = (448 * 6 / W.abs().max()).reshape(1)
        state["weight_global_scale"] = overall
    scale, zero = calculate_qparams(low.reshape(shape), high.reshape(shape), arguments, global_scale=overall)
    state["weight_scale"] = scale.to(dtype)
    if not arguments.symmetric:
        state["weight_zero_point"] = zero.to(torch.int8)
    compressor = BaseCompressor.get_value_from_registry(layout)
    stored = compressor.compress(state, scheme)
    exact = {name: t.float() if t.is_floating_point() and t.itemsize > 1 else t for name, t in stored.items()}
    expected = compressor.decompress(exact, scheme)["weight"]
    weights = {key: value for key, value in arguments.model_dump(mode="json").items() if value is not None}
    groups_of = {"group_0": {"targets": ["Linear"], "weights": weights}}
    settings = {"quant_method": "compressed-tensors", "format": layout, "config_groups": groups_of, "ignore": []}
    return settings, stored, expected


def main() -> None:
    cases = {}
    for name, (layout, given, dtype) in CASES.items():
        settings, stored, expected = compressed(layout, given, dtype)
        cases[name] = goldens.case(settings, {f"layer.{part}": t for part, t in stored.items()}, expected)
        if name == "nvfp4":  # ModelOpt's names for the same numbers; its second scale multiplies
            parts = {
                "layer.weight": stored["weight_packed"],
                "layer.weight_scale": stored["weight_scale"],
                "layer.weight_scale_2": (1 / stored["weight_global_scale"]).reshape(()),
                "layer.input_scale": torch.tensor(0.01),
            }
            modelopt = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
            cases["nvfp4 of modelopt"] = goldens.case(modelopt, parts, expected)
    # two schemes in one folder: FP8 attention, integers elsewhere
    float8, integers = (compressed(*CASES[name]) for name in ("fp8 by channel", "w4a16"))
    groups = {
        "group_0": {**float8[0]["config_groups"]["group_0"], "targets": ["re:.*attn.*"], "format": "float-quantized"},
        "group_1": {**integers[0]["config_groups"]["group_0"], "format": "pack-quantized"},
    }
    stored = {f"attn.q.{part}": t for part, t in float8[1].items()}
    stored |= {f"mlp.up.{part}": t for part, t in integers[1].items()}
    settings = {"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": groups}
    expected = {"attn.q.weight": float8[2], "mlp.up.weight": integers[2]}
    cases["fp8 and w4a16"] = goldens.case(settings, stored, expected)
    cases |= bitnet()
    goldens.write(cases)


def bitnet():
    ternary = torch.from_numpy(goldens.weights()).sign() * (W.abs() > 0.05)
    scale = torch.tensor([1.25], dtype=torch.bfloat16)
    layer = BitLinear(W.shape[1], len(W), bias=False, dtype=torch.float32)
    layer.weight, layer.weight_scale = pack_weights(ternary.clone()), scale.float()
    stored = {"layer.weight": layer.weight, "layer.weight_scale": scale}
    # an input that is one or zero is exact in the 8 bits of the layer's activations
    expected = layer(torch.eye(W.shape[1])).T
    cases = {"bitnet": goldens.case({"quant_method": "bitnet", "linear_class": "bitlinear"}, stored, expected)}
    automatic = AutoBitLinear(W.shape[1], len(W), bias=False, dtype=torch.float32)
    automatic.weight = torch.nn.Parameter(ternary)
    automatic.weight_scale = scale.float()
    expected = automatic(torch.eye(W.shape[1])).T
    settings = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}
    return {**cases, "bitnet, scale multiplied": goldens.case(settings, stored, expected)}


if __name__ == "__main__":
    with torch.no_grad():
        main()
