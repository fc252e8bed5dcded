"""BLOOM, GPT-2, Falcon and OLMo: what no GGUF can express is refused in words; old layouts become transformers' own."""

from pathlib import Path
from typing import Any

import pytest

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families import canonical_checkpoint, find_family
from tests.families.expected import expected, write_checkpoint
from tests.families.models import all_cases
from tests.families.models.classic import CASES

CLASSES = {
    "bloom": "BloomForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "falcon": "FalconForCausalLM",
    "olmo": "OlmoForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
    "olmoe": "OlmoeForCausalLM",
}


def config(case: str, **changes: Any) -> dict[str, Any]:
    known = all_cases()[case][1].config
    return {**known, "architectures": [CLASSES[known["model_type"]]], **changes}


@pytest.mark.parametrize(
    ("case", "change", "words"),
    [
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "post_layernorm is true.*only with false"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is true"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights is false"),
        ("gpt2", {"activation_function": "relu"}, "activation_function is 'relu'.*only with gelu"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
        ("falcon-7b", {"alibi": True}, "alibi is true"),
        ("falcon-7b", {"parallel_attn": False}, "parallel_attn is false"),
        ("falcon-7b", {"bias": True}, "bias is true"),
        ("falcon-7b", {"activation": "silu"}, "activation is 'silu'"),
        ("falcon-7b", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope scaling 'llama3'"),
        ("olmo", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("olmo", {"attention_bias": True}, "attention_bias is true"),
        ("olmo2", {"tie_word_embeddings": True}, "tie_word_embeddings is true"),
        ("olmo2", {"attention_bias": True}, "attention_bias is true"),
        ("olmo2", {"head_dim": 32}, "head_dim is 32.*only with 16"),
        ("olmo3", {"rope_scaling": {"rope_type": "longrope"}}, "longrope"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv is 8.0.*only with null"),
        ("olmoe", {"norm_topk_prob": True}, "norm_topk_prob is true"),
        ("olmoe", {"num_key_value_heads": 2}, "num_key_value_heads is 2.*only with 4"),
    ],
)
def test_a_setting_no_gguf_can_express_is_refused(case: str, change: dict[str, Any], words: str) -> None:
    settings = config(case)
    find_family(settings).sizes(settings)
    with pytest.raises(UnsupportedError, match=words):
        find_family(settings).sizes({**settings, **change})


@pytest.mark.parametrize("case", sorted(case.name for case in CASES))
def test_a_config_without_its_width_is_refused(case: str) -> None:
    names = ("hidden_size", "n_embd")
    changed = {name: value for name, value in config(case).items() if name not in names}
    with pytest.raises(CheckpointError, match=r"no n_emb|no hidden_size"):
        find_family(changed).sizes(changed)


@pytest.mark.parametrize("case", ["huozi", "gpt2-as-published", "falcon-40b-first-release"])
def test_an_old_layout_becomes_the_one_transformers_saves(case: str, tmp_path: Path) -> None:
    native = expected(case).native
    with open_checkpoint(str(write_checkpoint(case, tmp_path / case))) as checkpoint:
        assert checkpoint.tensors.keys() != native["layout"].keys() or checkpoint.config != native["config"]
        family = find_family(checkpoint.config)
        actual, tensors = canonical_checkpoint(family, family.sizes(checkpoint.config), checkpoint.tensors)
    assert {tensor.name: list(tensor.shape) for tensor in tensors} == native["layout"]
    stated = {key: value for key, value in native["config"].items() if key != "transformers_version"}
    assert {key: actual.get(key) for key in stated} == stated
