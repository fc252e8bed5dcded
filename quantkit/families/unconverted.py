"""Models that quantkit reads but does not convert: traits, token roles and positions that their files do not show.

`plan` and `inspect` accept any GGUF, `inspect` any checkpoint. An entry moves into a family file when the model gets
one. Source: llama.cpp's src/models (graphs).
"""

from quantkit.families.base.traits import Traits
from quantkit.tokenizer.roles import TokenRoles

# Recurrent models, encoders, diffusion models, and models with an indexed or shared cache.
_NOT_PLANNABLE = (
    *("jina-bert-v3", "neo-bert"),
    *("clip", "wavtokenizer-dec", "deepseek4"),
    *("llada", "llada-moe", "dream", "rnd1", "minimax-m3", "dflash", "eagle3"),
    *("rwkv6qwen2", "arwkv7"),
    "plamo2",
)

TRAITS = {
    **dict.fromkeys(_NOT_PLANNABLE, Traits(plannable=False)),
    "refact": Traits(positions="stated"),
}
"""By `general.architecture` of a GGUF."""

TOKEN_ROLES: dict[str, TokenRoles] = {}
"""By `architectures` of config.json."""

POSITIONS = {"gpt_bigcode": "learned", "opt": "learned"}
"""By `model_type` of config.json."""
