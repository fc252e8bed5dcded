"""Granite mixtures with sliding windows: Granite-MoE's experts, whose gate and up stay in one tensor.

Shape of the GGUF: llama.cpp's `granite_swa` architecture (src/models/granite-swa.cpp).
"""

from dataclasses import replace
from typing import Any

from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, optional_size
from quantkit.families.granite import granite_keys
from quantkit.families.granite_swa import (
    ATTENTION_FORWARD,
    SINKS,
    TRAITS,
    WINDOW_DEFAULTS,
    prepare_windows,
    window_keys,
)
from quantkit.families.granitemoe import DEFAULTS as MOE_DEFAULTS
from quantkit.families.granitemoe import EXPERTS
from quantkit.families.granitemoe import FAMILY as GRANITE_MOE
from quantkit.families.granitemoe import FORWARD as MOE_FORWARD
from quantkit.families.llama import ATTENTION, ENDS
from quantkit.forward.description import FeedForward
from quantkit.forward.parts import Form

_MOE, _SHARED, _TO = "model.layers.{layer}.block_sparse_moe", "model.layers.{layer}.shared_mlp", "blk.{layer}"

assert MOE_FORWARD.experts is not None


def _has_shared(sizes: Hyperparameters) -> bool:
    return bool(sizes.config.get("shared_intermediate_size"))


RULES = (
    *ATTENTION,
    SINKS,
    Rule(f"{_MOE}.router.weight", f"{_TO}.ffn_gate_inp.weight", ("n_expert", "hidden")),
    Rule(f"{_MOE}.experts.gate_up_proj", f"{_TO}.ffn_gate_up_exps.weight", ("n_expert", "gate_up", "hidden")),
    Rule(f"{_MOE}.experts.down_proj", f"{_TO}.ffn_down_exps.weight", ("n_expert", "hidden", "ffn")),
    *(rule for rule in EXPERTS if "shared_mlp.output_linear" in rule.source),
    Rule(
        f"{_SHARED}.input_linear.weight",
        f"{_TO}.ffn_up_shexp.weight",
        ("shared_gate_up", "hidden"),
        when=_has_shared,
    ),
    *ENDS,
)

# The names of Granite-MoE's published checkpoints.
RENAME = (
    (r"block_sparse_moe\.input_linear\.weight$", "block_sparse_moe.experts.gate_up_proj"),
    (r"block_sparse_moe\.output_linear\.weight$", "block_sparse_moe.experts.down_proj"),
    (r"block_sparse_moe\.router\.layer\.weight$", "block_sparse_moe.router.weight"),
)


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    assert GRANITE_MOE.prepare is not None
    return prepare_windows(GRANITE_MOE.prepare(config), "Granite-MoE with windows")


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    shared = optional_size(sizes.config, "shared_intermediate_size") if _has_shared(sizes) else None
    more = [Key(f"{arch}.expert_shared_feed_forward_length", "u32", shared)] if shared else []
    return [*granite_keys(arch, sizes), *window_keys(arch, sizes), *more]


FAMILY = Family(
    name="Granite-MoE with windows",
    models="Granite SWASH 3B-A600M",
    architectures=("GraniteMoeSWAForCausalLM",),
    gguf_arch="granite_swa",
    rules=RULES,
    keys=_keys,
    defaults={"granitemoe_swa": {**MOE_DEFAULTS["granitemoeshared"], **WINDOW_DEFAULTS}},
    prepare=_prepare,
    rename=RENAME,
    dimensions=GRANITE_MOE.dimensions,
    rope_kinds=("default", "linear", "yarn", "dynamic"),
    forward=replace(
        MOE_FORWARD,
        attention=ATTENTION_FORWARD,
        experts=replace(
            MOE_FORWARD.experts,
            router="block_sparse_moe.router",
            stacked=FeedForward(at="block_sparse_moe.experts.", fused="gate_up_proj", form=Form("", "_bias")),
        ),
    ),
    traits=TRAITS,
    token_roles=GRANITE_MOE.token_roles,
)
