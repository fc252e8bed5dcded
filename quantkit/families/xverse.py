"""XVERSE: Llama's graph and tensor names under a separate architecture.

Shape of the GGUF: llama.cpp's `xverse` architecture (src/models/xverse.cpp).
"""

from typing import Any

from quantkit.families.base.family import Canonical, Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters
from quantkit.families.base.keys import base_keys
from quantkit.families.base.native_config import as_llama
from quantkit.families.base.refusals import SILU, only
from quantkit.families.llama import ATTENTION, ENDS, MLP

_RULES = (
    *(rule for rule in ATTENTION if rule.source.endswith(".weight")),
    *(rule for rule in MLP if rule.source.endswith(".weight")),
    *(rule for rule in ENDS if rule.required),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden")),
)


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", *SILU, family="XVERSE")
    return config


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/xverse.py)."""
    return [
        # each head has its own key
        *(key for key in base_keys(arch, sizes) if not key.name.endswith("head_count_kv")),
        Key(f"{arch}.tensor_data_layout", "str", "Meta AI original pth"),
        Key(f"{arch}.rope.dimension_count", "u32", sizes.hidden // sizes.n_head),
    ]


FAMILY = Family(
    name="XVERSE",
    models="XVERSE 7B/13B/65B",
    architectures=("XverseForCausalLM",),
    gguf_arch="xverse",
    rules=_RULES,
    keys=_keys,
    # XverseConfig of the published code.
    defaults={"xverse": {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6}},
    prepare=_prepare,
    rope_kinds=("default",),
    canonical=lambda sizes: Canonical(
        as_llama, tuple(Rule(rule.source, rule.source, rule.shape, required=rule.required) for rule in _RULES)
    ),
)
