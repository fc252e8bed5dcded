"""SmallThinker: a router that reads the hidden states before attention, and experts with ReLU gates.

Shape of the GGUF: llama.cpp's `smallthinker` architecture (src/models/smallthinker.cpp). In a model with windows every
fourth layer, from the first, has neither a window nor rotary positions. transformers has no class; the source is the
published modeling_smallthinker.py.
"""

from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.experts import expert_dimensions, expert_rules
from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.refusals import only
from quantkit.families.base.traits import Traits
from quantkit.families.llama import ENDS
from quantkit.families.qwen2 import NORMS, PROJECTIONS
from quantkit.forward.config_keys import Config
from quantkit.forward.description import Architecture, Experts, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import size_of

_FAMILY = "SmallThinker"
_MOE = "model.layers.{layer}.block_sparse_moe"
_FULL_EVERY, _WINDOW = 4, 4096
_SOFTMAX, _SIGMOID = 1, 2


def _slides(config: Config, layer: int) -> bool:
    return bool((config.get("sliding_window_layout") or [0] * (layer + 1))[layer])


def _rotates(config: Config, layer: int) -> bool:
    return bool((config.get("rope_layout") or [1] * (layer + 1))[layer])


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse what llama.cpp's graph does not have; state the experts under the usual names.

    Raises:
        CheckpointError: a size is missing, or a list is not one of an entry for each layer.
        UnsupportedError: a setting that llama.cpp does not run.
    """
    n_layer = size(config, "num_hidden_layers")
    for name, allowed in (
        ("hidden_act", "relu"),
        ("moe_enable_early_router", True),
        ("moe_enable_secondary_experts", False),
        ("moe_shared_primary_experts", 0),
        ("moe_layer_layout", [1] * n_layer),
        ("use_qk_norm", False),
    ):
        only(config, name, allowed, family=_FAMILY)
    for name in ("rope_layout", "sliding_window_layout"):
        layout = config.get(name)
        if layout is not None and (
            not isinstance(layout, list) or len(layout) != n_layer or any(entry not in (0, 1) for entry in layout)
        ):
            raise CheckpointError(f"config.json: {name} must be a list of {n_layer} times 0 or 1, not {layout!r}")
    windows = [_slides(config, layer) for layer in range(n_layer)]
    if any(windows):
        only(config, "sliding_window_size", _WINDOW, family=f"{_FAMILY} with windows")
        size(config, "sliding_window_size")
    needed = [layer % _FULL_EVERY != 0 for layer in range(n_layer)] if any(windows) else windows
    rotated = needed if any(windows) else [True] * n_layer
    if windows != needed or [_rotates(config, layer) for layer in range(n_layer)] != rotated:
        raise UnsupportedError(
            f"config.json: llama.cpp runs {_FAMILY} only with windows and rotary positions in all layers but every"
            f" {_FULL_EVERY}th from the first, or without windows and with rotary positions in all; a GGUF cannot"
            " express this sliding_window_layout and rope_layout"
        )
    experts, used = size(config, "moe_num_primary_experts"), size(config, "moe_num_active_primary_experts")
    if used > experts:
        raise CheckpointError(
            f"config.json: moe_num_active_primary_experts {used} is more than moe_num_primary_experts {experts};"
            " correct it"
        )
    width = size(config, "moe_ffn_hidden_size")
    return {**config, "num_experts": experts, "num_experts_per_tok": used, "moe_intermediate_size": width}


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/smallthinker.py)."""
    config = sizes.config
    width = size(config, "moe_ffn_hidden_size")
    late = (f"{arch}.expert_count", f"{arch}.expert_used_count", f"{arch}.feed_forward_length")
    scores = _SOFTMAX if config.get("moe_primary_router_apply_softmax") else _SIGMOID
    windows = any(_slides(config, layer) for layer in range(sizes.n_layer))
    return [
        *(key for key in base_keys(arch, sizes) if key.name not in late),
        Key(f"{arch}.expert_count", "u32", sizes.n_expert),
        Key(f"{arch}.expert_used_count", "u32", sizes.n_expert_used),
        Key(f"{arch}.expert_feed_forward_length", "u32", width),
        Key(f"{arch}.feed_forward_length", "u32", width),
        Key(f"{arch}.expert_gating_func", "u32", scores),
        *([Key(f"{arch}.attention.sliding_window", "u32", _WINDOW)] if windows else []),
    ]


_EXPERTS = Experts(
    router="block_sparse_moe.primary_router",
    expert=FeedForward(
        at="block_sparse_moe.experts.{}.",
        gate="gate",
        up="up",
        down="down",
        inner=size_of("moe_ffn_hidden_size"),
        default_activation="relu",
    ),
    count=("moe_num_primary_experts",),
    used=("moe_num_active_primary_experts",),
    score="sigmoid",
    early=True,
)
FORWARD = Architecture(
    attention=Attention(
        rope=lambda config, layer: config if _rotates(config, layer) else None,
        window=lambda config, layer: config["sliding_window_size"] if _slides(config, layer) else None,
    ),
    experts=_EXPERTS,
    variant=lambda config: (
        {"experts": replace(_EXPERTS, score="softmax")} if config.get("moe_primary_router_apply_softmax") else {}
    ),
    unpacked=lambda _: "transformers has no class of SmallThinker",
    not_mlx="mlx-lm has not been compared with it",
)

FAMILY = Family(
    name=_FAMILY,
    models="SmallThinker-4BA0.6B, SmallThinker-21BA3B",
    architectures=("SmallThinkerForCausalLM",),
    gguf_arch="smallthinker",
    rules=(
        *NORMS,
        *PROJECTIONS,
        Rule(f"{_MOE}.primary_router.weight", "blk.{layer}.ffn_gate_inp.weight", ("n_expert", "hidden")),
        *expert_rules(f"{_MOE}.experts", names=("gate", "up", "down")),
        *ENDS,
    ),
    keys=_keys,
    # SmallThinkerConfig of the published code
    defaults={
        "smallthinker": {
            "head_dim": 128,
            "max_position_embeddings": 131072,
            "moe_ffn_hidden_size": 768,
            "moe_num_active_primary_experts": 4,
            "moe_num_primary_experts": 32,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "sliding_window_size": 4096,
            "tie_word_embeddings": True,
        }
    },
    prepare=_prepare,
    dimensions=lambda sizes: expert_dimensions(size(sizes.config, "moe_ffn_hidden_size")),
    rope_kinds=("default",),
    forward=FORWARD,
    traits=Traits(sliding_every=_FULL_EVERY, full_first=True, rope_in_windows=True, early_router=True),
)
