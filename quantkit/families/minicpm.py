"""MiniCPM 1 and 2: Llama's tensors with factors on the embedding, the residuals and the logits, as Granite has them.

Shape of the GGUF: llama.cpp's `minicpm` architecture (src/models/minicpm.cpp).
"""

from collections.abc import Mapping
from typing import Any

from quantkit.errors import CheckpointError
from quantkit.families.base.family import Canonical, Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number
from quantkit.families.base.keys import base_keys
from quantkit.families.base.native_config import as_llama
from quantkit.families.base.refusals import SILU, only
from quantkit.families.llama import ATTENTION, ENDS, MLP

_RULES = (
    *(rule for rule in ATTENTION if rule.source.endswith(".weight")),
    *(rule for rule in MLP if rule.source.endswith(".weight")),
    *ENDS,
)
_NATIVE_RULES = tuple(
    Rule(rule.source, rule.source, rule.shape, required=rule.required, tied_to_embedding=rule.tied_to_embedding)
    for rule in _RULES
)


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", *SILU, family="MiniCPM")
    only(config, "num_experts", 0, family="MiniCPM")
    for name in ("scale_emb", "scale_depth", "dim_model_base"):
        if not number(config, name):
            raise CheckpointError(f"config.json: {name} must be a number other than 0, not {config.get(name)!r}")
    return config


def _multipliers(config: Mapping[str, Any]) -> tuple[float, float, float]:
    """Factors on the embedding and on each residual, and the divisor of the logits."""
    layers, hidden = config["num_hidden_layers"], config["hidden_size"]
    return float(config["scale_emb"]), config["scale_depth"] / layers**0.5, hidden / config["dim_model_base"]


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/minicpm.py)."""
    embedding, residual, logits = _multipliers(sizes.config)
    return [
        *base_keys(arch, sizes),
        Key(f"{arch}.embedding_scale", "f32", embedding),
        Key(f"{arch}.residual_scale", "f32", residual),
        Key(f"{arch}.logit_scale", "f32", logits),
    ]


def _native_config(config: Mapping[str, Any]) -> dict[str, Any]:
    embedding, residual, logits = _multipliers(config)
    native = as_llama(
        config,
        tie_word_embeddings=bool(config.get("tie_word_embeddings", True)),
        embedding_multiplier=embedding,
        residual_multiplier=residual,
        logits_scaling=logits,
        attention_multiplier=(config["hidden_size"] / config["num_attention_heads"]) ** -0.5,
    )
    return {**native, "architectures": ["GraniteForCausalLM"], "model_type": "granite"}


FAMILY = Family(
    name="MiniCPM",
    models="MiniCPM 1B/2B, MiniCPM-S, MiniCPM4",
    architectures=("MiniCPMForCausalLM",),
    gguf_arch="minicpm",
    rules=_RULES,
    keys=_keys,
    # MiniCPMConfig of the published code.
    defaults={
        "minicpm": {
            "dim_model_base": 1,
            "max_position_embeddings": 2048,
            "num_key_value_heads": None,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "scale_depth": 1,
            "scale_emb": 1,
            "tie_word_embeddings": True,
        }
    },
    prepare=_prepare,
    rope_kinds=("default",),
    canonical=lambda sizes: Canonical(_native_config, _NATIVE_RULES),
)
