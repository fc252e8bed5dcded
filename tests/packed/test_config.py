"""What loaders make of our quantization_config: each loader's own rule for a linear's name, restated."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from quantkit.packed.config import awq_config, gptq_config
from quantkit.quant.grid import Grid

ATTENTION = [f"self_attn.{name}_proj" for name in "qkvo"]
DENSE = [*ATTENTION, *(f"mlp.{name}_proj" for name in ("gate", "up", "down"))]
EXPERTS = [f"mlp.experts.{expert}.{name}_proj" for expert in range(12) for name in ("gate", "up", "down")]
SHARED = [f"mlp.shared_expert.{name}_proj" for name in ("gate", "up", "down")]
MIXTRAL = [*ATTENTION, *(f"block_sparse_moe.experts.{expert}.{w}" for expert in range(8) for w in ("w1", "w2", "w3"))]
LAYERS = 12


def names(layers: Mapping[int, list[str]]) -> set[str]:
    return {f"model.layers.{number}.{name}" for number, layer in layers.items() for name in layer}


def everywhere(*layer: str) -> set[str]:
    return names({number: list(layer) for number in range(LAYERS)})


CASES: dict[str, tuple[set[str], set[str]]] = {
    "dense": ({"lm_head"}, everywhere(*DENSE)),
    "mixtral": ({"lm_head"} | everywhere("block_sparse_moe.gate"), everywhere(*MIXTRAL)),
    "qwen2moe": (
        {"lm_head"} | everywhere("mlp.gate", "mlp.shared_expert_gate"),
        everywhere(*ATTENTION, *EXPERTS, *SHARED),
    ),
    "a dense layer among mixtures": (
        {"lm_head"} | names({number: ["mlp.gate"] for number in range(1, LAYERS)}),
        names({0: DENSE} | {number: [*ATTENTION, *EXPERTS] for number in range(1, LAYERS)}),
    ),
    "one layer's down skipped": (
        {"lm_head", "model.layers.1.mlp.down_proj"},
        everywhere(*DENSE) - {"model.layers.1.mlp.down_proj"},
    ),
    "every output projection skipped": ({"lm_head"} | everywhere("self_attn.o_proj"), everywhere(*DENSE[:3])),
}


def transformers_4(name: str, config: dict[str, Any]) -> bool:
    return not any(key in name for key in config["modules_to_not_convert"])


def transformers_5(name: str, config: dict[str, Any]) -> bool:
    edge = r"(?:(?<=\.)|(?=\.|$))"
    return not any(re.match(f"(?:{key}){edge}", name) or name.endswith(key) for key in config["modules_to_not_convert"])


def auto_awq(name: str, config: dict[str, Any]) -> bool:
    if not name.startswith("model.layers."):
        return False
    return not any(key in re.sub(r"model\.layers\.\d+\.", "", name) for key in config["modules_to_not_convert"])


def gptqmodel(name: str, config: dict[str, Any]) -> bool:
    if not name.startswith("model.layers."):
        return False
    patterns = [pattern.removeprefix("-:") for pattern in config.get("dynamic", {})]
    return not any(re.match(pattern, name) for pattern in patterns)


def optimum(name: str, config: dict[str, Any]) -> bool:
    if not name.startswith("model.layers."):
        return False
    inside = config.get("modules_in_block_to_quantize")
    return inside is None or any(name.endswith(end) for group in inside for end in group)


def vllm_gptq(name: str, config: dict[str, Any]) -> bool:
    if not gptqmodel(name, config):
        return False
    inside = config.get("modules_in_block_to_quantize")
    return inside is None or any(end in name for group in inside for end in group)


@pytest.mark.parametrize("loader", [transformers_4, transformers_5, auto_awq, gptqmodel])
@pytest.mark.parametrize("case", CASES)
def test_awq_loaders_quantize_what_we_did(case: str, loader: Callable[[str, dict[str, Any]], bool]) -> None:
    kept, quantized = CASES[case]
    config = awq_config(Grid(), kept, quantized)
    quantized_names = {name for name in kept | quantized if loader(name, config)}
    if loader is auto_awq and case in ("a dense layer among mixtures", "one layer's down skipped"):
        # AutoAWQ has no way to keep a linear of one layer only: such a folder is for the other loaders
        assert quantized_names == (kept | quantized) - {"lm_head"}
    else:
        assert quantized_names == quantized


@pytest.mark.parametrize("loader", [gptqmodel, optimum, vllm_gptq])
@pytest.mark.parametrize("case", CASES)
def test_gptq_loaders_quantize_what_we_did(case: str, loader: Callable[[str, dict[str, Any]], bool]) -> None:
    kept, quantized = CASES[case]
    config = gptq_config(Grid(symmetric=True), kept, quantized, desc_act=False, damp_percent=0.01)
    assert {name for name in kept | quantized if loader(name, config)} == quantized


def test_the_lists_stay_short_where_every_layer_is_alike() -> None:
    kept, quantized = CASES["qwen2moe"]
    awq = awq_config(Grid(), kept, quantized)
    assert awq["modules_to_not_convert"] == ["lm_head", "mlp.gate", "mlp.shared_expert_gate"]
    assert len(awq["dynamic"]) == 2
    gptq = gptq_config(Grid(symmetric=True), kept, quantized, desc_act=False, damp_percent=0.01)
    ends = [f"{name}_proj" for name in ("down", "gate", "k", "o", "q", "up", "v")]
    assert gptq["modules_in_block_to_quantize"] == [ends]


def test_a_dense_models_config_says_no_more_than_it_must() -> None:
    assert awq_config(Grid(4, 64), *CASES["dense"]) == {
        "quant_method": "awq",
        "version": "gemm",
        "bits": 4,
        "group_size": 64,
        "zero_point": True,
        "modules_to_not_convert": ["lm_head"],
    }
    gptq = gptq_config(Grid(3, -1, True), *CASES["dense"], desc_act=True, damp_percent=0.05)
    assert not {"dynamic", "modules_in_block_to_quantize"} & gptq.keys()
    assert (gptq["bits"], gptq["group_size"], gptq["desc_act"], gptq["sym"]) == (3, -1, True, True)


def test_zeros_of_asymmetric_grids_are_told_to_be_stored_as_they_are() -> None:
    for symmetric, words in ((True, "gptq"), (False, "gptq_v2")):
        config = gptq_config(Grid(symmetric=symmetric), set(), {"model.layers.0.a"}, desc_act=False, damp_percent=0.01)
        assert (config["checkpoint_format"], config["sym"]) == (words, symmetric)
