"""CodeShell: StarCoder2's graph under GPT-2's names, with queries, keys and values in one matrix.

Shape of the GGUF: llama.cpp's `codeshell` architecture (src/models/codeshell.cpp). transformers has no class; the
source is the published modeling_codeshell.py.
"""

from typing import Any

from quantkit.errors import UnsupportedError
from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size, size
from quantkit.families.base.refusals import GELU, only
from quantkit.families.base.traits import Traits
from quantkit.forward.description import Architecture, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import LAYER_NORM

_AT, _TO = "transformer.h.{layer}", "blk.{layer}"
_LINEARS = (
    ("attn.c_attn", "attn_qkv", ("qkv", "hidden")),
    ("attn.c_proj", "attn_output", ("hidden", "hidden")),
    ("mlp.c_fc", "ffn_up", ("ffn", "hidden")),
    ("mlp.c_proj", "ffn_down", ("hidden", "ffn")),
)

RULES = (
    Rule("transformer.wte.weight", "token_embd.weight", ("vocab", "hidden")),
    *(
        Rule(f"{source}.{kind}", f"{target}.{kind}", ("hidden",))
        for source, target in (
            (f"{_AT}.ln_1", f"{_TO}.attn_norm"),
            (f"{_AT}.ln_2", f"{_TO}.ffn_norm"),
            ("transformer.ln_f", "output_norm"),
        )
        for kind in ("weight", "bias")
    ),
    *(
        Rule(f"{_AT}.{source}.{kind}", f"{_TO}.{target}.{kind}", shape if kind == "weight" else shape[:1])
        for source, target, shape in _LINEARS
        for kind in ("weight", "bias")
    ),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden"), required=False, tied_to_embedding=True),
)


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Rename GPT-2's settings."""
    family = "CodeShell"
    only(config, "activation_function", *GELU, family=family)
    only(config, "position_embedding_type", "rope", family=family)
    only(config, "group_query_attention", True, family=family)
    hidden = size(config, "n_embd", "hidden_size")
    inner = optional_size(config, "n_inner") or 4 * hidden
    if inner != 4 * hidden:
        raise UnsupportedError(
            f"config.json: n_inner is {inner}, but llama.cpp runs {family} only with {4 * hidden}; a GGUF cannot"
            " express this setting"
        )
    return {
        **config,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "max_position_embeddings": size(config, "n_positions"),
        "num_attention_heads": size(config, "n_head"),
        "num_hidden_layers": size(config, "n_layer"),
        "num_key_value_heads": size(config, "num_query_groups"),
        "rope_theta": 10000.0,
    }


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/codeshell.py)."""
    return [
        Key(f"{arch}.context_length", "u32", sizes.context),
        Key(f"{arch}.embedding_length", "u32", sizes.hidden),
        Key(f"{arch}.feed_forward_length", "u32", sizes.ffn),
        Key(f"{arch}.block_count", "u32", sizes.n_layer),
        Key(f"{arch}.attention.head_count", "u32", sizes.n_head),
        Key(f"{arch}.attention.head_count_kv", "u32", sizes.n_head_kv),
        Key(f"{arch}.attention.layer_norm_epsilon", "f32", number(sizes.config, "layer_norm_epsilon")),
        Key(f"{arch}.rope.freq_base", "f32", 10000.0),
        Key(f"{arch}.rope.scaling.type", "str", "linear"),
        Key(f"{arch}.rope.scaling.factor", "f32", 1.0),
    ]


FAMILY = Family(
    name="CodeShell",
    models="CodeShell-7B",
    architectures=("CodeShellForCausalLM",),
    gguf_arch="codeshell",
    rules=RULES,
    keys=_keys,
    # CodeShellConfig of the published code
    defaults={
        "codeshell": {
            "activation_function": "gelu_pytorch_tanh",
            "layer_norm_epsilon": 1e-5,
            "n_positions": 8192,
            "num_query_groups": 1,
            "tie_word_embeddings": False,
        }
    },
    prepare=_prepare,
    dimensions=lambda sizes: {"qkv": (sizes.n_head + 2 * sizes.n_head_kv) * sizes.head_dim},
    rope_kinds=("default",),
    forward=Architecture(
        base="transformer.",
        embedding="wte",
        layer="h.{}.",
        norm=LAYER_NORM,
        attention_norm="ln_1",
        feed_norm="ln_2",
        attention=Attention(at="attn.", fused="c_attn", out="c_proj"),
        feed=FeedForward(
            gate=None,
            up="c_fc",
            down="c_proj",
            activation=("activation_function",),
            default_activation="gelu_pytorch_tanh",
        ),
        last_norm="ln_f",
    ),
    traits=Traits(layer_norm=True),
)
