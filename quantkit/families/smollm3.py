"""SmolLM3: Llama without rotary positions in every fourth layer.

Shape of the GGUF: llama.cpp's `smollm3` architecture (src/models/smollm3.cpp), which fixes every fourth layer.
"""

from typing import Any

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.family import Family
from quantkit.families.base.hyperparameters import optional_size
from quantkit.families.base.refusals import SILU, only, plain_yarn
from quantkit.families.llama import ATTENTION, ENDS, llama_keys
from quantkit.families.qwen2 import PLAIN_MLP, ROPE_KINDS
from quantkit.forward.config_keys import Config, given
from quantkit.forward.description import Architecture
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import if_used, slides
from quantkit.tokenizer.roles import LLAMA_ROLES

_BLIND = 4

# transformers' SmolLM3Config, which ties embeddings by default.
DEFAULTS: dict[str, dict[str, Any]] = {
    "smollm3": {
        "max_position_embeddings": 32768,
        "no_rope_layer_interval": 4,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_theta": 2000000.0,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
    }
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    for name, allowed in (("hidden_act", SILU), ("attention_bias", (False,)), ("mlp_bias", (False,))):
        only(config, name, *allowed, family="SmolLM3")
    plain_yarn(config, "SmolLM3")
    _check_rotated(config)
    _check_window(config)
    return config


def _check_rotated(config: dict[str, Any]) -> None:
    n_layer, stated = optional_size(config, "num_hidden_layers") or 0, config.get("no_rope_layers")
    every = optional_size(config, "no_rope_layer_interval") or _BLIND
    # 1 marks a layer with positions, in spite of the setting's name
    rotated = stated if stated is not None else [int((layer + 1) % every != 0) for layer in range(n_layer)]
    if not isinstance(rotated, list) or len(rotated) != n_layer:
        raise CheckpointError(f"config.json: no_rope_layers must be a list of {n_layer} values, one per layer")
    if [bool(flag) for flag in rotated] != [(layer + 1) % _BLIND != 0 for layer in range(n_layer)]:
        raise UnsupportedError(
            f"config.json: no_rope_layers is {rotated}, but llama.cpp runs SmolLM3 only with every fourth layer without"
            " positions; a GGUF cannot express other layers"
        )


def _check_window(config: dict[str, Any]) -> None:
    window, context = optional_size(config, "sliding_window"), optional_size(config, "max_position_embeddings")
    kinds = config.get("layer_types")
    slides = "sliding_attention" in kinds if isinstance(kinds, list) else True
    if config.get("use_sliding_window") and window and slides and (context is None or window < context):
        raise UnsupportedError(
            f"config.json: use_sliding_window is true with a window of {window} tokens, but llama.cpp runs SmolLM3 with"
            " full attention only; a GGUF cannot express this setting"
        )


def _rope(config: Config, layer: int) -> Config | None:
    """The rope of a layer: None for every `no_rope_layer_interval`-th, or where `no_rope_layers` has a 0."""
    interval = int(given(config, "no_rope_layer_interval", default=4))
    rotated = config["no_rope_layers"][layer] if config.get("no_rope_layers") else (layer + 1) % interval
    return config if rotated else None


FORWARD = Architecture(
    attention=Attention(
        rope=_rope,
        window=lambda config, layer: (
            if_used(config, layer) if slides(config, layer, not _rope(config, layer)) else None
        ),
    ),
    tied=True,
)

FAMILY = Family(
    name="SmolLM3",
    models="SmolLM3",
    architectures=("SmolLM3ForCausalLM",),
    gguf_arch="smollm3",
    rules=(*(rule for rule in ATTENTION if rule.required), *PLAIN_MLP, *ENDS),
    keys=llama_keys,
    defaults=DEFAULTS,
    prepare=_prepare,
    rope_kinds=ROPE_KINDS,
    forward=FORWARD,
    token_roles=LLAMA_ROLES,
)
