"""Command R7B and Command A: Cohere's graph; three layers with a window and rope, then one with neither.

Shape of the GGUF: llama.cpp's `cohere2` architecture (src/models/cohere2.cpp), which has this pattern built in.
"""

from dataclasses import replace
from typing import Any

from quantkit.errors import UnsupportedError
from quantkit.families import cohere
from quantkit.families.base.family import Family, Key
from quantkit.families.base.hyperparameters import Hyperparameters, number, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.sliding import pattern_of, sliding_layers
from quantkit.families.base.traits import Traits
from quantkit.forward.config_keys import Config, given
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import slides, window

_PATTERN = 4

# transformers' Cohere2Config.
DEFAULTS: dict[str, dict[str, Any]] = {
    "cohere2": {**cohere.CONFIG, "rope_theta": 10000.0, "rotary_pct": 1.0, "sliding_window": 4096}
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    cohere.prepare(config, "Cohere 2")
    layers = config.get("num_hidden_layers")
    if isinstance(layers, int):
        stated = sliding_layers(config, layers, pattern_of(config, _PATTERN))
        if stated != [(layer + 1) % _PATTERN != 0 for layer in range(layers)]:
            raise UnsupportedError(
                f"config.json: layers without a sliding window are not every {_PATTERN}th; llama.cpp runs Cohere 2 only"
                " so"
            )
    return config


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/command_r.py)."""
    config = sizes.config
    rotated = int((number(config, "rotary_pct") or 1.0) * (sizes.hidden // sizes.n_head))
    return [
        *base_keys(arch, sizes),
        Key(f"{arch}.logit_scale", "f32", number(config, "logit_scale")),
        Key(f"{arch}.attention.sliding_window", "u32", size(config, "sliding_window")),
        Key(f"{arch}.vocab_size", "u32", sizes.vocab),
        Key(f"{arch}.rope.dimension_count", "u32", rotated),
        Key(f"{arch}.rope.scaling.type", "str", "none"),
    ]


def _slides(config: Config, layer: int) -> bool:
    pattern = int(given(config, "sliding_window_pattern", default=_PATTERN))
    return slides(config, layer, (layer + 1) % pattern != 0)


FORWARD = replace(
    cohere.FORWARD,
    attention=Attention(
        pairs="neighbours",
        rope=lambda config, layer: config if _slides(config, layer) else None,
        window=window(_slides),
    ),
)

FAMILY = Family(
    name="Cohere 2",
    models="Command R7B, Command A, Aya Expanse, Tiny Aya",
    architectures=("Cohere2ForCausalLM",),
    gguf_arch="cohere2",
    rules=(*cohere.ENDS, *cohere.LAYER),
    keys=_keys,
    defaults=DEFAULTS,
    prepare=_prepare,
    rope_kinds=("default",),
    forward=FORWARD,
    traits=Traits(layer_norm=True, parallel=True, sliding_every=_PATTERN, rope_in_windows=True),
)
