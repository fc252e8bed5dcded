"""Apertus: Llama with norms of heads and a feed-forward of two matrices, between them xIELU with numbers of its own.

Shape of the GGUF: llama.cpp's `apertus` architecture (src/models/apertus.cpp). It has the numbers of each layer's
activation as keys.
"""

from typing import Any

from quantkit.errors import CheckpointError
from quantkit.families.base.family import Computed, Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters
from quantkit.families.base.refusals import only, plain_yarn
from quantkit.families.base.scalars import SETTING
from quantkit.families.llama import ENDS, llama3_rope_factors, llama_keys
from quantkit.families.qwen2 import PROJECTIONS
from quantkit.families.qwen3 import HEAD_NORM_RULES
from quantkit.forward.description import Architecture, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import HEAD_NORMS
from quantkit.tokenizer.roles import LLAMA_ROLES

_AT, _TO = "model.layers.{layer}", "blk.{layer}"
_NUMBERS = ("alpha_n", "alpha_p", "beta", "eps")

RULES = (
    Rule(f"{_AT}.attention_layernorm.weight", f"{_TO}.attn_norm.weight", ("hidden",)),
    Rule(f"{_AT}.feedforward_layernorm.weight", f"{_TO}.ffn_norm.weight", ("hidden",)),
    *PROJECTIONS,
    *HEAD_NORM_RULES,
    Rule(f"{_AT}.mlp.up_proj.weight", f"{_TO}.ffn_up.weight", ("ffn", "hidden")),
    Rule(f"{_AT}.mlp.down_proj.weight", f"{_TO}.ffn_down.weight", ("hidden", "ffn")),
    *ENDS,
)

# transformers' ApertusConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "apertus": {
        "attention_bias": False,
        "hidden_act": "xielu",
        "max_position_embeddings": 65536,
        "num_key_value_heads": None,
        "rms_norm_eps": 1e-5,
        "rope_theta": 12000000.0,
        "tie_word_embeddings": False,
    }
}
_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", "xielu", family="Apertus")
    only(config, "attention_bias", False, family="Apertus")
    only(config, "mlp_bias", False, family="Apertus")
    only(config, "post_norm", False, family="Apertus")
    only(config, "qk_norm", True, family="Apertus")
    only(config, "tie_word_embeddings", False, family="Apertus")
    plain_yarn(config, "Apertus")
    if config.get("rope_parameters") is None and config.get("rope_scaling") is None:
        config["rope_scaling"] = _ROPE
    return config


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The activation's numbers come first, because the converter reads them with the tensors.

    A file of headers alone has none of them.

    Raises:
        CheckpointError: a layer lacks one of its numbers.
    """
    scalars = sizes.config.get(SETTING)
    if scalars is None:
        return llama_keys(arch, sizes)
    keys = []
    for name in _NUMBERS:
        sources = [f"model.layers.{layer}.mlp.act_fn.{name}" for layer in range(sizes.n_layer)]
        missing = next((source for source in sources if source not in scalars), None)
        if missing is not None:
            raise CheckpointError(f"tensor {missing} is missing from the checkpoint; download it again")
        keys.append(Key(f"xielu.{name}", "f32s", [scalars[source] for source in sources], first=True))
    return [*keys, *llama_keys(arch, sizes)]


FORWARD = Architecture(
    attention_norm="attention_layernorm",
    feed_norm="feedforward_layernorm",
    attention=Attention(norms=HEAD_NORMS),
    feed=FeedForward(gate=None, xielu="act_fn."),
)

FAMILY = Family(
    name="Apertus",
    models="Apertus 8B/70B",
    architectures=("ApertusForCausalLM",),
    gguf_arch="apertus",
    rules=RULES,
    keys=_keys,
    computed=(Computed("rope_freqs.weight", llama3_rope_factors),),
    defaults=DEFAULTS,
    prepare=_prepare,
    scalars=r"model\.layers\.\d+\.mlp\.act_fn\.(alpha_n|alpha_p|beta|eps)",
    forward=FORWARD,
    token_roles=LLAMA_ROLES,
)
