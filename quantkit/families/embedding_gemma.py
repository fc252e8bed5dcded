"""EmbeddingGemma: Gemma 3 with attention to all tokens, and two Dense modules after the pooling.

Shape of the GGUF: llama.cpp's `gemma-embedding` architecture (src/models/gemma-embedding.cpp). The modules become
`dense_2` and `dense_3`; llama.cpp's converter writes them only with --sentence-transformers-dense-modules.
"""

from dataclasses import replace
from typing import Any

from quantkit.errors import UnsupportedError
from quantkit.families import gemma3
from quantkit.families.base.encoder import encoder_cautions
from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters
from quantkit.families.base.pooling import DENSE, pooling_keys
from quantkit.families.base.refusals import GELU, only
from quantkit.families.base.traits import Traits
from quantkit.families.gemma import MATRICES, norm
from quantkit.families.gemma2 import NORMS, refuse_other_query_scale
from quantkit.tokenizer.roles import SpacePrefix, TokenRoles

# llama.cpp's names of the two modules
_TARGETS = ("dense_2", "dense_3")
_NO_LAYERS_OF_27B = 0


def _modules(sizes: Hyperparameters) -> tuple[tuple[str, int, int], ...]:
    return tuple(sizes.config.get(DENSE) or ())


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse what llama.cpp's graph has built in otherwise."""
    family = "EmbeddingGemma"
    only(config, "hidden_activation", *GELU, family=family)
    only(config, "attention_bias", False, family=family)
    if not config.get("use_bidirectional_attention"):
        raise UnsupportedError(
            "config.json: use_bidirectional_attention is not true, but llama.cpp runs a bare Gemma 3 only with"
            " attention to all tokens; a GGUF cannot express this setting"
        )
    refuse_other_query_scale(config, _NO_LAYERS_OF_27B, family)
    gemma3.read_local_rope(config)
    modules, hidden = config.get(DENSE) or (), config.get("hidden_size")
    if modules and not _is_a_pair(modules, hidden):
        raise UnsupportedError(
            f"modules.json has the Dense modules {', '.join(f'{name} ({a} to {b})' for name, a, b in modules)};"
            f" llama.cpp runs 2_Dense and 3_Dense, from {hidden} values and back to {hidden}"
        )
    return config


def _is_a_pair(modules: Any, hidden: Any) -> bool:
    names, inputs, outputs = zip(*modules, strict=True)
    return names == ("2_Dense", "3_Dense") and inputs == (hidden, outputs[0]) and outputs[1] == hidden


def keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """Gemma 3's keys, the sizes of the modules, and the pooling."""
    dense = [
        Key(f"{arch}.{target}_feat_{end}", "u32", width)
        for target, (_, inputs, outputs) in zip(_TARGETS, _modules(sizes), strict=False)
        for end, width in (("in", inputs), ("out", outputs))
    ]
    return [*gemma3.keys(arch, sizes), *dense, *pooling_keys(arch, sizes)]


def _bare(rule: Rule) -> Rule:
    return replace(rule, source=rule.source.removeprefix("model."))


def _dense_width(sizes: Hyperparameters) -> dict[str, int]:
    modules = _modules(sizes)
    return {"dense": modules[0][2] if modules else 0}


RULES = (
    *(
        Rule(f"{folder}.linear.weight", f"{target}.weight", shape, when=lambda sizes: bool(_modules(sizes)))
        for folder, target, shape in (
            ("2_Dense", "dense_2", ("dense", "hidden")),
            ("3_Dense", "dense_3", ("hidden", "dense")),
        )
    ),
    *map(_bare, (*MATRICES, *NORMS)),
    _bare(norm("self_attn.q_norm", "attn_q_norm", "head_dim")),
    _bare(norm("self_attn.k_norm", "attn_k_norm", "head_dim")),
)

FORWARD = replace(
    gemma3.FORWARD,
    base="",
    head="",
    attention=replace(gemma3.FORWARD.attention, causal=False),
    refused=lambda _: None,
    unpacked=lambda _: "loaders of AWQ and GPTQ folders run decoders, and this model is an encoder",
)

FAMILY = Family(
    name="EmbeddingGemma",
    models="embeddinggemma-300m",
    architectures=("Gemma3TextModel",),
    gguf_arch="gemma-embedding",
    rules=RULES,
    keys=keys,
    defaults={"gemma3_text": gemma3.TEXT_DEFAULTS},
    prepare=prepare,
    recognises=lambda config: bool(config.get("use_bidirectional_attention")),
    rename=((r"^model\.", ""),),
    dimensions=_dense_width,
    cautions=encoder_cautions,
    rope_kinds=("default", "linear"),
    forward={"Gemma3TextModel": FORWARD},
    traits=Traits(causal=False, encoder=True, sliding_every=6, scaled_query=True, scaled_embedding=True),
    token_roles=TokenRoles(space_prefix=SpacePrefix.FALSE_LAST),
    dense=True,
)
