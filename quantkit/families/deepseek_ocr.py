"""DeepSeek-OCR and Unlimited-OCR, their text model: DeepSeek-MoE's layers without latent attention.

Shape of the GGUF: llama.cpp's `deepseek2-ocr` architecture (src/models/deepseek2ocr.cpp, deepseek2.cpp). All values of
a head rotate, halves together, with a base of 10000. The source is the published modeling_deepseekv2.py, with `use_mla`
false.
"""

from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError
from quantkit.families.base.experts import expert_width
from quantkit.families.base.family import Dropped, Key
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.layers import dense_layers
from quantkit.families.base.refusals import SILU, only
from quantkit.families.deepseek1 import FAMILY as DEEPSEEK
from quantkit.families.deepseek1 import FORWARD as DEEPSEEK_FORWARD
from quantkit.forward.settings import number_of

_FAMILY = "DeepSeek-OCR"
_NAMES = ("DeepseekOCRForCausalLM", "UnlimitedOCRForCausalLM")
_TYPE = "deepseek_ocr_text"
_THETA = 10000.0
# what the converter writes for these models, which have none
_TEMPLATE = "{% for m in messages %}{{m['content']}}{% endfor %}"


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse what llama.cpp's graph does not have.

    Raises:
        CheckpointError: a size is missing, or a token has more experts than there are.
        UnsupportedError: a setting that llama.cpp does not run.
    """
    only(config, "use_mla", False, family=_FAMILY)
    only(config, "hidden_act", *SILU, family=_FAMILY)
    for name, allowed in (("attention_bias", False), ("moe_layer_freq", 1), ("rope_theta", _THETA)):
        only(config, name, allowed, family=_FAMILY)
    only(config, "scoring_func", "softmax", family=_FAMILY)
    only(config, "topk_method", "greedy", family=_FAMILY)
    only(config, "norm_topk_prob", False, family=_FAMILY)
    for name in ("n_group", "topk_group"):
        only(config, name, 1, family=_FAMILY)
    heads = size(config, "num_attention_heads")
    only(config, "num_key_value_heads", heads, family=_FAMILY)
    only(config, "head_dim", size(config, "hidden_size") // heads, family=_FAMILY)
    only(config, "qk_rope_head_dim", 0, family=_FAMILY)
    used, experts = size(config, "num_experts_per_tok"), size(config, "n_routed_experts")
    if used > experts:
        raise CheckpointError(f"config.json: num_experts_per_tok {used} is more than n_routed_experts {experts}")
    return config


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/deepseek.py)."""
    config = sizes.config
    scale, window = number(config, "routed_scaling_factor"), optional_size(config, "sliding_window_size")
    return [
        Key("tokenizer.chat_template", "str", _TEMPLATE, first=True),
        *base_keys(arch, sizes),
        Key(f"{arch}.leading_dense_block_count", "u32", len(dense_layers(sizes))),
        Key(f"{arch}.vocab_size", "u32", sizes.vocab),
        Key(f"{arch}.expert_feed_forward_length", "u32", expert_width(sizes)),
        Key(f"{arch}.expert_shared_count", "u32", size(config, "n_shared_experts")),
        *([Key(f"{arch}.expert_weights_scale", "f32", scale)] if scale is not None else []),
        Key(f"{arch}.rope.dimension_count", "u32", 0),
        *([Key(f"{arch}.attention.sliding_window", "u32", window)] if window else []),
    ]


_EXPERTS = DEEPSEEK_FORWARD.experts
assert _EXPERTS is not None
FORWARD = replace(
    DEEPSEEK_FORWARD,
    experts=replace(_EXPERTS, scale=number_of("routed_scaling_factor")),
    unpacked=lambda _: "transformers has no class of DeepSeek-OCR's text model alone",
    not_mlx="mlx-lm has not been compared with it",
)

FAMILY = replace(
    DEEPSEEK,
    name=_FAMILY,
    models="DeepSeek-OCR 3B, Unlimited-OCR (text only)",
    architectures=_NAMES,
    gguf_arch="deepseek2-ocr",
    rules=tuple(replace(rule, heads=None) for rule in DEEPSEEK.rules),
    keys=_keys,
    # DeepseekV2Config of the published code
    defaults={
        _TYPE: {
            "attention_bias": False,
            "first_k_dense_replace": 0,
            "hidden_act": "silu",
            "max_position_embeddings": 2048,
            "moe_layer_freq": 1,
            "norm_topk_prob": False,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
        }
    },
    prepare=_prepare,
    text_models={name: (name, _TYPE) for name in _NAMES},
    dropped=(
        Dropped(
            r"model\.((sam_model|vision_model|qwen2_model|projector)\..*|image_newline|view_seperator)",
            "they see images; this GGUF holds the text model only, and llama.cpp's converter writes their projector",
        ),
    ),
    forward=FORWARD,
)
