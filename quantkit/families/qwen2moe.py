"""Qwen1.5-MoE and Qwen2-MoE: routed experts, and a shared one behind its own gate.

Shape of the GGUF: llama.cpp's `qwen2moe` architecture (src/models/qwen2moe.cpp): every layer is routed, the
router's weights are used unchanged, and the output head is not the embedding.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError
from quantkit.families.base.family import Family, Key, Rule, Take
from quantkit.families.base.fused import expert_halves
from quantkit.families.base.hyperparameters import Hyperparameters, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.refusals import SILU, only, plain_yarn
from quantkit.families.base.traits import Traits
from quantkit.families.llama import ENDS
from quantkit.families.qwen2 import BIASES, NORMS, PROJECTIONS, ROPE_KINDS, no_window
from quantkit.forward.config_keys import Config, given
from quantkit.forward.description import Architecture, Experts, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import EXPERT, FUSED_EXPERTS, flag, if_used, size_of

_MLP, _TO = "model.layers.{layer}.mlp", "blk.{layer}"


def _half(half: int) -> Callable[[Hyperparameters], tuple[Take, ...]]:
    return lambda sizes: expert_halves(sizes.n_expert, size(sizes.config, "moe_intermediate_size"), half)


# Experts one by one, as they are published, or fused, as transformers 5 may save them.
ROUTED = (
    Rule(f"{_MLP}.gate.weight", f"{_TO}.ffn_gate_inp.weight", ("n_expert", "hidden")),
    Rule(f"{_MLP}.experts.{{expert}}.gate_proj.weight", f"{_TO}.ffn_gate_exps.weight", ("expert_ffn", "hidden")),
    Rule(f"{_MLP}.experts.{{expert}}.up_proj.weight", f"{_TO}.ffn_up_exps.weight", ("expert_ffn", "hidden")),
    Rule(f"{_MLP}.experts.{{expert}}.down_proj.weight", f"{_TO}.ffn_down_exps.weight", ("hidden", "expert_ffn")),
    *(
        Rule(
            f"{_MLP}.experts.gate_up_proj",
            f"{_TO}.ffn_{name}_exps.weight",
            ("n_expert", "expert_gate_up", "hidden"),
            take=_half(half),
        )
        for half, name in enumerate(("gate", "up"))
    ),
    Rule(f"{_MLP}.experts.down_proj", f"{_TO}.ffn_down_exps.weight", ("n_expert", "hidden", "expert_ffn")),
)
SHARED = (
    Rule(f"{_MLP}.shared_expert_gate.weight", f"{_TO}.ffn_gate_inp_shexp.weight", ("1", "hidden")),
    Rule(f"{_MLP}.shared_expert.gate_proj.weight", f"{_TO}.ffn_gate_shexp.weight", ("shared_ffn", "hidden")),
    Rule(f"{_MLP}.shared_expert.up_proj.weight", f"{_TO}.ffn_up_shexp.weight", ("shared_ffn", "hidden")),
    Rule(f"{_MLP}.shared_expert.down_proj.weight", f"{_TO}.ffn_down_shexp.weight", ("hidden", "shared_ffn")),
)

# transformers' Qwen2MoeConfig.
DEFAULTS = {
    "qwen2_moe": {
        "decoder_sparse_step": 1,
        "max_position_embeddings": 32768,
        "moe_intermediate_size": 1408,
        "norm_topk_prob": False,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "num_key_value_heads": 16,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "shared_expert_intermediate_size": 5632,
        "sliding_window": 4096,
        "use_sliding_window": False,
    }
}


def every_layer_routed(config: Mapping[str, Any], family: str) -> None:
    """Refuse what llama.cpp's Qwen mixtures cannot have: dense layers among the routed ones, too few experts.

    Raises:
        UnsupportedError: some layers are dense.
        CheckpointError: more experts are used for a token than there are, or they have no width.
    """
    only(config, "decoder_sparse_step", 1, family=family)
    only(config, "mlp_only_layers", [], family=family)
    used, experts = size(config, "num_experts_per_tok"), size(config, "num_experts")
    if used > experts:
        raise CheckpointError(f"config.json: num_experts_per_tok {used} is more than num_experts {experts}")
    size(config, "moe_intermediate_size")


def dimensions(sizes: Hyperparameters) -> dict[str, int]:
    """Rows of an expert's matrices, alone and fused, and of the shared expert's where there is one."""
    ffn = size(sizes.config, "moe_intermediate_size")
    widths = {"expert_ffn": ffn, "expert_gate_up": 2 * ffn}
    if sizes.config.get("shared_expert_intermediate_size"):
        widths["shared_ffn"] = size(sizes.config, "shared_expert_intermediate_size")
    return widths


def keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """What every architecture has, and the widths of the experts."""
    dims = dimensions(sizes)
    result = [*base_keys(arch, sizes), Key(f"{arch}.expert_feed_forward_length", "u32", dims["expert_ffn"])]
    if "shared_ffn" in dims:
        result.append(Key(f"{arch}.expert_shared_feed_forward_length", "u32", dims["shared_ffn"]))
    return result


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", *SILU, family="Qwen2-MoE")
    only(config, "norm_topk_prob", False, family="Qwen2-MoE")
    only(config, "tie_word_embeddings", False, family="Qwen2-MoE")
    every_layer_routed(config, "Qwen2-MoE")
    size(config, "shared_expert_intermediate_size")
    no_window(config, "Qwen2-MoE", by_layer=False)
    plain_yarn(config, "Qwen2-MoE")
    return config


def has_experts(config: Config, layer: int) -> bool:
    """Whether a layer has experts: every `decoder_sparse_step`-th, except those of `mlp_only_layers`."""
    step = int(given(config, "decoder_sparse_step", default=1))
    return layer not in (config.get("mlp_only_layers") or ()) and (layer + 1) % step == 0


FORWARD = Architecture(
    attention=Attention(window=if_used),
    experts=Experts(
        router="mlp.gate",
        expert=EXPERT,
        mlx="mlp.switch_mlp.",
        stacked=FUSED_EXPERTS,
        normalised=flag("norm_topk_prob"),
        shared=FeedForward(at="mlp.shared_expert.", inner=size_of("shared_expert_intermediate_size")),
        shared_gate="mlp.shared_expert_gate",
        layers=has_experts,
    ),
)

FAMILY = Family(
    name="Qwen2-MoE",
    models="Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B",
    architectures=("Qwen2MoeForCausalLM",),
    gguf_arch="qwen2moe",
    # qkv_bias may be false.
    rules=NORMS + PROJECTIONS + tuple(replace(rule, required=False) for rule in BIASES) + ROUTED + SHARED + ENDS,
    keys=keys,
    defaults=DEFAULTS,
    prepare=_prepare,
    dimensions=dimensions,
    rope_kinds=ROPE_KINDS,
    # a window is refused, whichever layers have it; the tensors show the biases
    no_effect=("layer_types", "max_window_layers", "qkv_bias"),
    forward=FORWARD,
    traits=Traits(expert_weights_summed_to_one=False),
)
