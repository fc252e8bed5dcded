"""DeepSeek-V2 and V3: published configs, what llama.cpp would run otherwise, layers and heads in their places."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families import Hyperparameters, canonical_checkpoint, find_family, left_out, map_tensors, read_mapped
from tests.families.expected import expected, write_checkpoint
from tests.families.models import all_cases
from tests.families.models.case import weight

V3 = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "hidden_act": "silu",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "scoring_func": "sigmoid",
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "vocab_size": 129280,
}
V2 = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "num_attention_heads": 128,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 60,
    "q_lora_rank": 1536,
    "vocab_size": 102400,
}
YARN: dict[str, Any] = V3["rope_scaling"]  # type: ignore[assignment]


@dataclass(frozen=True)
class Shaped:
    shape: tuple[int, ...]


def sizes_of(config: dict[str, Any]) -> Hyperparameters:
    return find_family(config).sizes(config)


def keys(config: dict[str, Any]) -> dict[str, Any]:
    family = find_family(config)
    return {key.name.removeprefix("deepseek2."): key.value for key in family.keys("deepseek2", sizes_of(config))}


def test_v3_is_taken_as_published() -> None:
    values = keys(V3)
    assert (values["attention.key_length"], values["attention.value_length"]) == (512 + 64, 512)
    assert (values["attention.key_length_mla"], values["attention.value_length_mla"]) == (128 + 64, 128)
    assert values["attention.head_count_kv"] == 1
    assert (values["leading_dense_block_count"], values["expert_gating_func"]) == (3, 2)
    assert keys({**V3, "scoring_func": None, "first_k_dense_replace": 61})["expert_gating_func"] == 2


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**V3, "rope_scaling": {**YARN, "mscale": 0.5}}, "mscale 0.5"),
        ({**V3, "rope_scaling": {**YARN, "mscale_all_dim": None, "mscale": None}}, "mscale_all_dim None"),
        ({**V3, "rope_scaling": {**YARN, "attention_factor": 1.0}}, "attention_factor 1.0"),
        ({**V3, "rope_scaling": {**YARN, "beta_fast": 16}}, "beta_fast is 16"),
        ({**V3, "rope_scaling": {"type": "linear", "factor": 2}}, "rope scaling 'linear'"),
        ({**V3, "scoring_func": "softmax"}, "scoring_func is 'softmax'"),
        ({**V3, "topk_method": "greedy"}, "topk_method is 'greedy'"),
        ({**V3, "rope_interleave": False}, "rope_interleave is false"),
        ({**V3, "num_key_value_heads": 64}, "num_key_value_heads is 64"),
        ({**V3, "moe_layer_freq": 2}, "moe_layer_freq is 2"),
        ({**V3, "q_lora_rank": None}, "with compressed queries"),
        ({**V2, "num_hidden_layers": 27}, "without compressed queries"),
        ({**V2, "norm_topk_prob": True}, "norm_topk_prob is true"),
        ({**V2, "topk_method": "noaux_tc"}, "topk_method is 'noaux_tc'"),
    ],
)
def test_what_llama_cpp_would_run_otherwise_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        sizes_of(config)


def test_shared_experts_are_needed() -> None:
    with pytest.raises(CheckpointError, match="n_shared_experts"):
        map_tensors(find_family(V3), sizes_of({**V3, "n_shared_experts": None}), {})


def test_groups_that_a_greedy_choice_ignores_stay_out() -> None:
    assert keys({**V2, "n_group": 1, "topk_group": 1})["expert_group_count"] == 1
    assert "expert_group_count" not in keys({**V2, "n_group": 8, "topk_group": 3})


def test_groups_that_llama_cpp_ranks_otherwise_are_written_and_told() -> None:
    config = {**V2, "topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 3}
    assert keys(config)["expert_group_used_count"] == 3
    (caution,) = find_family(config).cautions(sizes_of(config))
    assert "its 8 expert groups" in caution
    assert not list(find_family(V2).cautions(sizes_of(V2)))


def test_only_the_layers_config_announces_are_left_out() -> None:
    family, names = find_family(V3), {f"model.layers.{n}.eh_proj.weight": Shaped((1,)) for n in (60, 61, 62, 610)}
    (note,) = left_out(family, sizes_of(V3), names)
    assert "left out 1 tensors (model.layers.61.eh_proj.weight)" in note
    assert not left_out(family, sizes_of({**V3, "num_nextn_predict_layers": 0}), names)


def test_the_native_checkpoint_is_the_published_one_without_the_extra_layer(tmp_path: Path) -> None:
    with open_checkpoint(str(write_checkpoint("deepseek-v3", tmp_path / "published"))) as checkpoint:
        family = find_family(checkpoint.config)
        _, tensors = canonical_checkpoint(family, family.sizes(checkpoint.config), checkpoint.tensors)
    assert {tensor.name for tensor in tensors} == set(expected("deepseek-v3").native["layout"])


def test_kv_b_is_split_head_by_head_and_fused_experts_are_split_too() -> None:
    """Against the plain definition: head h of kv_b_proj holds the key's rows, then the value's."""
    known, case = expected("deepseek-v2"), all_cases()["deepseek-v2"][1]
    family, sizes = find_family(known.config), sizes_of(known.config)
    tensors = {name: weight(case.seed, name, tuple(shape)) for name, shape in known.native["layout"].items()}
    experts = "model.layers.1.mlp.experts"
    pieces = {
        part: np.stack([tensors.pop(f"{experts}.{n}.{part}_proj.weight") for n in range(8)])
        for part in ("gate", "up", "down")
    }
    tensors[f"{experts}.gate_up_proj"] = np.concatenate([pieces["gate"], pieces["up"]], axis=1)
    tensors[f"{experts}.down_proj"] = pieces["down"]

    def read_rows(name: str, start: int, stop: int) -> np.ndarray:
        return tensors[name].reshape(-1, tensors[name].shape[-1])[start:stop]

    mapped = {tensor.name: tensor for tensor in map_tensors(family, sizes, tensors)}

    def value(name: str) -> np.ndarray:
        rows = int(np.prod(mapped[name].shape[:-1]))
        return read_mapped(read_rows, mapped[name], 0, rows).reshape(mapped[name].shape)

    heads = tensors["model.layers.1.self_attn.kv_b_proj.weight"].reshape(4, 16 + 12, 32)
    assert np.array_equal(value("blk.1.attn_k_b.weight"), heads[:, :16].transpose(0, 2, 1))
    assert np.array_equal(value("blk.1.attn_v_b.weight"), heads[:, 16:])
    for part, piece in pieces.items():
        assert np.array_equal(value(f"blk.1.ffn_{part}_exps.weight"), piece)
