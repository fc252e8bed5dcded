"""Qwen3-VL-MoE, its text model: Qwen3-MoE's graph. Published files have the fused experts transposed.

Shape of the GGUF: llama.cpp's `qwen3vlmoe` architecture (src/models/qwen3vlmoe.cpp).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from quantkit.families.base.family import Canonical, Dropped, Key, Rule, Take
from quantkit.families.base.hyperparameters import Hyperparameters, size
from quantkit.families.base.multimodal import TEXT_PREFIXES, VISION, VISION_LEFT_OUT
from quantkit.families.llama import ENDS
from quantkit.families.qwen2 import NORMS, PROJECTIONS
from quantkit.families.qwen2moe import ROUTED
from quantkit.families.qwen2moe import keys as mixture_keys
from quantkit.families.qwen3 import HEAD_NORM_RULES
from quantkit.families.qwen3moe import DEFAULTS
from quantkit.families.qwen3moe import FAMILY as QWEN3_MOE
from quantkit.families.qwen3vl import PROJECTOR, deepstack_key

_MLP, _TO = "model.layers.{layer}.mlp", "blk.{layer}"


def _transposed(inputs: str, half: int | None = None) -> Callable[[Hyperparameters], tuple[Take, ...]]:
    """Each expert's matrix of `inputs` rows, transposed: all of its columns, or one half of them."""

    def cut(sizes: Hyperparameters) -> tuple[Take, ...]:
        ffn = size(sizes.config, "moe_intermediate_size")
        rows = ffn if inputs == "expert_ffn" else sizes.hidden
        columns = None if half is None else np.arange(half * ffn, (half + 1) * ffn)
        return tuple(
            Take(np.arange(expert * rows, (expert + 1) * rows), columns, transposed=True)
            for expert in range(sizes.n_expert)
        )

    return cut


# transformers 5 saves (experts, 2 x ffn, hidden) and (experts, hidden, ffn); published files have them transposed.
_SAVED = tuple(rule for rule in ROUTED if "{expert}" not in rule.source)
_TRANSPOSED = (
    *(
        Rule(
            f"{_MLP}.experts.gate_up_proj",
            f"{_TO}.ffn_{name}_exps.weight",
            ("n_expert", "hidden", "expert_gate_up"),
            take=_transposed("hidden", half),
        )
        for half, name in enumerate(("gate", "up"))
    ),
    Rule(
        f"{_MLP}.experts.down_proj",
        f"{_TO}.ffn_down_exps.weight",
        ("n_expert", "expert_ffn", "hidden"),
        take=_transposed("expert_ffn"),
    ),
)
_UP, _, _DOWN = _TRANSPOSED
_NATIVE_RULES = (
    *(replace(rule, target=rule.source) for rule in (*NORMS, *PROJECTIONS, *HEAD_NORM_RULES, *ENDS)),
    *(replace(rule, target=rule.source, take=None) for rule in _SAVED),
    replace(_UP, target=_UP.source, take=_transposed("hidden")),
    replace(_DOWN, target=_DOWN.source),
)


def _native_config(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**{key: value for key, value in config.items() if key != "vision_config"}, "model_type": "qwen3_moe"}


def keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The mixture's keys and the number of layers that the image tower adds to."""
    return [*mixture_keys(arch, sizes), deepstack_key(arch, sizes)]


FAMILY = replace(
    QWEN3_MOE,
    name="Qwen3-VL-MoE",
    models="Qwen3-VL-30B-A3B, Qwen3-VL-235B-A22B",
    architectures=("Qwen3VLMoeForConditionalGeneration",),
    gguf_arch="qwen3vlmoe",
    rules=NORMS + PROJECTIONS + HEAD_NORM_RULES + _SAVED + _TRANSPOSED + ENDS,
    keys=keys,
    # every published config states norm_topk_prob; the class always normalises
    # transformers' Qwen3VLMoeTextConfig
    defaults={
        "qwen3_vl_moe_text": {
            **DEFAULTS["qwen3_moe"],
            "head_dim": None,
            "max_position_embeddings": 128000,
            "moe_intermediate_size": 1408,
            "norm_topk_prob": True,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "num_key_value_heads": 16,
            "rope_theta": 500000.0,
        }
    },
    text_models={"Qwen3VLMoeForConditionalGeneration": ("Qwen3MoeForCausalLM", "qwen3_vl_moe_text")},
    rename=TEXT_PREFIXES,
    dropped=(Dropped(VISION, VISION_LEFT_OUT),),
    projectors={"Qwen3VLMoeForConditionalGeneration": PROJECTOR},
    canonical=lambda sizes: Canonical(_native_config, _NATIVE_RULES),
    # no layer reads it
    no_effect=("sliding_window",),
    forward=None,
)
