"""Nanbeige 4.2: Llama's layers, all of which run several times with the same weights.

Shape of the GGUF: llama.cpp's `nanbeige` architecture (src/models/nanbeige.cpp). Each run of a layer has keys and
values of its own. Between two runs of all layers comes the norm that also follows the last one, if config.json does not
leave it out. transformers has no class; the sources are llama.cpp's graph and converter.
"""

from dataclasses import replace
from typing import Any

from quantkit.errors import UnsupportedError
from quantkit.families.base.family import Family, Key
from quantkit.families.base.hyperparameters import Hyperparameters, optional_size, size
from quantkit.families.base.refusals import SILU, only, plain_yarn
from quantkit.families.llama import ATTENTION, ENDS, MLP, llama_keys
from quantkit.forward.config_keys import Config, given
from quantkit.forward.description import Architecture
from quantkit.tokenizer.roles import LLAMA_ROLES

_FAMILY = "Nanbeige"
# llama.cpp's LLAMA_MAX_LAYERS
_MOST_LAYERS = 512


def _loops(config: Config) -> int:
    return int(given(config, "num_loops", default=1))


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse what llama.cpp's graph does not have.

    Raises:
        UnsupportedError: a setting that llama.cpp does not run, or more layers in all runs than it can count.
    """
    only(config, "hidden_act", *SILU, family=_FAMILY)
    for name in ("attention_bias", "mlp_bias"):
        only(config, name, False, family=_FAMILY)
    plain_yarn(config, _FAMILY)
    loops = optional_size(config, "num_loops") or 1
    layers = size(config, "num_hidden_layers")
    if loops * layers > _MOST_LAYERS:
        raise UnsupportedError(
            f"config.json: num_loops {loops} times num_hidden_layers {layers} is {loops * layers}, and llama.cpp runs"
            f" at most {_MOST_LAYERS} layers; a GGUF cannot express this setting"
        )
    return {**config, "num_loops": loops}


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/nanbeige.py)."""
    return [
        *llama_keys(arch, sizes),
        Key(f"{arch}.num_loops", "u32", _loops(sizes.config)),
        Key(f"{arch}.skip_loop_final_norm", "bool", bool(sizes.config.get("skip_loop_final_norm"))),
    ]


FORWARD = Architecture(
    refused=lambda config: (
        None if _loops(config) == 1 else f"num_loops {_loops(config)}, because it runs each layer once"
    ),
    unpacked=lambda _: "transformers has no class of Nanbeige",
    not_mlx="mlx-lm has not been compared with it",
)

FAMILY = Family(
    name=_FAMILY,
    models="Nanbeige4.2-3B",
    architectures=("NanbeigeForCausalLM",),
    gguf_arch="nanbeige",
    rules=tuple(replace(rule, when=None) for rule in (*ATTENTION, *MLP, *ENDS) if not rule.source.endswith(".bias")),
    keys=_keys,
    prepare=_prepare,
    rope_kinds=("default", "linear", "yarn"),
    forward=FORWARD,
    token_roles=LLAMA_ROLES,
)
