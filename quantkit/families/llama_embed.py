"""Llama-Embed-Nemotron: Llama 3 with attention to all tokens, and no head.

Shape of the GGUF: llama.cpp's `llama-embed` architecture (src/models/llama-embed.cpp). The code beside the checkpoint
(llama_bidirectional_model.py) changes nothing of transformers' LlamaModel but its mask. llama.cpp's converter writes
neither that attention is not causal, without which llama.cpp's embeddings are wrong, nor the pooling.
"""

from dataclasses import replace
from typing import Any

from quantkit.families import llama
from quantkit.families.base.encoder import encoder_cautions
from quantkit.families.base.family import Computed, Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters
from quantkit.families.base.pooling import pooling_keys
from quantkit.families.base.refusals import SILU, only, plain_yarn
from quantkit.families.base.traits import Traits
from quantkit.forward.description import Architecture
from quantkit.forward.mixers import Attention
from quantkit.tokenizer.roles import LLAMA_ROLES

_FAMILY = "Llama-Embed"
RULES = (
    *(
        replace(rule, source=rule.source.removeprefix("model."))
        for rule in (*llama.ATTENTION, *llama.MLP)
        if rule.source.endswith(".weight")
    ),
    Rule("embed_tokens.weight", "token_embd.weight", ("vocab", "hidden")),
    Rule("norm.weight", "output_norm.weight", ("hidden",)),
)


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", *SILU, family=_FAMILY)
    only(config, "attention_bias", False, family=_FAMILY)
    only(config, "mlp_bias", False, family=_FAMILY)
    plain_yarn(config, _FAMILY)
    return config


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    causal = Key(f"{arch}.attention.causal", "bool", False)
    return [*llama.llama_keys(arch, sizes), causal, *pooling_keys(arch, sizes)]


FAMILY = Family(
    name=_FAMILY,
    models="llama-embed-nemotron-8b",
    architectures=("LlamaBidirectionalModel",),
    gguf_arch="llama-embed",
    rules=RULES,
    keys=_keys,
    computed=(Computed("rope_freqs.weight", llama.llama3_rope_factors),),
    # the code's config class derives from transformers' LlamaConfig
    defaults={
        "llama_bidirec": {
            **llama.DEFAULTS["llama"],
            "attention_bias": False,
            "hidden_act": "silu",
            "mlp_bias": False,
        }
    },
    prepare=_prepare,
    rename=((r"^model\.", ""),),
    cautions=encoder_cautions,
    rope_kinds=("default", "linear", "yarn", "llama3", "dynamic"),
    forward=Architecture(
        base="",
        head="",
        attention=Attention(causal=False),
        unpacked=lambda _: "loaders of AWQ and GPTQ folders run decoders, and this model is an encoder",
    ),
    traits=Traits(causal=False, encoder=True, unused_cache=True),
    token_roles=LLAMA_ROLES,
)
