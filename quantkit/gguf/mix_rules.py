"""The tables of the type mix: the role of each tensor, the tensors that are kept, and those that get more bits.

Source: llama.cpp's src/llama-quant.cpp (tensor_get_category, tensor_allows_quantization, llama_tensor_get_type_impl,
tensor_type_fallback, tensor_requires_imatrix) and, for the size it calls 70B, of src/models/.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache

from gguf import GGMLQuantizationType

_T = GGMLQuantizationType


class Role(Enum):
    """The role of a tensor in the rules."""

    OUTPUT = auto()
    EMBEDDING = auto()
    ATTN_V = auto()
    ATTN_K = auto()
    ATTN_Q = auto()
    ATTN_OUTPUT = auto()
    FFN_UP = auto()
    FFN_GATE = auto()
    FFN_DOWN = auto()
    OTHER = auto()


FFN = frozenset({Role.FFN_UP, Role.FFN_GATE, Role.FFN_DOWN})
OUTPUT = frozenset({"output.weight"})
EMBEDDINGS = frozenset({"token_embd.weight", "per_layer_token_embd.weight"})

# the first part in the name decides; fused and latent projections count as values, which lose most from quantization
ROLE_BY_PART = (
    ("attn_qkv.weight", Role.ATTN_V),
    ("attn_kv_b.weight", Role.ATTN_V),
    ("attn_v.weight", Role.ATTN_V),
    ("attn_k.weight", Role.ATTN_K),
    ("attn_q.weight", Role.ATTN_Q),
    ("attn_output.weight", Role.ATTN_OUTPUT),
    ("ffn_up", Role.FFN_UP),
    ("ffn_gate", Role.FFN_GATE),
    ("ffn_down", Role.FFN_DOWN),
)

# never quantized: norms, routers, positions, small recurrent weights, vision and audio parts
KEPT_NAMES = frozenset({"position_embd.weight", "token_types.weight"})
KEPT_PARTS = (
    *("_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj"),
    *("ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "attn_rel_b.weight"),
    *(f"time_mix_{part}.weight" for part in ("first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2")),
    *(f"time_mix_{part}.weight" for part in ("g1", "g2", "decay_w1", "decay_w2", "lerp_fused")),
    *(".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger"),
    *("a.rvq.codebook", "mm.a.code_embd"),
)
KEPT_PARTS_BY_ARCH = {
    "glm5-next": (
        *("hc_", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj"),
        *("indexer_compressor_gate", "indexer_compressor_ape", "ssm_f_a.weight", "ssm_f_b.weight", "ssm_g_a.weight"),
        *("ssm_g_b.weight", "ssm_beta.weight", "attn_kv_a_mqa.weight", "attn_k_b.weight", "attn_v_b.weight"),
    )
}
AT_LEAST_Q8_0 = {"glm5-next": ("attn_q_a", "attn_q_b", "nextn.eh_proj")}

# the layer counts that llama.cpp calls "70B": their value tensors are small, so more bits cost little
LAYERS_OF_70B = {"llama": 80, "llama-embed": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}

NEEDS_IMATRIX = frozenset({_T.IQ3_XXS, _T.IQ2_XXS, _T.IQ2_XS, _T.IQ2_S, _T.IQ1_M, _T.IQ1_S})

TINY = "iq1_s iq1_m iq2_xxs iq2_xs iq2_s iq2_m"
TINY_TYPES = frozenset(TINY.split())


@dataclass(frozen=True)
class Place:
    """The current tensor, the i-th of n tensors of its role, and the properties of its model."""

    i: int
    n: int
    gqa: int
    experts: int
    imatrix: bool
    falcon: bool


_Condition = Callable[[Place], bool]


def _always(_: Place) -> bool:
    return True


def _first(part: int) -> _Condition:
    return lambda at: at.i < at.n // part


def _more_bits(at: Place) -> bool:
    """The first and the last eighth of the layers, and every third between them."""
    return at.i < at.n // 8 or at.i >= 7 * at.n // 8 or (at.i - at.n // 8) % 3 == 2


def _wide_gqa(at: Place) -> bool:
    """Four or more query heads share a value head, so its tensor is small."""
    return at.gqa >= 4


def _eight_experts(at: Place) -> bool:
    """Mixtral: the attention is small next to the experts."""
    return at.experts == 8


def _all(*conditions: _Condition) -> _Condition:
    return lambda at: all(condition(at) for condition in conditions)


def _any(*conditions: _Condition) -> _Condition:
    return lambda at: any(condition(at) for condition in conditions)


def _not(condition: _Condition) -> _Condition:
    return lambda at: not condition(at)


def _falcon(at: Place) -> bool:
    return at.falcon


def _imatrix(at: Place) -> bool:
    return at.imatrix


@dataclass(frozen=True)
class Rule:
    """For the file types in `types` (names separated by blanks), `gives` is the type if `when` is true."""

    types: str
    gives: GGMLQuantizationType
    when: _Condition = _always


_MIDDLE = _all(_not(_first(8)), lambda at: at.i < 7 * at.n // 8)
_NARROWED_UP_GATE = (Rule("iq3_xs", _T.IQ3_XXS, _MIDDLE),)
# only these file types give more bits to the attention output of a model with 8 experts
_MIXTRAL_OUTPUT = "q2_k iq3_xs iq3_xxs q3_k_s q3_k_m iq4_nl q4_k_s q4_k_m iq3_s iq3_m iq4_xs"

RULES: dict[Role, tuple[Rule, ...]] = {
    Role.EMBEDDING: (
        Rule("iq1_s iq1_m iq2_xxs iq2_xs", _T.Q2_K),
        Rule("iq2_s iq2_m iq3_xxs", _T.IQ3_S),
        Rule("tq1_0 tq2_0 q2_0", _T.Q4_K),
    ),
    Role.ATTN_V: (
        Rule(TINY, _T.Q4_K, _any(_wide_gqa, lambda at: at.experts >= 4)),
        Rule("iq2_s iq2_m", _T.IQ3_S),
        Rule("iq1_s iq1_m iq2_xxs iq2_xs", _T.Q2_K),
        Rule("q2_k q2_k_s iq3_xxs iq3_xs iq3_s", _T.Q4_K, _wide_gqa),
        Rule("q2_k", _T.Q3_K),
        Rule("iq3_xxs", _T.IQ3_S, _not(_imatrix)),
        Rule("q3_k_m", _T.Q5_K, lambda at: at.i < 2),
        Rule("q3_k_m iq3_m", _T.Q4_K),
        Rule("q3_k_l", _T.Q5_K),
        Rule("iq4_nl iq4_xs", _T.Q5_K, _wide_gqa),
        Rule("q4_k_m q5_k_m", _T.Q6_K, _more_bits),
        Rule("q4_k_s", _T.Q5_K, lambda at: at.i < 4),
    ),
    Role.ATTN_K: (
        Rule(TINY, _T.Q4_K, _eight_experts),
        Rule("iq3_xs", _T.IQ3_XXS),
        Rule("iq3_xxs", _T.IQ2_S),
    ),
    Role.ATTN_Q: (
        Rule("iq3_xs", _T.IQ3_XXS),
        Rule("iq3_xxs", _T.IQ2_S),
    ),
    Role.ATTN_OUTPUT: (
        Rule(TINY, _T.Q5_K, _eight_experts),
        Rule("iq1_s iq1_m", _T.IQ2_XXS),
        Rule("iq2_s iq2_m", _T.IQ3_S),
        Rule("q3_k_l", _T.Q4_K, _falcon),
        Rule(_MIXTRAL_OUTPUT, _T.Q5_K, _all(_eight_experts, _not(_falcon))),
        Rule("q2_k", _T.Q3_K, _not(_any(_falcon, _eight_experts))),
        Rule("iq3_xxs", _T.IQ3_S, _not(_any(_falcon, _eight_experts))),
        Rule("q3_k_m iq3_m", _T.Q4_K, _not(_any(_falcon, _eight_experts))),
        Rule("q3_k_l", _T.Q5_K, _not(_any(_falcon, _eight_experts))),
    ),
    Role.FFN_DOWN: (
        Rule("iq2_s iq2_m", _T.IQ3_S, _first(8)),
        Rule("iq1_s iq1_m iq2_xxs iq2_xs", _T.Q2_K, _first(8)),
        Rule("q2_k", _T.Q3_K),
        Rule("q2_k_s", _T.Q4_K, _first(8)),
        Rule("iq3_xxs", _T.Q4_K, _all(_first(8), _not(_imatrix))),
        Rule("iq3_xxs", _T.Q3_K, _not(_imatrix)),
        Rule("q3_k_m", _T.Q5_K, _first(16)),
        Rule("q3_k_m", _T.Q4_K, _any(_not(_falcon), _more_bits)),
        Rule("iq3_m", _T.Q4_K, _any(_first(8), _all(_eight_experts, _more_bits))),
        Rule("q3_k_l", _T.Q4_K, _falcon),
        Rule("q3_k_l", _T.Q5_K),
        Rule("q4_k_m", _T.Q6_K, _all(_falcon, _first(16))),
        Rule("q4_k_m", _T.Q5_K, _all(_falcon, _more_bits)),
        Rule("q4_k_m", _T.Q6_K, _all(_not(_falcon), _more_bits)),
        Rule("q5_k_m", _T.Q6_K, _more_bits),
        Rule("q4_k_s", _T.Q5_K, _all(_not(_falcon), _first(8))),
        Rule("iq4_nl iq4_xs", _T.Q5_K, _all(_first(8), _not(_imatrix))),
        # with importances these two types can fail in the first layers
        Rule("q4_0", _T.Q4_1, _all(_imatrix, _first(8))),
        Rule("q5_0", _T.Q5_1, _all(_imatrix, _first(8))),
    ),
    Role.FFN_UP: _NARROWED_UP_GATE,
    Role.FFN_GATE: _NARROWED_UP_GATE,
}


@lru_cache(2048)
def role_of(name: str) -> Role:
    """The role of a tensor by its GGUF name."""
    if name in OUTPUT:
        return Role.OUTPUT
    if name in EMBEDDINGS:
        return Role.EMBEDDING
    return next((role for part, role in ROLE_BY_PART if part in name), Role.OTHER)
