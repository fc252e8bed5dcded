"""Config and tensor shapes of the tiny models, made wide, with a large vocabulary. Runs in the peer's environment.

    <peer's python> -m benchmarks.wide_shapes FOLDER CASE ...

The classes of transformers state the shapes, on the device "meta", so that no weight is made. FOLDER/CASE.json gets
`config` (config.json as published), `layout` (tensor: dtype and shape), and `widened`: whether the widths grew too.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from tests.families.models import VOCAB, Case, all_cases

WIDER, LARGE = 4, 262144
# Counts of heads grow, and not their widths: rotary sections and groups stay as they are.
_WIDTHS = frozenset((
    "hidden_size", "n_embd", "n_embed", "d_model", "dim", "emb_dim", "intermediate_size", "ffn_hidden_size",
    "ffn_dim", "ffn_hidden", "hidden_dim", "n_inner", "moe_intermediate_size", "shared_expert_intermediate_size",
    "shared_intermediate_size", "moe_shared_expert_intermediate_size", "expert_ffn_hidden_size", "block_ff_dim",
    "intermediate_size_mlp", "mlp_hidden_size", "num_attention_heads", "n_head", "n_heads", "num_heads",
    "num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num", "attn_output_dim", "q_lora_rank",
    "kv_lora_rank", "index_n_heads", "linear_num_key_heads", "linear_num_value_heads", "mamba_n_heads",
    "mamba_num_heads", "mamba_d_ssm", "mamba_intermediate_size", "ssm_d_inner", "out_hidden_size",
    "swa_num_attention_heads", "swa_num_key_value_heads", "full_attn_num_heads", "dim_model_base",
))  # fmt: skip

_SIZES_IN_PUBLISH = ("minicpm", "minicpm3", "orion", "pangu")
"""Cases whose `publish` takes sizes from constants: their vocabulary alone grows."""


def widened(config: Any, factor: int, key: str = "") -> Any:
    """A config with the large vocabulary, and widths times `factor`; towers keep theirs."""
    if isinstance(config, dict):
        inside = 1 if key in ("vision_config", "audio_config") else factor
        return {name: widened(value, inside, name) for name, value in config.items()}
    if isinstance(config, bool) or not isinstance(config, int):
        return (
            [widened(item, factor, key) for item in config] if isinstance(config, list) and key in _WIDTHS else config
        )
    if "vocab" in key and config == VOCAB:
        return LARGE
    return config * factor if key in _WIDTHS and config > 1 else config


def layout_of(case: Case, factor: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """config.json and the tensors, all zero, of the case as it is published."""
    settings = widened(dict(case.config), factor)
    with torch.device("meta"):
        if case.newest:
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "config.json").write_text(json.dumps(settings))
                config = AutoConfig.from_pretrained(folder)
            model = getattr(transformers, case.auto).from_config(config, dtype=torch.bfloat16)
            settings.setdefault("architectures", [type(model).__name__])
        else:
            config = AutoConfig.for_model(settings.pop("model_type"), **settings)
            model = AutoModelForCausalLM.from_config(config, torch_dtype=torch.bfloat16)
            settings = config.to_diff_dict() | {"architectures": [type(model).__name__]}
    shapes = {name: tuple(tensor.shape) for name, tensor in _saved(case, model).items()}
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    return case.publish(settings, tensors) if case.publish else (settings, tensors)


def _large(shape: tuple[int, ...]) -> list[int]:
    return [LARGE if size == VOCAB else size for size in shape]


def _saved(case: Case, model: Any) -> dict[str, Any]:
    """The tensors that the class saves; transformers 5 saves them under the names of the hub."""
    state = dict(model.state_dict())
    tied = getattr(model, "_tied_weights_keys", None) or ()
    configs = (model.config, model.config.get_text_config())
    stated = [config.tie_word_embeddings for config in configs if hasattr(config, "tie_word_embeddings")]
    if stated and stated[0]:
        state = {name: tensor for name, tensor in state.items() if name not in tied}
    if case.newest:
        from transformers.core_model_loading import revert_weight_conversion

        state = revert_weight_conversion(model, state)
    return state


def main() -> None:
    folder = Path(sys.argv[1])
    for name in sys.argv[2:]:
        _, case = all_cases()[name]
        for factor in (1,) if name in _SIZES_IN_PUBLISH else (WIDER, 1):
            try:
                config, tensors = layout_of(case, factor)
            except Exception as error:  # any class may refuse such a config in its own way
                print(f"{name}, {factor}: {type(error).__name__}: {error!s:.200}", flush=True)
                continue
            layout = {key: [value.dtype.name, _large(value.shape)] for key, value in tensors.items()}
            # what `publish` takes from VOCAB itself
            record = {"config": widened(config, 1), "layout": layout, "widened": factor > 1}
            (folder / f"{name}.json").write_text(json.dumps(record, default=str))
            break


if __name__ == "__main__":
    main()
