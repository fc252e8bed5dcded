"""Qwen 3.5: three layers of Gated DeltaNet to one of gated attention, and a layer that predicts a second token (MTP).

Shape of the GGUF: llama.cpp's `qwen35` architecture (src/models/qwen35.cpp, delta-net-base.cpp). Its value heads go
round the key heads, where transformers keeps those of a key head together. Its multimodal rope gives text the positions
of plain rope. Norms have one added, except the one within DeltaNet.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.adjust import plus_one
from quantkit.families.base.delta_net import (
    DELTA_NET,
    WITH_ATTENTION,
    delta_net_keys,
    dimensions,
    full_attention,
    has_delta_net,
    matrix,
)
from quantkit.families.base.family import Dropped, Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.multimodal import TEXT_PREFIXES, VISION, VISION_LEFT_OUT
from quantkit.families.base.refusals import SILU, only, plain_yarn
from quantkit.families.base.traits import Traits
from quantkit.families.qwen2 import ROPE_KINDS
from quantkit.families.qwen3vl import QWEN3_5_PROJECTOR
from quantkit.forward.config_keys import Config, given, head_dim
from quantkit.forward.description import Architecture
from quantkit.forward.mixers import Attention
from quantkit.forward.parts import Norm
from quantkit.forward.recurrent_mixers import DeltaNet
from quantkit.forward.settings import HEAD_NORMS

_SHARE_ROTATED = 0.25
_SECTIONS = [11, 11, 10]

_LAYER, _TO = "model.layers.{layer}", "blk.{layer}"


def norm_rule(source: str, target: str, shape: str = "hidden", **more: Any) -> Rule:
    """A norm to which one is added."""
    return Rule(f"{source}.weight", f"{target}.weight", (shape,), adjust=plus_one, **more)


NORMS = (
    norm_rule(f"{_LAYER}.input_layernorm", f"{_TO}.attn_norm"),
    norm_rule(f"{_LAYER}.post_attention_layernorm", f"{_TO}.post_attention_norm"),
)
GATED_ATTENTION = (
    matrix(f"{_LAYER}.self_attn.q_proj", "attn_q", "gated_q", "hidden", layers=WITH_ATTENTION),
    matrix(f"{_LAYER}.self_attn.k_proj", "attn_k", "kv", "hidden", layers=WITH_ATTENTION),
    matrix(f"{_LAYER}.self_attn.v_proj", "attn_v", "kv", "hidden", layers=WITH_ATTENTION),
    matrix(f"{_LAYER}.self_attn.o_proj", "attn_output", "hidden", "q", layers=WITH_ATTENTION),
    norm_rule(f"{_LAYER}.self_attn.q_norm", f"{_TO}.attn_q_norm", "head_dim", layers=WITH_ATTENTION),
    norm_rule(f"{_LAYER}.self_attn.k_norm", f"{_TO}.attn_k_norm", "head_dim", layers=WITH_ATTENTION),
)
MLP = (
    matrix(f"{_LAYER}.mlp.gate_proj", "ffn_gate", "ffn", "hidden"),
    matrix(f"{_LAYER}.mlp.up_proj", "ffn_up", "ffn", "hidden"),
    matrix(f"{_LAYER}.mlp.down_proj", "ffn_down", "hidden", "ffn"),
)
ENDS = (
    Rule("model.embed_tokens.weight", "token_embd.weight", ("vocab", "hidden")),
    norm_rule("model.norm", "output_norm"),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden"), required=False, tied_to_embedding=True),
)


def draft_rules(layer: Iterable[Rule]) -> tuple[Rule, ...]:
    """The rules of the layer that predicts a second token: those of a layer with attention, and its own."""
    outer = (
        matrix("mtp.fc", "nextn.eh_proj", "hidden", "two_hidden"),
        norm_rule("mtp.pre_fc_norm_embedding", f"{_TO}.nextn.enorm"),
        norm_rule("mtp.pre_fc_norm_hidden", f"{_TO}.nextn.hnorm"),
        norm_rule("mtp.norm", f"{_TO}.nextn.shared_head_norm"),
    )
    moved = (replace(rule, source=rule.source.replace(_LAYER, "mtp.layers.{draft}"), layers=None) for rule in layer)
    return tuple(replace(rule, draft=True) for rule in (*moved, *outer))


def keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The common keys, then DeltaNet's under the names that llama.cpp has for state space models."""
    return [*base_keys(arch, sizes), *delta_net_keys(arch, sizes), *section_keys(arch, sizes)]


def section_keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The sections of the multimodal rope, where config.json does not state them."""
    if "mrope_section" in sizes.rope:
        return []
    return [Key(f"{arch}.rope.dimension_sections", "i32s", [*_SECTIONS, 0])]


def observe(config: dict[str, Any], tensors: Collection[str]) -> dict[str, Any]:
    """config.json with the number of draft layers that the checkpoint has; tools that save a model may lose them."""
    numbers = {int(match[1]) for name in tensors if (match := re.match(r"(?:model\.)?mtp\.layers\.(\d+)\.", name))}
    any_of_it = any(re.match(r"(?:model\.)?mtp\.", name) for name in tensors)
    stated = int(number(config, "mtp_num_hidden_layers") or 0)
    config["mtp_num_hidden_layers"] = max(stated, len(numbers), 1) if any_of_it else 0
    return config


def prepare_delta_net(config: dict[str, Any], family: str) -> dict[str, Any]:
    """Refuse what llama.cpp's graph of this line cannot have, and state the share of a head that is rotated."""
    only(config, "hidden_act", *SILU, family=family)
    only(config, "attention_bias", False, family=family)
    only(config, "attn_output_gate", True, family=family)
    only(config, "mtp_num_hidden_layers", 0, 1, family=family)
    only(config, "mtp_use_dedicated_embeddings", False, family=family)
    plain_yarn(config, family)
    key_width, value_width = size(config, "linear_key_head_dim"), size(config, "linear_value_head_dim")
    if key_width != value_width:
        raise UnsupportedError(
            f"config.json: linear_key_head_dim is {key_width} and linear_value_head_dim is {value_width}, but llama.cpp"
            f" runs {family} only with equal ones; a GGUF cannot express this setting"
        )
    key_heads, value_heads = size(config, "linear_num_key_heads"), size(config, "linear_num_value_heads")
    if value_heads % key_heads:
        raise CheckpointError(
            f"config.json: linear_num_value_heads {value_heads} does not divide by linear_num_key_heads {key_heads};"
            " correct one of them"
        )
    full_attention(config, size(config, "num_hidden_layers"))
    _rotated_share(config)
    return config


def _rotated_share(config: dict[str, Any]) -> None:
    if config.get("partial_rotary_factor") is not None:
        return
    spelling = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    rope = config.get(spelling) or {}
    if isinstance(rope, Mapping) and rope.get("partial_rotary_factor") is None:
        config[spelling] = {**rope, "partial_rotary_factor": _SHARE_ROTATED}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    if config["architectures"][0] == "Qwen3_5TextModel":
        # it has no head; llama.cpp takes the embedding, and its converter leaves the draft layer out
        config |= {"tie_word_embeddings": True, "mtp_num_hidden_layers": 0}
    prepare_delta_net(config, "Qwen 3.5")
    check_sections(config, "Qwen 3.5")
    return config


def check_sections(config: Mapping[str, Any], family: str) -> None:
    """Refuse sections of the multimodal rope that leave a pair to llama.cpp's fourth position, which text has not.

    Raises:
        UnsupportedError: the sections do not go round time, height and width (ggml_mrope_cache_init, is_imrope).
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    sections = rope.get("mrope_section", _SECTIONS) if isinstance(rope, Mapping) else _SECTIONS
    well_formed = isinstance(sections, list) and len(sections) >= 3 and all(isinstance(n, int) for n in sections)
    if not well_formed or any(pair >= 3 * sections[pair % 3] for pair in range(sum(sections[:3]))):
        raise UnsupportedError(
            f"config.json: mrope_section is {sections!r}, but llama.cpp runs {family} only with sections that take"
            " turns, such as [11, 11, 10]; a GGUF cannot express this setting"
        )


# transformers' Qwen3_5TextConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen3_5_text": {
        "vocab_size": 248320,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "head_dim": 256,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
    }
}

PREFIXES = (*TEXT_PREFIXES, (r"^model\.(?=mtp\.)", ""), (r"^(?=layers\.|embed_tokens\.|norm\.)", "model."))
DROPPED = (
    Dropped(VISION, VISION_LEFT_OUT),
    Dropped(
        r"(model\.)?mtp\..*",
        "they predict a second token, and this GGUF has no layer for that",
        when=lambda sizes: sizes.n_draft == 0,
    ),
)


def rotary(config: Config) -> int:
    """Number of rotated values of a head, a quarter of them by default."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    stated = given(config, "partial_rotary_factor", default=rope.get("partial_rotary_factor", _SHARE_ROTATED))
    return int(head_dim(config) * stated)


_FROM_ONE = Norm(offset=1.0)
FORWARD = Architecture(
    norm=_FROM_ONE,
    attention=Attention(norms=HEAD_NORMS, norm=_FROM_ONE, rotary=rotary, gated=True),
    delta_net=DeltaNet(layers=has_delta_net),
    mlx_type="qwen3_5",
)

TRAITS = Traits(
    feed_norm="post_attention_norm",
    output_after_norm=True,
    delta_net=True,
    gated_attention=True,
    sigmoid_shared_gate=True,
)

FAMILY = Family(
    name="Qwen 3.5",
    models="Qwen3.5 0.8B/2B/4B/9B/27B, Qwen3.6-27B, Qwen3.8-27B",
    architectures=("Qwen3_5ForConditionalGeneration", "Qwen3_5ForCausalLM", "Qwen3_5TextModel"),
    gguf_arch="qwen35",
    rules=NORMS + GATED_ATTENTION + DELTA_NET + MLP + draft_rules((*NORMS, *GATED_ATTENTION, *MLP)) + ENDS,
    keys=keys,
    defaults=DEFAULTS,
    observe=observe,
    prepare=_prepare,
    dimensions=dimensions,
    text_models={"Qwen3_5ForConditionalGeneration": ("Qwen3_5ForCausalLM", "qwen3_5_text")},
    rename=PREFIXES,
    dropped=DROPPED,
    rope_kinds=ROPE_KINDS,
    traits=TRAITS,
    forward={"Qwen3_5ForCausalLM": FORWARD, "Qwen3_5TextModel": FORWARD},
    projectors={"Qwen3_5ForConditionalGeneration": QWEN3_5_PROJECTOR},
)
