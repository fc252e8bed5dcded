"""Mamba and FalconMamba: layers of Mamba alone, without attention and feed-forward.

Shape of the GGUF: llama.cpp's `mamba` architecture (src/models/mamba.cpp). FalconMamba has norms without weights for
time steps, keys and queries, which a key states.
"""

from typing import Any

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size, size
from quantkit.families.base.mamba import mamba_dimensions, mamba_rules, time_step_rank
from quantkit.families.base.refusals import SILU, only
from quantkit.families.base.traits import Traits
from quantkit.forward.config_keys import Config
from quantkit.forward.description import Architecture
from quantkit.forward.parts import Norm
from quantkit.forward.recurrent_mixers import Mamba

CONTEXT = 1 << 20
_FALCON = "FalconMambaForCausalLM"


def _inner(config: Config) -> int:
    return 2 * size(config, "hidden_size")


def _rank(config: Config) -> int:
    return time_step_rank(config, "time_step_rank")


def _dimensions(sizes: Hyperparameters) -> dict[str, int]:
    config = sizes.config
    return mamba_dimensions(_inner(config), size(config, "state_size"), _rank(config), size(config, "conv_kernel"))


_AT = "backbone.layers.{layer}"
ENDS = (
    Rule("backbone.embeddings.weight", "token_embd.weight", ("vocab", "hidden")),
    Rule("backbone.norm_f.weight", "output_norm.weight", ("hidden",)),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden"), required=False, tied_to_embedding=True),
)
NORM = Rule(f"{_AT}.norm.weight", "blk.{layer}.attn_norm.weight", ("hidden",))


def shared_keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The keys of a model without attention, in the converter's order."""
    return [
        Key(f"{arch}.context_length", "u32", CONTEXT),
        Key(f"{arch}.embedding_length", "u32", sizes.hidden),
        Key(f"{arch}.feed_forward_length", "u32", 0),
        Key(f"{arch}.attention.head_count", "u32", 0),
        Key(f"{arch}.block_count", "u32", sizes.n_layer),
    ]


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    config, dims = sizes.config, _dimensions(sizes)
    return [
        *shared_keys(arch, sizes),
        Key(f"{arch}.ssm.conv_kernel", "u32", dims["ssm_kernel"]),
        Key(f"{arch}.ssm.inner_size", "u32", dims["ssm_inner"]),
        Key(f"{arch}.ssm.state_size", "u32", dims["ssm_state"]),
        Key(f"{arch}.ssm.time_step_rank", "u32", dims["ssm_rank"]),
        Key(f"{arch}.attention.layer_norm_rms_epsilon", "f32", number(config, "layer_norm_epsilon")),
        Key(f"{arch}.ssm.dt_b_c_rms", "bool", config.get("model_type") == "falcon_mamba"),
    ]


def without_attention(config: dict[str, Any], family: str, inner: int) -> dict[str, Any]:
    """Refuse what llama.cpp's graph has built in otherwise, and state the sizes that every model must have."""
    only(config, "hidden_act", *SILU, family=family)
    only(config, "use_bias", False, family=family)
    only(config, "use_conv_bias", True, family=family)
    stated = optional_size(config, "intermediate_size")
    if stated not in (None, inner):
        raise CheckpointError(
            f"config.json: intermediate_size {stated} is not the width of Mamba ({inner}); correct one of them"
        )
    return config | {"num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": inner}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    if config.get("expand") not in (None, 2):
        raise UnsupportedError(
            f"config.json: expand is {config['expand']!r}, but llama.cpp runs Mamba only with 2; a GGUF cannot express"
            " this setting"
        )
    return without_attention(config, "Mamba", _inner(config))


def _one_epsilon(sizes: Hyperparameters) -> list[str]:
    """The caution for the epsilon of FalconMamba's norms within a layer, which llama.cpp does not have."""
    mixer_eps, shared = number(sizes.config, "mixer_rms_eps"), number(sizes.config, "layer_norm_epsilon")
    if mixer_eps is None or mixer_eps == shared:
        return []
    return [
        f"llama.cpp norms time steps, keys and queries with layer_norm_epsilon {shared:g}, the model with mixer_rms_eps"
        f" {mixer_eps:g}, so outputs differ a little"
    ]


_MAMBA = Mamba(layers=lambda _config, _layer: True, inner=_inner, state=lambda c: int(c["state_size"]), rank=_rank)
FORWARD = Architecture(
    base="backbone.",
    embedding="embeddings",
    attention_norm="norm",
    feed_norm=None,
    feeds=lambda _config, _layer: False,
    mamba=_MAMBA,
    last_norm="norm_f",
    tied=True,
    unpacked=lambda _: "transformers reads the weights of Mamba's linears itself",
)
_NORMED = Mamba(
    layers=_MAMBA.layers,
    inner=_inner,
    state=_MAMBA.state,
    rank=_rank,
    norms=("dt_layernorm", "b_layernorm", "c_layernorm"),
    norm=Norm("rms", weighted=False),
    norm_eps=lambda config: float(config.get("mixer_rms_eps", 1e-6)),
)

# transformers' MambaConfig and FalconMambaConfig
_CONFIG: dict[str, Any] = {
    "vocab_size": 50280,
    "hidden_size": 768,
    "state_size": 16,
    "num_hidden_layers": 32,
    "layer_norm_epsilon": 1e-5,
    "expand": 2,
    "conv_kernel": 4,
    "use_bias": False,
    "use_conv_bias": True,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
IDLE = (
    "rescale_prenorm_residual",
    "residual_in_fp32",
    "time_step_floor",
    "time_step_max",
    "time_step_min",
)
RENAME = ((r"^model\.(backbone|lm_head)\.", r"\1."), (r"^backbone\.embedding\.", "backbone.embeddings."))

FAMILY = Family(
    name="Mamba",
    models="Mamba 130M to 2.8B, FalconMamba 7B",
    architectures=("MambaForCausalLM", "MambaLMHeadModel", _FALCON),
    gguf_arch="mamba",
    rules=(ENDS[0], NORM, *mamba_rules(f"{_AT}.mixer.", lambda sizes: _inner(sizes.config)), *ENDS[1:]),
    keys=_keys,
    defaults={"mamba": _CONFIG, "falcon_mamba": {**_CONFIG, "mixer_rms_eps": 1e-6}},
    prepare=_prepare,
    cautions=_one_epsilon,
    rename=RENAME,
    dimensions=_dimensions,
    no_effect=(
        *IDLE,
        "time_step_init_scheme",
        "time_step_scale",
        "use_associative_scan",
        "use_mambapy",
    ),
    forward={
        "MambaForCausalLM": FORWARD,
        "MambaLMHeadModel": FORWARD,
        _FALCON: Architecture(**{**FORWARD.__dict__, "mamba": _NORMED}),
    },
    traits=Traits(mamba=True, positions="stated"),
)
