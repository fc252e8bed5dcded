"""What llama.cpp would run otherwise, from DeepSeek-V3.2 to Hunyuan 4, is refused in one sentence."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demo.safetensors_file import write_safetensors
from quantkit.checkpoint import open_checkpoint
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families import find_family
from tests.families.expected import expected, write_checkpoint
from tests.helpers.conversions import to_gguf


def refuse(case: str, changes: Mapping[str, Any], words: str) -> None:
    config = {**expected(case).config, **changes}
    with pytest.raises((CheckpointError, UnsupportedError), match=words) as caught:
        find_family(config).sizes(config)
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize(
    ("case", "changes", "words"),
    [
        (
            "deepseek-v3.2",
            {"index_head_dim": 48},
            "index_head_dim is 48, but llama.cpp runs DeepSeek-V3.2 only with 64",
        ),
        ("deepseek-v3.2", {"q_lora_rank": None}, "config.json has no q_lora_rank"),
        ("deepseek-v3.2", {"mlp_layer_types": ["sparse"] * 3}, "mlp_layer_types"),
        ("glm-5", {"indexer_rope_interleave": False}, "indexer_rope_interleave is false"),
        ("glm-5.2", {"indexer_types": ["shared"] * 5}, "indexer_types must have full or shared"),
        ("glm-5.2", {"indexer_types": ["full"] * 4}, "for each of 5 layers"),
        ("minicpm3", {"scale_emb": 1}, "scale_emb is 1, but llama.cpp runs MiniCPM3 only with 12"),
        ("minicpm3", {"max_position_embeddings": 1024}, "original_max_position_embeddings is 512"),
        ("hy-v3", {"mlp_layer_types": ["dense", "sparse", "dense"]}, "mlp_layer_types"),
        ("hy-v3", {"num_experts_per_tok": 7}, "num_experts_per_tok 7 is more than num_experts 6"),
        ("chatglm3", {"rmsnorm": False}, "rmsnorm is false"),
        ("hy-v4", {"indexer_types": ["shared"] * 4}, "indexer_types must begin with full"),
        ("hy-v4", {"index_head_dim": 16}, "index_head_dim 16 must be more than qk_rope_head_dim 16"),
        ("hy-v4", {"first_k_dense_replace": 2}, "first_k_dense_replace is 2, but llama.cpp runs Hunyuan 4 of these"),
        ("hy-v4", {"n_group": 2}, "n_group is 2"),
        ("deepseek-ocr", {"language_config": {"use_mla": True}}, "use_mla is true"),
        ("apertus", {"tie_word_embeddings": True}, "tie_word_embeddings is true"),
        ("maple", {"nope_on_global_attention": False}, "nope_on_global_attention is false"),
        ("maple", {"nope_on_global_attention": None}, "no nope_on_global_attention; add it, it must be true"),
        ("maple", {"layer_types": None}, "no layer_types; add the kinds of 4 layers"),
        ("maple", {"sliding_window": None}, "config.json has no sliding_window"),
        ("maple", {"num_shared_experts": 1}, "num_shared_experts is 1"),
        (
            "nanbeige",
            {"num_loops": 300},
            "num_loops 300 times num_hidden_layers 2 is 600, and llama.cpp runs at most 512",
        ),
        ("nanbeige", {"mlp_bias": True}, "mlp_bias is true"),
        ("maple", {"num_experts_per_tok": 7}, "num_experts_per_tok 7 is more than num_experts 6"),
    ],
)
def test_a_setting_that_llama_cpp_does_not_run_is_refused(case: str, changes: dict[str, Any], words: str) -> None:
    if "max_position_embeddings" in changes and case == "minicpm3":
        config = {**expected(case).config, **changes}
        family = find_family(config)
        with pytest.raises(UnsupportedError, match=words):
            [computed.values(family.sizes(config)) for computed in family.computed]
        return
    refuse(case, changes, words)


def test_an_activation_without_one_of_its_numbers_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint("apertus", tmp_path / "apertus")
    with open_checkpoint(str(folder)) as checkpoint:
        kept = {
            name: ("F32", checkpoint.read_rows(name, 0, int(np.prod(info.shape[:-1]))).reshape(info.shape))
            for name, info in checkpoint.tensors.items()
            if ".1.mlp.act_fn.beta" not in name
        }
    write_safetensors(folder / "model.safetensors", kept)
    with pytest.raises(CheckpointError, match=r"tensor model.layers.1.mlp.act_fn.beta is missing from the checkpoint"):
        to_gguf(folder, "f32", tmp_path)
