"""Spark X2.5: a gate for each head, layers with a window whose heads rotate otherwise, and GELU.

Shape of the GGUF: llama.cpp's `spark2_5` architecture (src/models/spark2-5.cpp). It keeps queries, keys and values in
one matrix. transformers has no class; the sources are llama.cpp's graph and the names of the published tensors.
"""

from collections.abc import Mapping
from typing import Any

from quantkit.errors import CheckpointError
from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.layer_kinds import layer_kinds
from quantkit.families.base.refusals import only
from quantkit.families.base.traits import Traits
from quantkit.families.llama import ENDS
from quantkit.families.qwen2 import NORMS, PLAIN_MLP
from quantkit.forward.config_keys import Config
from quantkit.forward.description import Architecture, FeedForward
from quantkit.forward.mixers import Attention

_FAMILY = "Spark X2.5"
_AT, _TO = "model.layers.{layer}.self_attn", "blk.{layer}"
_FULL, _SLIDING = "full_attention", "sliding_attention"


def _slides(config: Config, layer: int) -> bool:
    return bool(config["layer_types"][layer] == _SLIDING)


def _rotated(config: Config, kind: str) -> int:
    share = number(config["rope_parameters"][kind], "partial_rotary_factor")
    return int(size(config, "head_dim") * (1.0 if share is None else share))


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse what llama.cpp's graph does not have.

    Raises:
        CheckpointError: a setting is missing.
        UnsupportedError: a setting that llama.cpp does not run.
    """
    for name, needed in (
        ("gate_attn_act_mode", "sigmoid"),
        ("headwise_attn_output_gate", True),
        ("hidden_act", "gelu"),
    ):
        only(config, name, needed, family=_FAMILY)
        if config.get(name) is None:
            shown = "true" if needed is True else repr(needed)
            raise CheckpointError(f"config.json has no {name}; add it, it must be {shown}")
    for name in ("attention_bias", "mlp_bias"):
        only(config, name, False, family=_FAMILY)
    for name in ("head_dim", "sliding_window"):
        size(config, name)
    n_layer = size(config, "num_hidden_layers")
    if layer_kinds(config, n_layer, (_FULL, _SLIDING)) is None:
        raise CheckpointError(f"config.json has no layer_types; add the kinds of {n_layer} layers")
    rope = config.get("rope_parameters")
    for kind in (_FULL, _SLIDING):
        settings = rope.get(kind) if isinstance(rope, Mapping) else None
        if not isinstance(settings, Mapping) or number(settings, "rope_theta") is None:
            raise CheckpointError(f"config.json: rope_parameters has no rope_theta of {kind}; add it")
        only(settings, "rope_type", "default", family=_FAMILY)
    return config


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/spark2_5.py)."""
    config = sizes.config
    return [
        *base_keys(arch, sizes),
        Key(f"{arch}.vocab_size", "u32", sizes.vocab),
        Key(f"{arch}.attention.sliding_window", "u32", size(config, "sliding_window")),
        Key(
            f"{arch}.attention.sliding_window_pattern",
            "bools",
            [_slides(config, layer) for layer in range(sizes.n_layer)],
        ),
        Key(f"{arch}.rope.dimension_count", "u32", _rotated(config, _FULL)),
        Key(f"{arch}.rope.dimension_count_swa", "u32", _rotated(config, _SLIDING)),
    ]


def _per_layer(config: Config, layer: int) -> Config:
    kind = _SLIDING if _slides(config, layer) else _FULL
    return {**config, "rope_parameters": dict(config["rope_parameters"][kind])}


FORWARD = Architecture(
    embedding="embedding",
    attention=Attention(
        fused="q_k_v_proj",
        out="out_proj",
        gate="g_proj",
        gate_per_head=lambda _: True,
        window=lambda config, layer: int(config["sliding_window"]) if _slides(config, layer) else None,
    ),
    feed=FeedForward(default_activation="gelu"),
    per_layer=_per_layer,
    unpacked=lambda _: "transformers has no class of Spark X2.5",
    not_mlx="mlx-lm has not been compared with it",
)

FAMILY = Family(
    name=_FAMILY,
    models="Spark-X2.5-1.7B",
    architectures=("Spark2_5ForCausalLM",),
    gguf_arch="spark2_5",
    rules=(
        *NORMS,
        Rule(f"{_AT}.q_k_v_proj.weight", f"{_TO}.attn_qkv.weight", ("qkv", "hidden")),
        Rule(f"{_AT}.g_proj.weight", f"{_TO}.attn_gate.weight", ("n_head", "hidden")),
        Rule(f"{_AT}.out_proj.weight", f"{_TO}.attn_output.weight", ("hidden", "q")),
        *PLAIN_MLP,
        Rule("model.embedding.weight", "token_embd.weight", ("vocab", "hidden")),
        *(rule for rule in ENDS if rule.target != "token_embd.weight"),
    ),
    keys=_keys,
    prepare=_prepare,
    dimensions=lambda sizes: {"qkv": (sizes.n_head + 2 * sizes.n_head_kv) * sizes.head_dim},
    rope_kinds=("default",),
    forward=FORWARD,
    traits=Traits(sliding_every=4),
)
