"""Kimi Linear and K3: the delta rule against its formula, MXFP4 experts, and what llama.cpp would run otherwise."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.numpy import load_file, save_file

from quantkit.errors import QuantkitError
from quantkit.families import find_family
from quantkit.forward.kimi_delta import recurrent
from tests.families.expected import expected, write_checkpoint
from tests.helpers.conversions import to_gguf

_FLOAT4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


@pytest.mark.parametrize("strongest", [0.1, 60.0])
def test_chunks_give_what_the_rule_gives_token_by_token(strongest: float) -> None:
    """S_t = (I - beta k k') diag(exp(g)) S_{t-1} + beta k v', o = S' q; decays of many orders of magnitude."""
    n, heads, width = 40, 3, 8
    random = np.random.RandomState(0)
    q, k, v = random.standard_normal((3, n, heads, width))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    g, beta = -strongest * random.random_sample((n, heads, width)), random.random_sample((n, heads))
    state, out = np.zeros((heads, width, width)), np.empty((n, heads, width))
    for t in range(n):
        state = state * np.exp(g[t])[..., None]
        seen = np.einsum("hk,hkv->hv", k[t], state)
        state += np.einsum("hk,hv->hkv", k[t], beta[t][:, None] * (v[t] - seen))
        out[t] = np.einsum("hk,hkv->hv", q[t], state)
    ours = recurrent(*(part.astype(np.float32) for part in (q, k, v, g, beta)))
    assert np.abs(ours - out).max() < 1e-5 * np.abs(out).max()


def packed(folder: Path) -> dict[str, np.ndarray]:
    """The experts of a tiny K3 in compressed-tensors' MXFP4, as published; their values by the format."""
    tensors, values = load_file(folder / "model.safetensors"), {}
    random = np.random.RandomState(1)
    for name in [name for name in tensors if re.search(r"experts\.\d+\.w[123]\.weight$", name)]:
        rows, columns = tensors.pop(name).shape
        codes = random.randint(0, 256, (rows, columns // 2)).astype(np.uint8)
        scales = random.randint(118, 124, (rows, columns // 32)).astype(np.uint8)
        tensors |= {f"{name}_packed": codes, f"{name}_scale": scales}
        floats = _FLOAT4[np.stack([codes & 15, codes >> 4], axis=-1)].reshape(rows, -1, 32)
        values[name] = (floats * np.exp2(scales.astype(np.float32) - 127)[..., None]).reshape(rows, columns)
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    weights = {"num_bits": 4, "type": "float", "group_size": 32, "strategy": "group", "symmetric": True}
    config["text_config"]["quantization_config"] = {
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "format": "mxfp4-pack-quantized",
        "ignore": ["lm_head"],
        "quant_method": "compressed-tensors",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return values


@pytest.mark.parametrize("kind", ["f32", "mxfp4"])
def test_published_experts_of_k3_keep_their_values(kind: str, tmp_path: Path) -> None:
    source = write_checkpoint("kimi-k3", tmp_path / "kimi-k3")
    values = packed(source)
    stored = {tensor.name: tensor for tensor in GGUFReader(to_gguf(source, kind, tmp_path)).tensors}
    for layer in range(1, 5):
        for part, name in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
            tensor = stored[f"blk.{layer}.ffn_{part}_exps.weight"]
            assert tensor.tensor_type.name == kind.upper()
            at = f"language_model.model.layers.{layer}.block_sparse_moe.experts"
            theirs = np.stack([values[f"{at}.{expert}.{name}.weight"] for expert in range(6)])
            assert np.array_equal(dequantize(tensor.data, tensor.tensor_type).reshape(theirs.shape), theirs)


def changed(config: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """The config with other settings of the text model; those of linear attention may be nested."""
    text = config.get("text_config", config)
    nested = {**text["linear_attn_config"], **change.pop("linear_attn_config", {})}
    text = {**text, **change, "linear_attn_config": nested}
    return {**config, "text_config": text} if "text_config" in config else text


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("kimi-linear", {"q_lora_rank": 24}, "q_lora_rank is 24"),
        ("kimi-linear", {"mla_use_nope": False}, "mla_use_nope is false"),
        ("kimi-linear", {"moe_renormalize": False}, "moe_renormalize is false"),
        ("kimi-linear", {"num_expert_group": 2}, "num_expert_group is 2"),
        ("kimi-linear", {"tie_word_embeddings": True}, "tie_word_embeddings is true"),
        ("kimi-linear", {"linear_attn_config": {"num_heads": 2}}, "num_heads is 2"),
        ("kimi-linear", {"linear_attn_config": {"kda_layers": [1, 2]}}, "must have each of the layers 1 to 4 once"),
        ("kimi-linear", {"linear_attn_config": {"full_attn_layers": 3}}, "must have each of the layers 1 to 4 once"),
        (
            "kimi-linear",
            {"mlp_layer_types": ["dense", "sparse", "dense", "sparse"]},
            "dense layer after a sparse one",
        ),
        ("kimi-linear", {"num_experts_per_token": 7}, "num_experts_per_token 7 is more than num_experts 6"),
        ("kimi-k3", {"hidden_act": "silu"}, "hidden_act is 'silu'"),
        ("kimi-k3", {"activation_situ_beta": 0}, "activation_situ_beta must be greater than zero, not 0"),
        ("kimi-k3", {"attn_res_block_size": None}, "config.json has no attn_res_block_size"),
        ("kimi-k3", {"routed_expert_hidden_size": 128}, "routed_expert_hidden_size 128 is more than hidden_size 64"),
        ("kimi-k3", {"linear_attn_config": {"use_full_rank_gate": False}}, "use_full_rank_gate is false"),
        (
            "kimi-k3",
            {"linear_attn_config": {"gate_lower_bound": 1.0}},
            "gate_lower_bound must be less than zero",
        ),
    ],
)
def test_what_llama_cpp_runs_otherwise_is_refused(name: str, change: dict[str, Any], words: str) -> None:
    config = changed(expected(name).config, dict(change))
    with pytest.raises(QuantkitError) as caught:
        find_family(config).sizes(config)
    assert words in str(caught.value)
