"""Hunyuan-A13B: Hunyuan's attention, experts by softmax scores, and a shared expert of the same width.

Shape of the GGUF: llama.cpp's `hunyuan-moe` architecture (src/models/hunyuan-moe.cpp). config.json states some sizes
once a layer; llama.cpp has one number for all layers.
"""

from typing import Any

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.experts import expert_dimensions, expert_rules, shared_rules
from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters
from quantkit.families.base.refusals import only
from quantkit.families.hunyuan import FORWARD as DENSE
from quantkit.families.hunyuan import HEAD_NORM_RULES, hunyuan_keys, prepare_hunyuan
from quantkit.families.llama import ENDS
from quantkit.families.qwen2 import NORMS, PROJECTIONS
from quantkit.forward.description import Architecture, Experts, FeedForward
from quantkit.forward.parts import Form

_MLP, _TO = "model.layers.{layer}.mlp", "blk.{layer}"
_FAMILY = "Hunyuan's mixtures"

RULES = (
    *NORMS,
    *PROJECTIONS,
    *HEAD_NORM_RULES,
    Rule(f"{_MLP}.gate.wg.weight", f"{_TO}.ffn_gate_inp.weight", ("n_expert", "hidden")),
    *expert_rules(f"{_MLP}.experts", width=lambda sizes: sizes.ffn),
    *shared_rules(f"{_MLP}.shared_mlp"),
    *ENDS,
)

# transformers' HunYuanMoEV1Config.
DEFAULTS: dict[str, dict[str, Any]] = {
    "hunyuan_v1_moe": {
        "max_position_embeddings": 2048,
        "moe_topk": 1,
        "num_experts": 1,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }
}


def _one(config: dict[str, Any], name: str, default: int | None = None) -> int:
    """The number that all layers share of a setting that config.json states once, or once a layer."""
    value = config.get(name)
    value = default if value is None else value
    values: list[Any] = value if isinstance(value, list) and value else [value]
    if any(not isinstance(n, int) or isinstance(n, bool) for n in values):
        raise CheckpointError(f"config.json: {name} must be a whole number or a list of them, not {value!r}")
    if len(set(values)) > 1:
        raise UnsupportedError(
            f"config.json: {name} differs between layers, but llama.cpp runs {_FAMILY} only with one number for all"
        )
    return int(values[0])


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    keys, used = hunyuan_keys(arch, sizes), f"{arch}.expert_used_count"
    scaling = [key for key in keys if key.name.startswith(f"{arch}.rope.scaling.")]
    return [
        *(key for key in keys if key.name != used and key not in scaling),
        Key(f"{arch}.expert_shared_feed_forward_length", "u32", sizes.ffn),
        Key(f"{arch}.expert_feed_forward_length", "u32", sizes.ffn),
        Key(used, "u32", sizes.n_expert_used),
        Key(f"{arch}.expert_shared_count", "u32", 1),
        *scaling,
    ]


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    prepare_hunyuan(config, _FAMILY)
    width = config.get("intermediate_size")
    one = {name: _one(config, name) for name in ("num_experts", "moe_topk")}
    one |= {"moe_intermediate_size": _one(config, "moe_intermediate_size", width)}
    one |= {"num_shared_expert": _one(config, "num_shared_expert", 1)}
    only(one, "num_shared_expert", 1, family=_FAMILY)
    only(one, "moe_intermediate_size", width, family=_FAMILY)
    only(config, "moe_layer_num_skipped", 0, family=_FAMILY)
    only(config, "use_mixed_mlp_moe", True, family=_FAMILY)
    only(config, "norm_topk_prob", True, family=_FAMILY)
    if one["moe_topk"] > one["num_experts"]:
        raise CheckpointError(f"config.json: moe_topk {one['moe_topk']} is more than num_experts {one['num_experts']}")
    return {**config, "num_experts": one["num_experts"], "num_experts_per_tok": one["moe_topk"]}


FORWARD = Architecture(
    attention=DENSE.attention,
    experts=Experts(
        router="mlp.gate.wg",
        expert=FeedForward(at="mlp.experts.{}."),
        stacked=FeedForward(at="mlp.experts.", fused="gate_up_proj", form=Form(weight="", bias="_bias")),
        used=("moe_topk",),
        shared=FeedForward(at="mlp.shared_mlp."),
    ),
)

FAMILY = Family(
    name="Hunyuan MoE",
    models="Hunyuan-A13B",
    architectures=("HunYuanMoEV1ForCausalLM",),
    gguf_arch="hunyuan-moe",
    rules=RULES,
    keys=_keys,
    defaults=DEFAULTS,
    prepare=_prepare,
    dimensions=lambda sizes: expert_dimensions(sizes.ffn, sizes.ffn),
    rope_kinds=("default", "dynamic"),
    forward=FORWARD,
)
