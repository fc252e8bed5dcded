"""DeepSeek-V4: the layout of its published weights, and what llama.cpp does not run."""

import json
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest

from demo.safetensors_file import write_safetensors
from quantkit.checkpoint import open_checkpoint
from quantkit.errors import CheckpointError, QuantkitError, UnsupportedError
from quantkit.families import find_family, map_tensors
from quantkit.families.base.native import Native
from quantkit.outputs.model import ModelTensor, widen
from tests.families.expected import DTYPES, expected, tensor_hash, write_checkpoint
from tests.families.models import TOKENS, all_cases, native_weights, write_tokenizer
from tests.families.models.deepseek4 import BASE
from tests.helpers.command import quantkit
from tests.helpers.conversions import to_gguf

FLASH = {**BASE, "num_hidden_layers": 4}
ATTENTION = {
    "wq_a": "attn_q_a",
    "wq_b": "attn_q_b",
    "wkv": "attn_kv",
    "wo_a": "attn_output_a",
    "wo_b": "attn_output_b",
}


def published(folder: Path, lacking: str = "nothing") -> tuple[Path, dict[str, np.ndarray]]:
    """A checkpoint in the types of the hub's, and the values of its matrices in 8 bits by their names.

    Tensors whose names begin with `lacking` are left out.

    Attention is in e4m3 with a power of two (E8M0) for 128 x 128 values, experts are in MXFP4, other matrices in bf16.
    """
    case, known = all_cases()["deepseek-v4"][1], expected("deepseek-v4")
    assert case.publish
    _, tensors = case.publish(known.native["config"], native_weights(case, known.native["layout"]))
    stored: dict[str, tuple[str, np.ndarray]] = {}
    values = {}
    for name, tensor in tensors.items():
        if name.endswith(tuple(f".attn.{linear}.weight" for linear in ATTENTION)):
            exponent = int(np.floor(np.log2(np.abs(tensor).max() / 448))) + 1
            bits = (tensor / np.float32(2.0**exponent)).astype(ml_dtypes.float8_e4m3fn)
            values[name] = bits.astype(np.float32) * np.float32(2.0**exponent)
            blocks = tuple(-(-n // 128) for n in tensor.shape)
            stored[name] = "F8_E4M3", bits.view(np.uint8)
            stored[name.removesuffix("weight") + "scale"] = "F8_E8M0", np.full(blocks, exponent + 127, np.uint8)
        elif tensor.dtype == np.uint8:
            stored[name] = "F8_E8M0", tensor
        elif tensor.dtype == np.float32 and tensor.ndim > 1 and name.endswith(".weight"):
            stored[name] = "BF16", tensor.astype(ml_dtypes.bfloat16).view(np.uint16)
        else:
            stored[name] = DTYPES[tensor.dtype.name], tensor
    folder.mkdir()
    write_safetensors(
        folder / "model.safetensors", {name: stored[name] for name in sorted(stored) if not name.startswith(lacking)}
    )
    write_tokenizer(folder, case.tokenizer)
    (folder / "config.json").write_text(json.dumps(known.config))
    return folder, values


def test_published_types_keep_their_values(tmp_path: Path) -> None:
    folder, values = published(tmp_path / "V4")
    with open_checkpoint(str(folder)) as checkpoint:
        for name, matrix in values.items():
            assert np.array_equal(checkpoint.read_rows(name, 0, len(matrix)), matrix), name
        logits = Native(checkpoint).decoder.run(TOKENS)
        chosen = checkpoint.read_rows("layers.0.ffn.gate.tid2eid", 0, BASE["vocab_size"])
    assert logits.std() > 0.5
    known = expected("deepseek-v4").tensors
    assert known is not None
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(to_gguf(folder, "bf16", tmp_path)).tensors}
    # bf16 has every value of e4m3 times a power of two
    for name, matrix in values.items():
        _, layer, _, linear, _ = name.split(".")
        data = tensors[f"blk.{layer}.{ATTENTION[linear]}.weight"].data
        assert np.array_equal(data.view(ml_dtypes.bfloat16).astype(np.float32), matrix), name
    # experts have the bytes that llama.cpp's converter gives them
    experts = [name for name in tensors if name.endswith("_exps.weight")]
    assert len(experts) == 3 * BASE["num_hidden_layers"]
    for name in experts:
        assert tensors[name].tensor_type == gguf.GGMLQuantizationType.MXFP4
        assert tensor_hash(tensors[name].data) == known[name][2]
    table = tensors["blk.0.ffn_gate_tid2eid.weight"]
    assert table.tensor_type == gguf.GGMLQuantizationType.I32
    assert chosen.dtype == np.int64 and np.array_equal(table.data, chosen)
    # `measure` compares the source's tensors with those of a file in floats
    described = ModelTensor("blk.0.ffn_gate_tid2eid.weight", chosen.shape, table.tensor_type, 1, "tid2eid")
    assert np.array_equal(widen(chosen, described), chosen.astype(np.float32))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hc_mult": 2}, "hc_mult is 2"),
        ({"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid'"),
        ({"compress_ratios": [0, 4, 64, 4]}, "ratios of 0, 4, 128"),
        ({"compress_ratios": [0, 4]}, "each of 4 layers"),
        ({"compress_ratios": None, "layer_types": ["full_attention"] * 4}, "ratios of 0, 4, 128"),
        ({"num_key_value_heads": 2}, "num_key_value_heads is 2"),
        ({"norm_topk_prob": False}, "norm_topk_prob is false"),
        ({"index_head_dim": 96}, "index_head_dim is 96"),
        ({"mlp_layer_types": ["moe", "hash_moe", "moe", "moe"]}, "mlp_layer_types"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope scaling 'linear'"),
        ({"rope_scaling": {**BASE["rope_scaling"], "attention_factor": 1.2}}, "attention_factor is 1.2"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is true"),
    ],
)
def test_what_llama_cpp_does_not_run_is_refused_by_config_alone(change: dict[str, Any], words: str) -> None:
    config = {**FLASH, **change}
    with pytest.raises(UnsupportedError, match=words):
        find_family(config).sizes(config)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"o_groups": 3}, "num_attention_heads 4 does not divide by o_groups 3"),
        ({"qk_rope_head_dim": 15}, "must be even"),
        ({"partial_rotary_factor": 0.25}, "qk_rope_head_dim is 16, but partial_rotary_factor 0.25 makes it 8"),
        ({"layer_types": ["sliding_attention"] * 4}, "contradict each other"),
        ({"num_hash_layers": -1}, "num_hash_layers is -1"),
    ],
)
def test_sizes_that_contradict_each_other_are_named(change: dict[str, Any], words: str) -> None:
    config = {**FLASH, **change}
    with pytest.raises(CheckpointError, match=words):
        find_family(config).sizes(config)


def test_settings_that_transformers_saves_are_those_of_the_published_config() -> None:
    scaling = {"rope_type": "yarn", **{key: value for key, value in BASE["rope_scaling"].items() if key != "type"}}
    left_out = ("compress_ratios", "num_hash_layers", "qk_rope_head_dim", "rope_scaling", "rope_theta")
    saved = {
        **{key: value for key, value in BASE.items() if key not in left_out},
        "layer_types": [
            "sliding_attention",
            "compressed_sparse_attention",
            "heavily_compressed_attention",
            "compressed_sparse_attention",
        ],
        "mlp_layer_types": ["hash_moe", "moe", "moe", "moe"],
        "partial_rotary_factor": 0.5,
        "rope_parameters": {
            "main": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
            "compress": {**scaling, "rope_theta": 160000.0, "partial_rotary_factor": 0.5, "attention_factor": 1.0},
        },
    }
    keys = []
    for config in ({**BASE, "compress_ratios": BASE["compress_ratios"][:4]}, saved):
        family = find_family(config)
        keys.append({key.name: key.value for key in family.keys("deepseek4", family.sizes(config))})
    assert keys[1].pop("deepseek4.rope.scaling.yarn_attn_factor") == 1.0
    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    ("lacking", "words"),
    [
        ("layers.1.ffn.experts.5.w2.scale", "is in MXFP4 but its scale .layers.1.ffn.experts.5.w2.scale. is missing"),
        ("layers.1.ffn.experts.5.w2", "tensor layers.1.ffn.experts.5.w2_blocks is missing"),
        ("layers.0.ffn.gate.tid2eid", "tensor layers.0.ffn.gate.tid2eid is missing"),
        ("layers.3.attn.indexer.compressor.ape", "tensor layers.3.attn.indexer.compressor.ape is missing"),
        ("hc_head_fn", "tensor hc_head_fn is missing"),
    ],
)
def test_a_missing_tensor_is_named(lacking: str, words: str, tmp_path: Path) -> None:
    folder, _ = published(tmp_path / "V4", lacking)
    with pytest.raises(QuantkitError, match=words), open_checkpoint(str(folder)) as checkpoint:
        family = find_family(checkpoint.config)
        map_tensors(family, family.sizes(checkpoint.config), checkpoint.tensors)


def test_a_gguf_is_a_source_too_and_its_table_of_experts_stays(tmp_path: Path) -> None:
    first = to_gguf(write_checkpoint("deepseek-v4-unpacked", tmp_path / "V4"), "f32", tmp_path / "first")
    answer = quantkit("gguf", first, "-t", "q8_0", "-o", tmp_path / "second")
    assert answer.code == 0, answer.stderr
    (second,) = (tmp_path / "second").rglob("*.gguf")
    source, result = ({tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors} for path in (first, second))
    name = "blk.0.ffn_gate_tid2eid.weight"
    assert result[name].tensor_type == gguf.GGMLQuantizationType.I32
    assert np.array_equal(result[name].data, source[name].data)
    assert result["blk.1.attn_q_b.weight"].tensor_type == gguf.GGMLQuantizationType.Q8_0
