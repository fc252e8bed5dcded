"""Mamba 2: layers of Mamba 2 alone, without attention and feed-forward.

Shape of the GGUF: llama.cpp's `mamba2` architecture (src/models/mamba2.cpp).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError
from quantkit.families.base.family import Family, Key
from quantkit.families.base.hyperparameters import Hyperparameters, number, size
from quantkit.families.base.mamba import mamba2_dimensions, mamba2_rules, no_time_limits
from quantkit.families.base.traits import Traits
from quantkit.families.mamba import ENDS, IDLE, NORM, RENAME, shared_keys, without_attention
from quantkit.families.mamba import FORWARD as MAMBA
from quantkit.forward.recurrent_mixers import Mamba2
from quantkit.forward.settings import size_of

_NAME = "Mamba 2"


def _mamba_dimensions(config: Mapping[str, Any]) -> dict[str, int]:
    hidden = size(config, "hidden_size")
    return mamba2_dimensions(
        hidden,
        size(config, "expand") * hidden,
        size(config, "num_heads"),
        size(config, "n_groups"),
        size(config, "state_size"),
        size(config, "conv_kernel"),
    )


def _dimensions(sizes: Hyperparameters) -> dict[str, int]:
    return _mamba_dimensions(sizes.config)


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    config, dims = sizes.config, _dimensions(sizes)
    return [
        *shared_keys(arch, sizes),
        Key(f"{arch}.ssm.conv_kernel", "u32", dims["ssm_kernel"]),
        Key(f"{arch}.ssm.inner_size", "u32", dims["ssm_inner"]),
        Key(f"{arch}.ssm.state_size", "u32", size(config, "state_size")),
        Key(f"{arch}.ssm.time_step_rank", "u32", dims["ssm_heads"]),
        Key(f"{arch}.ssm.group_count", "u32", dims["ssm_groups"]),
        Key(f"{arch}.attention.layer_norm_rms_epsilon", "f32", number(config, "layer_norm_epsilon")),
    ]


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    no_time_limits(config, _NAME)
    dims, width = _mamba_dimensions(config), size(config, "head_dim")
    if dims["ssm_heads"] * width != dims["ssm_inner"]:
        raise CheckpointError(
            f"config.json: num_heads {dims['ssm_heads']} times head_dim {width} is not expand times hidden_size"
            f" ({dims['ssm_inner']}); correct one of them"
        )
    return without_attention(config, _NAME, dims["ssm_inner"])


FAMILY = Family(
    name=_NAME,
    models="Mamba-Codestral 7B, Mamba 2 130M to 2.7B",
    architectures=("Mamba2ForCausalLM",),
    gguf_arch="mamba2",
    rules=(
        ENDS[0],
        NORM,
        *mamba2_rules("backbone.layers.{layer}.mixer.", lambda sizes: _dimensions(sizes)["ssm_channels"]),
        *ENDS[1:],
    ),
    keys=_keys,
    # transformers' Mamba2Config
    defaults={
        "mamba2": {
            "num_heads": 128,
            "head_dim": 64,
            "vocab_size": 32768,
            "hidden_size": 4096,
            "state_size": 128,
            "num_hidden_layers": 64,
            "layer_norm_epsilon": 1e-5,
            "expand": 2,
            "conv_kernel": 4,
            "n_groups": 8,
            "use_bias": False,
            "use_conv_bias": True,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
        }
    },
    prepare=_prepare,
    rename=RENAME,
    dimensions=_dimensions,
    no_effect=(*IDLE, "chunk_size", "time_step_rank"),
    forward=replace(
        MAMBA,
        mamba=None,
        mamba2=Mamba2(
            layers=lambda _config, _layer: True,
            at="mixer.",
            heads=size_of("num_heads"),
            head_width=size_of("head_dim"),
            groups=size_of("n_groups"),
            state=size_of("state_size"),
        ),
        tied=False,
    ),
    traits=Traits(mamba2=True, positions="stated"),
)
