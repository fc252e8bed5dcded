"""Rules, keys and checks that families with Mamba layers share.

llama.cpp stores the decay rate in place of its logarithm, and a norm as one row per group (src/models/mamba-base.cpp).
Everything except the projections is float32 in every GGUF.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.adjust import negative_exp
from quantkit.families.base.family import Key, Rule, Take
from quantkit.families.base.hyperparameters import Hyperparameters, size

Layers = Callable[[Hyperparameters], Iterable[int]]


def mamba2_dimensions(hidden: int, inner: int, heads: int, groups: int, state: int, kernel: int) -> dict[str, int]:
    """The dimensions that `mamba2_rules` names.

    Raises:
        CheckpointError: heads do not divide the inner width, or groups do not divide the heads.
    """
    if inner % heads or heads % groups:
        raise CheckpointError(
            f"config.json: Mamba has an inner width of {inner}, {heads} heads and {groups} groups; choose heads that"
            " divide the width and groups that divide the heads"
        )
    channels = inner + 2 * groups * state
    return {
        "ssm_inner": inner,
        "ssm_heads": heads,
        "ssm_groups": groups,
        "ssm_group_width": inner // groups,
        "ssm_channels": channels,
        "ssm_kernel": kernel,
        "ssm_projected": inner + channels + heads,
    }


def _all_channels(channels: Callable[[Hyperparameters], int]) -> Callable[[Hyperparameters], Take]:
    return lambda sizes: Take(np.arange(channels(sizes), dtype=np.int64))


def mamba2_rules(
    at: str, channels: Callable[[Hyperparameters], int], layers: Layers | None = None, *, norm_required: bool = True
) -> tuple[Rule, ...]:
    """The rules of Mamba 2 under the prefix `at`. `channels`: what the convolution covers."""
    to = "blk.{layer}.ssm"
    rules = (
        Rule(f"{at}in_proj.weight", f"{to}_in.weight", ("ssm_projected", "hidden")),
        # without the middle axis of one
        Rule(
            f"{at}conv1d.weight",
            f"{to}_conv1d.weight",
            ("ssm_channels", "1", "ssm_kernel"),
            take=_all_channels(channels),
        ),
        Rule(f"{at}conv1d.bias", f"{to}_conv1d.bias", ("ssm_channels",)),
        Rule(f"{at}dt_bias", f"{to}_dt.bias", ("ssm_heads",)),
        Rule(f"{at}A_log", f"{to}_a", ("ssm_heads",), adjust=negative_exp, reshaped=("ssm_heads", "1")),
        Rule(f"{at}D", f"{to}_d", ("ssm_heads",), reshaped=("ssm_heads", "1")),
        Rule(
            f"{at}norm.weight",
            f"{to}_norm.weight",
            ("ssm_inner",),
            reshaped=("ssm_groups", "ssm_group_width"),
            required=norm_required,
        ),
        Rule(f"{at}out_proj.weight", f"{to}_out.weight", ("hidden", "ssm_inner")),
    )
    return tuple(replace(rule, layers=layers) for rule in rules)


def mamba_dimensions(inner: int, state: int, rank: int, kernel: int) -> dict[str, int]:
    """The dimensions that `mamba_rules` names."""
    return {
        "ssm_inner": inner,
        "ssm_state": state,
        "ssm_rank": rank,
        "ssm_kernel": kernel,
        "ssm_projected": 2 * inner,
        "ssm_selected": rank + 2 * state,
    }


def mamba_rules(
    at: str, inner: Callable[[Hyperparameters], int], layers: Layers | None = None, *, norms: bool = False
) -> tuple[Rule, ...]:
    """The rules of Mamba under the prefix `at`. `inner`: its channels; `norms`: of time steps, keys and queries."""
    to = "blk.{layer}.ssm"
    rules: tuple[Rule, ...] = (
        Rule(f"{at}in_proj.weight", f"{to}_in.weight", ("ssm_projected", "hidden")),
        # without the middle axis of one
        Rule(f"{at}conv1d.weight", f"{to}_conv1d.weight", ("ssm_inner", "1", "ssm_kernel"), take=_all_channels(inner)),
        Rule(f"{at}conv1d.bias", f"{to}_conv1d.bias", ("ssm_inner",)),
        Rule(f"{at}x_proj.weight", f"{to}_x.weight", ("ssm_selected", "ssm_inner")),
        Rule(f"{at}dt_proj.weight", f"{to}_dt.weight", ("ssm_inner", "ssm_rank")),
        Rule(f"{at}dt_proj.bias", f"{to}_dt.bias", ("ssm_inner",)),
        Rule(f"{at}A_log", f"{to}_a", ("ssm_inner", "ssm_state"), adjust=negative_exp),
        Rule(f"{at}D", f"{to}_d", ("ssm_inner",)),
        Rule(f"{at}out_proj.weight", f"{to}_out.weight", ("hidden", "ssm_inner")),
    )
    if norms:
        rules += (
            Rule(f"{at}dt_layernorm.weight", f"{to}_dt_norm.weight", ("ssm_rank",)),
            Rule(f"{at}b_layernorm.weight", f"{to}_b_norm.weight", ("ssm_state",)),
            Rule(f"{at}c_layernorm.weight", f"{to}_c_norm.weight", ("ssm_state",)),
        )
    return tuple(replace(rule, layers=layers) for rule in rules)


def time_step_rank(config: Mapping[str, Any], name: str) -> int:
    """Elements of short time steps: stated, or a sixteenth of the hidden size, rounded up."""
    stated = config.get(name)
    return -(-size(config, "hidden_size") // 16) if stated in (None, "auto") else size(config, name)


def mamba2_keys(arch: str, dims: Mapping[str, int], state: int) -> list[Key]:
    """Mamba 2's keys in the converter's order; `dims` are `mamba2_dimensions`."""
    return [
        Key(f"{arch}.ssm.conv_kernel", "u32", dims["ssm_kernel"]),
        Key(f"{arch}.ssm.state_size", "u32", state),
        Key(f"{arch}.ssm.group_count", "u32", dims["ssm_groups"]),
        Key(f"{arch}.ssm.inner_size", "u32", dims["ssm_inner"]),
        Key(f"{arch}.ssm.time_step_rank", "u32", dims["ssm_heads"]),
    ]


def no_time_limits(config: Mapping[str, Any], family: str, name: str = "time_step_limit") -> None:
    """Refuse limits on time steps, which llama.cpp does not have.

    Raises:
        UnsupportedError: the limits are not 0 and infinity.
    """
    limits = config.get(name)
    if limits is None:
        return
    ends = [_float(end) for end in limits] if isinstance(limits, list | tuple) else []
    if len(ends) != 2 or ends[0] != 0 or ends[1] != math.inf:
        raise UnsupportedError(
            f"config.json: {name} is {limits!r}, but llama.cpp runs {family} only without limits; a GGUF cannot express"
            " this setting"
        )


def _float(end: object) -> float | None:
    """The number, which transformers 5 may write as {"__float__": "Infinity"}."""
    if isinstance(end, Mapping):
        end = end.get("__float__")
    try:
        return float(end)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
