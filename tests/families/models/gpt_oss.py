"""gpt-oss: sinks, windows, biases everywhere, experts as floats and as the MXFP4 blocks they are published in."""

from typing import Any

from tests.families.models.case import VOCAB, Case, Tensors
from tests.families.models.mxfp4 import to_mxfp4

BASE = {
    "model_type": "gpt_oss",
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_hidden_layers": 3,
    "max_position_embeddings": 512,
    "num_local_experts": 6,
    "num_experts_per_tok": 3,
    # fewer than the tokens of a test, so that the window is seen
    "sliding_window": 5,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 32.0, "beta_slow": 1.0}


def packed(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """As published: experts turned and in MXFP4 blocks; the native model gets the very values of the blocks."""
    result = {}
    for name, value in tensors.items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            result[name] = value
            continue
        near, result[f"{name}_blocks"], result[f"{name}_scales"] = to_mxfp4(value.transpose(0, 2, 1))
        value[...] = near.transpose(0, 2, 1)
    return {**config, "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}, result


CASES = (
    Case("gpt-oss", {**BASE, "rope_scaling": {**YARN, "truncate": True}}),
    Case("gpt-oss-unscaled", {**BASE, "rope_scaling": None}),
    # rotary settings as published: llama.cpp rounds where these say not to
    Case("gpt-oss-published", {**BASE, "head_dim": 64}),
    # the converter does not say which layers slide
    Case(
        "gpt-oss-layers",
        {
            **BASE,
            "rope_scaling": None,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        },
        converter=False,
    ),
    # llama.cpp multiplies MXFP4 by activations that it rounds to 8 bits; test_gpt_oss.py has the same blocks unpacked
    Case("gpt-oss-mxfp4", {**BASE, "rope_scaling": None}, publish=packed, drift=0.08),
)
