"""GLM-4.7-Flash: DeepSeek-V3's graph.

Shape of the GGUF: llama.cpp's `deepseek2` architecture (src/models/deepseek2.cpp). It knows the router's sigmoid by the
number of layers and the vocabulary of the published model; other sizes state it in a key.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quantkit.errors import UnsupportedError
from quantkit.families.base.family import Dropped, Key
from quantkit.families.base.hyperparameters import Hyperparameters, number, size
from quantkit.families.deepseek import FAMILY as DEEPSEEK
from quantkit.families.deepseek import V3_FORWARD
from quantkit.families.deepseek import keys as deepseek_keys
from quantkit.families.glm4moe import TOKEN_ROLES

_KNOWN_LAYERS, _KNOWN_VOCABULARY = (47, 48), 154880

# transformers' Glm4MoeLiteConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "glm4_moe_lite": {
        "kv_lora_rank": 512,
        "max_position_embeddings": 202752,
        "moe_intermediate_size": 1536,
        "n_group": 1,
        "n_routed_experts": 64,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts_per_tok": 4,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 192,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-5,
        "rope_interleave": True,
        "rope_theta": 10000.0,
        "routed_scaling_factor": 1.8,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "v_head_dim": 256,
    }
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """DeepSeek-V3's settings; the dense layers are those of mlp_layer_types."""
    dense = dense_by_kinds(config)
    stated = number(config, "first_k_dense_replace")
    if stated is not None and stated != dense:
        raise UnsupportedError(
            f"config.json: first_k_dense_replace is {stated:g}, but mlp_layer_types makes the first {dense} layers"
            " dense; correct one of them"
        )
    assert DEEPSEEK.prepare is not None
    scoring = config.get("scoring_func")
    config = {**DEEPSEEK.prepare(config), "first_k_dense_replace": dense}
    if size(config, "num_hidden_layers") in _KNOWN_LAYERS and size(config, "vocab_size") == _KNOWN_VOCABULARY:
        config["scoring_func"] = scoring
    return config


def keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """DeepSeek-V3's keys. This class has no head_dim, so the widths of a head come after the latent's width."""
    result = deepseek_keys(arch, sizes)
    widths = [key for key in result if key.name in (f"{arch}.attention.key_length", f"{arch}.attention.value_length")]
    others = [key for key in result if key not in widths]
    after = next(i for i, key in enumerate(others) if key.name == f"{arch}.attention.kv_lora_rank") + 1
    return [*others[:after], *widths, *others[after:]]


def dense_by_kinds(config: Mapping[str, Any]) -> int:
    """How many layers are dense: by mlp_layer_types the first ones, else the first one.

    Raises:
        UnsupportedError: a dense layer follows one with experts.
    """
    kinds = config.get("mlp_layer_types")
    if kinds is None:
        return 1
    dense = next((number for number, kind in enumerate(kinds) if kind != "dense"), len(kinds))
    if list(kinds) != ["dense"] * dense + ["sparse"] * (size(config, "num_hidden_layers") - dense):
        raise UnsupportedError(
            "config.json: mlp_layer_types has a dense layer after one with experts, or another number of layers; a GGUF"
            " of this family has dense layers at the start only"
        )
    return dense


FAMILY = replace(
    DEEPSEEK,
    name="GLM-4.7-Flash",
    models="GLM-4.7-Flash 30B-A3B",
    architectures=("Glm4MoeLiteForCausalLM",),
    keys=keys,
    defaults=DEFAULTS,
    prepare=_prepare,
    dropped=(
        Dropped(
            DEEPSEEK.dropped[0].pattern,
            "they predict a second token ahead; this GGUF holds the model without them",
            layers=DEEPSEEK.dropped[0].layers,
        ),
    ),
    # the width follows from the others
    no_effect=("qk_head_dim",),
    forward=V3_FORWARD,
    token_roles=TOKEN_ROLES,
)
