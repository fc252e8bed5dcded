"""Jais: ALiBi, a gated feed-forward and scaled ends. transformers has no class for it; GPT-2's is changed into it."""

from typing import Any

import numpy as np

from tests.families.models.case import VOCAB, Case, Tensors, weight

_GPT2: dict[str, Any] = {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "model_type": "gpt2",
    "n_embd": 48,
    "n_head": 4,
    "n_inner": 96,
    "n_layer": 3,
    "n_positions": 512,
    "tie_word_embeddings": False,
    "vocab_size": VOCAB,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
EMBEDDING_SCALE, OUTPUT_ALPHA, WIDTH_SCALE = 3.5, 2.25, 0.25
_OWN: dict[str, Any] = {
    "activation_function": "swiglu",
    "architectures": ["JAISLMHeadModel"],
    "model_type": "jais",
    "mup_embeddings_scale": EMBEDDING_SCALE,
    "mup_output_alpha": OUTPUT_ALPHA,
    "mup_scale_qk_dot_by_d": True,
    "mup_width_scale": WIDTH_SCALE,
    "position_embedding_type": "alibi",
    "scale_attn_weights": True,
}
# the names of the first release
_FIRST: dict[str, Any] = {
    **{key: value for key, value in _OWN.items() if not key.startswith("mup_")},
    "embeddings_scale": EMBEDDING_SCALE,
    "scale_qk_dot_by_d": True,
    "width_scale": OUTPUT_ALPHA * WIDTH_SCALE,
}


def part_values(config: dict[str, Any]) -> Tensors:
    """The tensors that GPT-2's class does not have, by their published names."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(config["n_layer"]):
        at = f"transformer.h.{layer}.mlp.c_fc2."
        shapes |= {at + "weight": (config["n_embd"], config["n_inner"]), at + "bias": (config["n_inner"],)}
    return {name: weight(2, name, shape) for name, shape in shapes.items()}


def _published(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    kept = {name: values for name, values in tensors.items() if name != "transformer.wpe.weight"}
    return {**config, **_OWN}, {**kept, **part_values(config)}


def _first_release(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    # the base of those of four heads, then every other one of eight heads
    slopes = np.array([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3], np.float32)
    published = _published(config, tensors)[1] | {"transformer.relative_pe.slopes": slopes}
    return {**config, **_FIRST}, published


CASES = (
    Case("jais", _GPT2, publish=_published, patch="make_jais", newest=True),
    # the converter fails on slopes, which it reads before there are any values
    Case(
        "jais-13b",
        {**_GPT2, "n_head": 6},
        publish=_first_release,
        patch="make_jais",
        newest=True,
        seed=1,
        converter=False,
    ),
)
