"""GLM-5: DeepSeek-V3.2's graph with another order of the rotated pairs in the indexer, which some layers share.

Shape of the GGUF: llama.cpp's `glm-dsa` architecture (src/models/glm-dsa.cpp).
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError
from quantkit.families.base.family import Family, Key
from quantkit.families.base.hyperparameters import Hyperparameters, number, size
from quantkit.families.base.layers import nextn_keys, nextn_rules, observe_nextn
from quantkit.families.base.refusals import only
from quantkit.families.deepseek import ATTENTION, FEED_FORWARD
from quantkit.families.deepseek import keys as deepseek_keys
from quantkit.families.deepseek32 import EXPERTS, INDEXER, dimensions, indexer_keys, prepare_indexed
from quantkit.families.deepseek32 import FORWARD as DEEPSEEK_FORWARD
from quantkit.families.glm4moe import TOKEN_ROLES
from quantkit.families.llama import ENDS
from quantkit.forward.config_keys import Config
from quantkit.forward.mixers import Indexer

_KINDS = {"F": "full", "S": "shared"}


def _kinds(config: Config) -> list[str]:
    """`full` or `shared` for each layer, as the class derives them."""
    kinds, layers = config.get("indexer_types"), size(config, "num_hidden_layers")
    if kinds is None and (pattern := config.get("index_topk_pattern")) is not None:
        kinds = [_KINDS.get(kind, kind) for kind in pattern]
    if kinds is None:
        every = max(int(number(config, "index_topk_freq") or 1), 1)
        offset = number(config, "index_skip_topk_offset")
        first = int(2 if offset is None else offset) - 1
        kinds = ["full" if max(layer - first, 0) % every == 0 else "shared" for layer in range(layers)]
    return list(kinds)


def _own_indexers(sizes: Hyperparameters) -> Iterable[int]:
    return [layer for layer, kind in enumerate(_kinds(sizes.config)) if kind == "full"]


# transformers' GlmMoeDsaConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "glm_moe_dsa": {
        "first_k_dense_replace": 3,
        "index_head_dim": 128,
        "index_n_heads": 32,
        "index_topk": 2048,
        "kv_lora_rank": 512,
        "max_position_embeddings": 202752,
        "moe_intermediate_size": 2048,
        "n_group": 1,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts_per_tok": 8,
        "q_lora_rank": 2048,
        "qk_nope_head_dim": 192,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "routed_scaling_factor": 2.5,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "v_head_dim": 256,
    }
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse what llama.cpp's graph does not have, and state the kind of each layer's indexer."""
    only(config, "indexer_rope_interleave", True, family="GLM-5")
    layers, kinds = size(config, "num_hidden_layers"), _kinds(config)
    if len(kinds) != layers or kinds[0] != "full" or set(kinds) - set(_KINDS.values()):
        raise CheckpointError(
            f"config.json: indexer_types must have full or shared for each of {layers} layers, the first full, not"
            f" {kinds!r}"
        )
    return {**prepare_indexed(config, "GLM-5"), "indexer_types": kinds}


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/glm.py)."""
    kinds = [kind == "full" for kind in _kinds(sizes.config)]
    return [
        *deepseek_keys(arch, sizes),
        *nextn_keys(arch, sizes),
        *indexer_keys(arch, sizes),
        Key(f"{arch}.attention.indexer.types", "bools", kinds),
    ]


FORWARD = replace(
    DEEPSEEK_FORWARD,
    attention=replace(
        DEEPSEEK_FORWARD.attention,
        indexer=Indexer(pairs="neighbours", own=lambda config, layer: _kinds(config)[layer] == "full"),
    ),
)

FAMILY = Family(
    name="GLM-5",
    models="GLM-5, GLM-5.1, GLM-5.2",
    architectures=("GlmMoeDsaForCausalLM",),
    gguf_arch="glm-dsa",
    rules=(
        *ATTENTION,
        *(replace(rule, layers=_own_indexers) for rule in INDEXER),
        *FEED_FORWARD,
        *nextn_rules((*ATTENTION, *(replace(rule, required=False) for rule in INDEXER), *EXPERTS)),
        *ENDS,
    ),
    keys=_keys,
    defaults=DEFAULTS,
    observe=observe_nextn,
    prepare=_prepare,
    dimensions=dimensions,
    rope_kinds=("default",),
    # the widths follow from the others
    no_effect=("head_dim", "qk_head_dim"),
    forward=FORWARD,
    token_roles=TOKEN_ROLES,
)
