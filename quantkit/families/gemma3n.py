"""Gemma 3n, its text model: AltUp's streams of hidden states, LAuReL beside attention, per-layer embeddings.

The first layers have sparse activations; the last layers use the keys and values of an earlier one.

Shape of the GGUF: llama.cpp's `gemma3n` architecture (src/models/gemma3n.cpp), which has most of these sizes built in.
"""

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.family import Dropped, Family, Key, Rule, Take
from quantkit.families.base.hyperparameters import Hyperparameters, number, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.multimodal import TEXT_PREFIXES, VISION, VISION_LEFT_OUT
from quantkit.families.base.refusals import GELU, only
from quantkit.families.base.sliding import sliding_layers
from quantkit.families.base.traits import Traits
from quantkit.families.gemma3 import read_local_rope
from quantkit.forward.config_keys import Config
from quantkit.forward.description import AltUp, Architecture, FeedForward, Laurel, LayerInputs
from quantkit.forward.mixers import Attention
from quantkit.forward.parts import Norm
from quantkit.forward.settings import HEAD_NORMS, local_rope, size_of, slides, window
from quantkit.tokenizer.roles import SpacePrefix, TokenRoles

_PATTERN = 5
# Built into llama.cpp's graph.
_STREAMS, _RANK, _INPUTS = 4, 64, 256
_OWN_CACHES, _SPARSE_LAYERS, _SPARSITY = 20, 10, 0.95

# transformers' Gemma3nTextConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma3n_text": {
        "vocab_size": 262400,
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_hidden_layers": 35,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "rope_theta": 1e6,
        "rope_local_base_freq": 10000.0,
        "sliding_window": 512,
        "final_logit_softcapping": 30.0,
        "vocab_size_per_layer_input": 262144,
        "hidden_size_per_layer_input": 256,
        "altup_active_idx": 0,
        "altup_correct_scale": True,
        "altup_num_inputs": 4,
        "num_kv_shared_layers": 15,
        "laurel_rank": 64,
    }
}


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """One width for all feed-forwards; refuse what llama.cpp's graph has built in otherwise."""
    name, n_layer = "Gemma 3n", size(config, "num_hidden_layers")
    only(config, "hidden_activation", *GELU, family=name)
    only(config, "attention_bias", False, family=name)
    only(config, "altup_correct_scale", True, family=name)
    only(config, "altup_active_idx", 0, family=name)
    only(config, "altup_num_inputs", _STREAMS, family=name)
    only(config, "laurel_rank", _RANK, family=name)
    only(config, "hidden_size_per_layer_input", _INPUTS, family=name)
    only(config, "num_kv_shared_layers", max(0, n_layer - _OWN_CACHES), family=name)
    read_local_rope(config)
    config["layer_types"] = _kinds(config, n_layer)
    config["activation_sparsity_pattern"] = _sparsities(config, n_layer)
    _refuse_other_widths(config, n_layer)
    size(config, "sliding_window")
    if not number(config, "final_logit_softcapping"):
        raise UnsupportedError(
            "config.json: final_logit_softcapping is missing, but llama.cpp always caps the logits of Gemma 3n; a GGUF"
            " cannot express this setting"
        )
    if size(config, "vocab_size_per_layer_input") > size(config, "vocab_size"):
        raise CheckpointError(
            f"config.json: vocab_size_per_layer_input is {config['vocab_size_per_layer_input']}, more than vocab_size"
            f" {config['vocab_size']}; check the file"
        )
    return config


def _kinds(config: Mapping[str, Any], n_layer: int) -> list[str]:
    layers = sliding_layers(config, n_layer, _PATTERN)
    if n_layer > _OWN_CACHES and layers[_OWN_CACHES - 2 : _OWN_CACHES] != [True, False]:
        raise UnsupportedError(
            f"config.json: layers {_OWN_CACHES - 2} and {_OWN_CACHES - 1} must be a sliding and a global one, whose"
            " keys and values llama.cpp shares; a GGUF cannot express this setting"
        )
    return ["sliding_attention" if local else "full_attention" for local in layers]


def _sparsities(config: Mapping[str, Any], n_layer: int) -> list[float]:
    """The share of zero gates by layer; llama.cpp has it in the first ten layers."""
    built_in = [_SPARSITY if layer < _SPARSE_LAYERS else 0.0 for layer in range(n_layer)]
    stated = config.get("activation_sparsity_pattern")
    if stated is None:
        stated = built_in if n_layer > _SPARSE_LAYERS else [0.0] * n_layer
    if stated != built_in:
        raise UnsupportedError(
            f"config.json: activation_sparsity_pattern must be {_SPARSITY} in the first {_SPARSE_LAYERS} layers and 0"
            f" in the others, as llama.cpp has it, not {stated!r}"
        )
    return built_in


def _refuse_other_widths(config: dict[str, Any], n_layer: int) -> None:
    widths = config.get("intermediate_size")
    if not isinstance(widths, Sequence) or isinstance(widths, str):
        return
    if len(widths) != n_layer or len(set(widths)) != 1:
        raise UnsupportedError(
            f"config.json: intermediate_size must be the same in all {n_layer} layers, as llama.cpp has it; a GGUF"
            " cannot express other widths"
        )
    config["intermediate_size"] = widths[0]


def keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The common keys, the cap, the window, and those of streams, shared caches and sparse activations."""
    config = sizes.config
    widths = [sizes.ffn] * sizes.n_layer
    common = [
        Key(key.name, "i32s", widths) if key.name == f"{arch}.feed_forward_length" else key
        for key in base_keys(arch, sizes)
    ]
    shares = config["activation_sparsity_pattern"]
    deviations = [NormalDist().inv_cdf(share) if share else float("-inf") for share in shares]
    return [
        *common,
        Key(f"{arch}.final_logit_softcapping", "f32", number(config, "final_logit_softcapping")),
        Key(f"{arch}.attention.sliding_window", "u32", size(config, "sliding_window")),
        Key(f"{arch}.altup.active_idx", "u32", int(config["altup_active_idx"])),
        Key(f"{arch}.altup.num_inputs", "u32", size(config, "altup_num_inputs")),
        Key(f"{arch}.embedding_length_per_layer_input", "u32", size(config, "hidden_size_per_layer_input")),
        Key(f"{arch}.attention.shared_kv_layers", "u32", int(config["num_kv_shared_layers"])),
        Key(f"{arch}.activation_sparsity_scale", "f32s", deviations),
        Key(
            f"{arch}.attention.sliding_window_pattern",
            "bools",
            [_slides(config, layer) for layer in range(sizes.n_layer)],
        ),
    ]


def _slides(config: Config, layer: int) -> bool:
    return slides(config, layer, (layer + 1) % _PATTERN != 0)


def _shared_from(config: Config, layer: int) -> int | None:
    first = int(config["num_hidden_layers"]) - int(config.get("num_kv_shared_layers") or 0)
    if layer < first:
        return None
    return max(earlier for earlier in range(first) if _slides(config, earlier) == _slides(config, layer))


def _sparsity(config: Config, layer: int) -> float:
    stated = config.get("activation_sparsity_pattern")
    if stated is None:
        return _SPARSITY if layer < _SPARSE_LAYERS < int(config["num_hidden_layers"]) else 0.0
    return float(stated[layer])


def _width(config: Config) -> int:
    widths = config["intermediate_size"]
    return int(widths[0] if isinstance(widths, Sequence) else widths)


def _dimensions(sizes: Hyperparameters) -> dict[str, int]:
    inputs = size(sizes.config, "hidden_size_per_layer_input")
    return {
        "inputs": inputs,
        "all_inputs": inputs * sizes.n_layer,
        "inputs_vocab": size(sizes.config, "vocab_size_per_layer_input"),
        "laurel": size(sizes.config, "laurel_rank"),
        "streams": sizes.n_stream + 1,
        "streams_squared": (sizes.n_stream + 1) ** 2,
    }


def _rows_of_vocabulary(sizes: Hyperparameters) -> Take:
    """A row for each token: those past the table, which stand for images and sound, have the first, as transformers."""
    rows = np.arange(sizes.vocab, dtype=np.int64)
    return Take(np.where(rows < size(sizes.config, "vocab_size_per_layer_input"), rows, 0))


def _has_all_rows(sizes: Hyperparameters) -> bool:
    return size(sizes.config, "vocab_size_per_layer_input") == sizes.vocab


_AT, _TO = "model.layers.{layer}", "blk.{layer}"


def _of_layer(source: str, target: str, *shape: str) -> Rule:
    return Rule(f"{_AT}.{source}.weight", f"{_TO}.{target}.weight", shape)


_TABLE = ("model.embed_tokens_per_layer.weight", "per_layer_token_embd.weight", ("inputs_vocab", "all_inputs"))
RULES = (
    Rule("model.embed_tokens.weight", "token_embd.weight", ("vocab", "hidden")),
    Rule(*_TABLE, when=_has_all_rows),
    Rule(*_TABLE, take=_rows_of_vocabulary, when=lambda sizes: not _has_all_rows(sizes)),
    Rule("model.per_layer_model_projection.weight", "per_layer_model_proj.weight", ("all_inputs", "hidden")),
    Rule("model.per_layer_projection_norm.weight", "per_layer_proj_norm.weight", ("inputs",)),
    Rule("model.altup_projections.{stream}.weight", "altup_proj.weight", ("hidden", "hidden")),
    Rule("model.altup_unembed_projections.{stream}.weight", "altup_unembd_proj.weight", ("hidden", "hidden")),
    Rule("model.norm.weight", "output_norm.weight", ("hidden",)),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden"), required=False, tied_to_embedding=True),
    _of_layer("input_layernorm", "attn_norm", "hidden"),
    _of_layer("self_attn.q_proj", "attn_q", "q", "hidden"),
    _of_layer("self_attn.k_proj", "attn_k", "kv", "hidden"),
    _of_layer("self_attn.v_proj", "attn_v", "kv", "hidden"),
    _of_layer("self_attn.o_proj", "attn_output", "hidden", "q"),
    _of_layer("self_attn.q_norm", "attn_q_norm", "head_dim"),
    _of_layer("self_attn.k_norm", "attn_k_norm", "head_dim"),
    _of_layer("post_attention_layernorm", "post_attention_norm", "hidden"),
    _of_layer("pre_feedforward_layernorm", "ffn_norm", "hidden"),
    _of_layer("mlp.gate_proj", "ffn_gate", "ffn", "hidden"),
    _of_layer("mlp.up_proj", "ffn_up", "ffn", "hidden"),
    _of_layer("mlp.down_proj", "ffn_down", "hidden", "ffn"),
    _of_layer("post_feedforward_layernorm", "post_ffw_norm", "hidden"),
    _of_layer("per_layer_input_gate", "inp_gate", "inputs", "hidden"),
    _of_layer("per_layer_projection", "proj", "hidden", "inputs"),
    _of_layer("post_per_layer_input_norm", "post_norm", "hidden"),
    _of_layer("altup.correction_coefs", "altup_correct_coef", "streams", "streams"),
    Rule(f"{_AT}.altup.correct_output_scale", f"{_TO}.altup_correct_scale.weight", ("hidden",)),
    _of_layer("altup.prediction_coefs", "altup_predict_coef", "streams_squared", "streams"),
    _of_layer("altup.modality_router", "altup_router", "streams", "hidden"),
    _of_layer("altup.router_norm", "altup_router_norm", "hidden"),
    _of_layer("laurel.linear_left", "laurel_l", "laurel", "hidden"),
    _of_layer("laurel.linear_right", "laurel_r", "hidden", "laurel"),
    _of_layer("laurel.post_laurel_norm", "laurel_post_norm", "hidden"),
)

FORWARD = Architecture(
    embedding_scale=lambda config: float(config["hidden_size"]) ** 0.5,
    after_attention="post_attention_layernorm",
    feed_norm="pre_feedforward_layernorm",
    after_feed="post_feedforward_layernorm",
    attention=Attention(
        norms=HEAD_NORMS,
        value_norm=Norm(weighted=False),
        shared_from=_shared_from,
        rope=local_rope(_slides, "rope_local_base_freq"),
        scale=lambda _config, _layer: 1.0,
        window=window(_slides),
    ),
    feed=FeedForward(
        inner=_width,
        sparsity=_sparsity,
        activation=("hidden_activation",),
        default_activation="gelu_pytorch_tanh",
    ),
    layer_inputs=LayerInputs(width=size_of("hidden_size_per_layer_input")),
    altup=AltUp(),
    laurel=Laurel(),
    logit_softcap="final_logit_softcapping",
    tied=True,
)

FAMILY = Family(
    name="Gemma 3n",
    models="Gemma 3n E2B/E4B, text only",
    architectures=("Gemma3nForCausalLM", "Gemma3nForConditionalGeneration"),
    gguf_arch="gemma3n",
    rules=RULES,
    keys=keys,
    defaults=DEFAULTS,
    prepare=prepare,
    dimensions=_dimensions,
    text_models={"Gemma3nForConditionalGeneration": ("Gemma3nForCausalLM", "gemma3n_text")},
    rename=TEXT_PREFIXES,
    dropped=(
        Dropped(VISION, VISION_LEFT_OUT),
        Dropped(r"(model\.)?embed_vision\..*", VISION_LEFT_OUT),
        Dropped(r"(model\.)?(audio_tower|embed_audio)\..*", "they hear audio; this GGUF holds the text model only"),
    ),
    rope_kinds=("default",),
    # of training, and of images and sound
    no_effect=("altup_coef_clip", "audio_soft_tokens_per_image", "eoa_token_id", "vision_soft_tokens_per_image"),
    forward={"Gemma3nForCausalLM": FORWARD},
    traits=Traits(sliding_every=_PATTERN, scaled_embedding=True, normed_values=True, sparse_layers=_SPARSE_LAYERS),
    token_roles=TokenRoles(space_prefix=SpacePrefix.FALSE_LAST),
)
