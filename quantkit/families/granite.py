"""Granite 3: Llama's shape with four multipliers: of the embedding, the residuals, the attention and the logits.

Shape of the GGUF: llama.cpp's `granite` architecture (src/models/granite.cpp), which takes a multiplier of 0 for none.
"""

from collections.abc import Mapping
from typing import Any

from quantkit.errors import CheckpointError
from quantkit.families.base.family import Computed, Family, Key
from quantkit.families.base.hyperparameters import Hyperparameters, number
from quantkit.families.base.refusals import SILU, only, plain_yarn
from quantkit.families.llama import ATTENTION, ENDS, MLP, llama3_rope_factors, llama_keys
from quantkit.forward.config_keys import given
from quantkit.forward.description import Architecture
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import number_of
from quantkit.tokenizer.roles import LLAMA_ROLES

# config.json -> the key's name after the architecture, in the converter's order.
MULTIPLIERS = {
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}

# transformers' GraniteConfig; GraniteMoeConfig has the same and the experts.
CONFIG: dict[str, Any] = {
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    **dict.fromkeys(MULTIPLIERS, 1.0),
}


def granite_keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """Llama's keys and the multipliers."""
    return [
        *llama_keys(arch, sizes),
        *(Key(f"{arch}.{key}", "f32", number(sizes.config, name)) for name, key in MULTIPLIERS.items()),
    ]


def check_granite(config: Mapping[str, Any], family: str) -> None:
    """Refuse settings that llama.cpp does not support for Granite.

    Raises:
        UnsupportedError: another activation, no rotary positions, or YaRN settings other than the factor.
        CheckpointError: a multiplier is missing or 0.
    """
    only(config, "hidden_act", *SILU, family=family)
    only(config, "position_embedding_type", "rope", family=family)
    plain_yarn(config, family)
    for name in MULTIPLIERS:
        if not number(config, name):
            raise CheckpointError(f"config.json: {name} must be a number other than 0, not {config.get(name)!r}")


def without_plain_width(config: dict[str, Any]) -> dict[str, Any]:
    """The config without a head_dim that equals hidden_size / num_attention_heads, as in llama.cpp's converter.

    Any other head_dim is kept, because llama.cpp needs it. The converter drops it, and its file does not load.
    """
    heads, hidden, width = (config.get(name) for name in ("num_attention_heads", "hidden_size", "head_dim"))
    if isinstance(heads, int) and isinstance(hidden, int) and isinstance(width, int) and width * heads == hidden:
        return {key: value for key, value in config.items() if key != "head_dim"}
    return config


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    check_granite(config, "Granite")
    return without_plain_width(config)


FORWARD = Architecture(
    embedding_scale=number_of("embedding_multiplier"),
    residual_scale=number_of("residual_multiplier"),
    attention=Attention(scale=lambda config, _: float(given(config, "attention_multiplier", default=1.0))),
    logit_scale=lambda config: 1.0 / float(given(config, "logits_scaling", default=1.0)),
)

FAMILY = Family(
    name="Granite",
    models="Granite 3.0 to 3.3",
    architectures=("GraniteForCausalLM",),
    gguf_arch="granite",
    rules=ATTENTION + MLP + ENDS,
    keys=granite_keys,
    computed=(Computed("rope_freqs.weight", llama3_rope_factors),),
    defaults={"granite": CONFIG},
    prepare=_prepare,
    forward=FORWARD,
    token_roles=LLAMA_ROLES,
)
