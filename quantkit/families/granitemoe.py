"""Granite 3 mixtures: Granite's attention, fused experts, and in some models a shared expert.

Shape of the GGUF: llama.cpp's `granitemoe` architecture (src/models/granite-moe.cpp).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.family import Computed, Family, Key, Rule, Take
from quantkit.families.base.fused import expert_halves, rows
from quantkit.families.base.hyperparameters import Hyperparameters, optional_size, size
from quantkit.families.granite import CONFIG, check_granite, granite_keys, without_plain_width
from quantkit.families.granite import FORWARD as GRANITE_FORWARD
from quantkit.families.llama import ATTENTION, ENDS, llama3_rope_factors
from quantkit.forward.description import Experts, FeedForward
from quantkit.forward.settings import size_of
from quantkit.tokenizer.roles import LLAMA_ROLES

_AT, _TO = "model.layers.{layer}", "blk.{layer}"


def _shared_ffn(sizes: Hyperparameters) -> int:
    """Width of the shared expert; 0 if there is none."""
    return int(sizes.config.get("shared_intermediate_size") or 0)


def _expert_half(half: int) -> Callable[[Hyperparameters], tuple[Take, ...]]:
    return lambda sizes: expert_halves(sizes.n_expert, sizes.ffn, half)


def _shared_half(half: int) -> Callable[[Hyperparameters], Take]:
    return lambda sizes: rows(half * _shared_ffn(sizes), _shared_ffn(sizes))


def _has_shared(sizes: Hyperparameters) -> bool:
    return _shared_ffn(sizes) > 0


_MOE, _SHARED = f"{_AT}.block_sparse_moe", f"{_AT}.shared_mlp"
EXPERTS = (
    Rule(f"{_MOE}.router.layer.weight", f"{_TO}.ffn_gate_inp.weight", ("n_expert", "hidden")),
    *(
        Rule(
            f"{_MOE}.input_linear.weight",
            f"{_TO}.ffn_{name}_exps.weight",
            ("n_expert", "gate_up", "hidden"),
            take=_expert_half(half),
        )
        for half, name in enumerate(("gate", "up"))
    ),
    Rule(f"{_MOE}.output_linear.weight", f"{_TO}.ffn_down_exps.weight", ("n_expert", "hidden", "ffn")),
    *(
        Rule(
            f"{_SHARED}.input_linear.weight",
            f"{_TO}.ffn_{name}_shexp.weight",
            ("shared_gate_up", "hidden"),
            take=_shared_half(half),
            when=_has_shared,
        )
        for half, name in enumerate(("gate", "up"))
    ),
    Rule(
        f"{_SHARED}.output_linear.weight",
        f"{_TO}.ffn_down_shexp.weight",
        ("hidden", "shared_ffn"),
        when=_has_shared,
    ),
)

# The names of transformers 5's modules.
RENAME = (
    (r"block_sparse_moe\.experts\.gate_up_proj$", "block_sparse_moe.input_linear.weight"),
    (r"block_sparse_moe\.experts\.down_proj$", "block_sparse_moe.output_linear.weight"),
    (r"block_sparse_moe\.router\.weight$", "block_sparse_moe.router.layer.weight"),
)

# transformers' GraniteMoeConfig and GraniteMoeSharedConfig.
_MOE_CONFIG: dict[str, Any] = {**CONFIG, "num_experts_per_tok": 2, "num_local_experts": 8}
DEFAULTS = {
    "granitemoe": _MOE_CONFIG,
    "granitemoeshared": {**_MOE_CONFIG, "shared_intermediate_size": 0},
}


def _dimensions(sizes: Hyperparameters) -> dict[str, int]:
    shared = _shared_ffn(sizes)
    return {"gate_up": 2 * sizes.ffn, "shared_ffn": shared, "shared_gate_up": 2 * shared}


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    keys = granite_keys(arch, sizes)
    if _has_shared(sizes):
        keys.append(Key(f"{arch}.expert_shared_feed_forward_length", "u32", _shared_ffn(sizes)))
    return keys


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    check_granite(config, "Granite-MoE")
    experts = optional_size(config, "num_local_experts")
    if experts is None:
        raise UnsupportedError(
            "config.json: num_local_experts is 0, but llama.cpp's Granite-MoE needs experts in every layer"
        )
    used = size(config, "num_experts_per_tok")
    if used > experts:
        raise CheckpointError(f"config.json: num_experts_per_tok {used} is more than num_local_experts {experts}")
    if config.get("shared_intermediate_size"):
        size(config, "shared_intermediate_size")
    return without_plain_width(config)


FORWARD = replace(
    GRANITE_FORWARD,
    experts=Experts(
        router="block_sparse_moe.router.layer",
        stacked=FeedForward(at="block_sparse_moe.", fused="input_linear", down="output_linear"),
        shared=FeedForward(
            at="shared_mlp.", fused="input_linear", down="output_linear", inner=size_of("shared_intermediate_size")
        ),
    ),
)

FAMILY = Family(
    name="Granite-MoE",
    models="Granite 3.0 and 3.1 1B-A400M, 3B-A800M",
    architectures=("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"),
    gguf_arch="granitemoe",
    rules=ATTENTION + EXPERTS + ENDS,
    keys=_keys,
    computed=(Computed("rope_freqs.weight", llama3_rope_factors),),
    defaults=DEFAULTS,
    prepare=_prepare,
    rename=RENAME,
    dimensions=_dimensions,
    forward=FORWARD,
    token_roles=LLAMA_ROLES,
)
