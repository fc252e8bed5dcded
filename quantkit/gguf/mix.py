"""The type mix: which type each tensor of a file gets.

llama.cpp gives the weights that suffer most from quantization more bits than the rest. The rules are those of its
src/llama-quant.cpp (llama_tensor_get_type and the functions it calls), here as tables: for each kind of tensor the
first rule that names the file type and holds wins, and without one the tensor gets the file type's default.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from gguf import GGMLQuantizationType

from quantkit.errors import UnsupportedError, UsageError
from quantkit.gguf.types import FileType, block_size, tensor_type

_T = GGMLQuantizationType


@dataclass(frozen=True)
class MixTensor:
    """A tensor as it stands in llama.cpp's intermediate GGUF: shape in numpy order (..., rows, cols)."""

    name: str
    shape: tuple[int, ...]
    dtype: GGMLQuantizationType


@dataclass(frozen=True)
class MixModel:
    """What the rules look at besides the tensors; head counts are those of the first layer."""

    arch: str
    n_layer: int
    n_head: int
    n_head_kv: int
    n_expert: int


@dataclass(frozen=True)
class MixOptions:
    """What the user asked for: llama-quantize's --output-tensor-type, --token-embedding-type, --pure..."""

    output_type: GGMLQuantizationType | None = None
    embedding_type: GGMLQuantizationType | None = None
    pure: bool = False
    tensor_types: tuple[tuple[str, GGMLQuantizationType], ...] = ()
    """(regular expression searched in the tensor's name, type); the first that matches wins."""
    has_imatrix: bool = False
    leave_output: bool = False


@dataclass(frozen=True)
class Choice:
    """The type of one tensor."""

    name: str
    type: GGMLQuantizationType
    fallback: bool
    """The row length forced another type than the rules gave."""
    requires_imatrix: bool
    """llama.cpp refuses to make this tensor without importances."""


def choose_types(
    model: MixModel, ftype: FileType, tensors: Sequence[MixTensor], options: MixOptions | None = None
) -> list[Choice]:
    """The type of each tensor, in the order given, which must be llama.cpp's (see sort_key): some rules count.

    Equal to llama_model_quantize's choice in every case it accepts. Raises UsageError when an asked type does not fit
    a tensor's row length (llama.cpp aborts there) or a pattern is not a regular expression, UnsupportedError when an
    expert tensor's name does not say its layer.
    """
    options = options or MixOptions()
    mixer = _Mixer(model, ftype, tensors, options)
    choices = []
    for tensor in tensors:
        kind, fallback = mixer.choose(tensor)
        needs = kind in _NEEDS_IMATRIX or (kind == _T.Q2_K and ftype.name == "q2_k_s")
        needs = needs and tensor.name not in _OUTPUT | _EMBEDDINGS and quantizable(model, tensor, options)
        choices.append(Choice(tensor.name, kind, fallback, needs))
    return choices


def sort_key(name: str) -> tuple[int, str]:
    """Orders tensors as llama.cpp's loader does (weight_name_comparer): outside the layers first, then layer, name."""
    layer = _LAYER.match(name)
    return (int(layer[1]) if layer else -1, name)


def parse_override(text: str) -> tuple[str, GGMLQuantizationType]:
    """`--tensor-type REGEX=TYPE` taken apart; the pattern is lowercased as llama-quantize does. Raises UsageError."""
    pattern, separator, kind = text.partition("=")
    if not (pattern and separator and kind):
        raise UsageError(f"--tensor-type wants REGEX=TYPE, as in attn_v=q6_k, not {text!r}.")
    _compile(pattern.lower())
    return pattern.lower(), tensor_type(kind)


def quantizable(model: MixModel, tensor: MixTensor, options: MixOptions) -> bool:
    """Whether llama.cpp touches the tensor at all (tensor_allows_quantization); otherwise it keeps its type."""
    name = tensor.name
    if len(_ggml_dims(tensor.shape)) < 2 or not name.endswith("weight") or name in _KEPT_NAMES:
        return False
    if options.leave_output and name in _OUTPUT:
        return False
    kept = _KEPT_PARTS + _KEPT_PARTS_BY_ARCH.get(model.arch, ())
    return not any(part in name for part in kept)


class _Kind(Enum):
    """What a tensor is, as far as the rules care."""

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


_FFN = frozenset({_Kind.FFN_UP, _Kind.FFN_GATE, _Kind.FFN_DOWN})
_OUTPUT = frozenset({"output.weight"})
_EMBEDDINGS = frozenset({"token_embd.weight", "per_layer_token_embd.weight"})

# the first part found in the name decides; fused and latent projections count as values, the most sensitive of them
_KIND_BY_PART = (
    ("attn_qkv.weight", _Kind.ATTN_V),
    ("attn_kv_b.weight", _Kind.ATTN_V),
    ("attn_v.weight", _Kind.ATTN_V),
    ("attn_k.weight", _Kind.ATTN_K),
    ("attn_q.weight", _Kind.ATTN_Q),
    ("attn_output.weight", _Kind.ATTN_OUTPUT),
    ("ffn_up", _Kind.FFN_UP),
    ("ffn_gate", _Kind.FFN_GATE),
    ("ffn_down", _Kind.FFN_DOWN),
)

# never quantized: norms, routers, positions, small recurrent weights, vision and audio parts
_KEPT_NAMES = frozenset({"position_embd.weight", "token_types.weight"})
_KEPT_PARTS = (
    *("_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj"),
    *("ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "attn_rel_b.weight"),
    *(f"time_mix_{part}.weight" for part in ("first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2")),
    *(f"time_mix_{part}.weight" for part in ("g1", "g2", "decay_w1", "decay_w2", "lerp_fused")),
    *(".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger"),
    *("a.rvq.codebook", "mm.a.code_embd"),
)
_KEPT_PARTS_BY_ARCH = {
    "glm5-next": (
        *("hc_", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj"),
        *("indexer_compressor_gate", "indexer_compressor_ape", "ssm_f_a.weight", "ssm_f_b.weight", "ssm_g_a.weight"),
        *("ssm_g_b.weight", "ssm_beta.weight", "attn_kv_a_mqa.weight", "attn_k_b.weight", "attn_v_b.weight"),
    )
}
_AT_LEAST_Q8_0 = {"glm5-next": ("attn_q_a", "attn_q_b", "nextn.eh_proj")}

# the layer counts that llama.cpp calls "70B": their values are small next to the rest, so more bits cost little
_70B_LAYERS = {"llama": 80, "llama-embed": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}

_NEEDS_IMATRIX = frozenset({_T.IQ3_XXS, _T.IQ2_XXS, _T.IQ2_XS, _T.IQ2_S, _T.IQ1_M, _T.IQ1_S})

# when the row length is not whole blocks of the type on the left
_FALLBACK = {
    **dict.fromkeys((_T.IQ1_S, _T.IQ1_M, _T.IQ2_XXS, _T.IQ2_XS, _T.IQ2_S, _T.IQ3_XXS, _T.IQ3_S, _T.IQ4_XS), _T.IQ4_NL),
    **dict.fromkeys((_T.Q2_K, _T.Q3_K, _T.TQ1_0, _T.TQ2_0), _T.Q4_0),
    _T.Q4_K: _T.Q5_0,
    _T.Q5_K: _T.Q5_1,
    _T.Q6_K: _T.Q8_0,
}

_TINY = "iq1_s iq1_m iq2_xxs iq2_xs iq2_s iq2_m"
_LAYER = re.compile(r"blk\.(\d+)")


@dataclass(frozen=True)
class _Place:
    """The tensor being decided: the i-th of n of its kind, in a model with these traits."""

    i: int
    n: int
    gqa: int
    experts: int
    imatrix: bool
    falcon: bool


_Condition = Callable[[_Place], bool]


def _always(_: _Place) -> bool:
    return True


def _first(part: int) -> _Condition:
    return lambda at: at.i < at.n // part


def _more_bits(at: _Place) -> bool:
    """The first and the last eighth of the layers, and every third between them."""
    return at.i < at.n // 8 or at.i >= 7 * at.n // 8 or (at.i - at.n // 8) % 3 == 2


def _wide_gqa(at: _Place) -> bool:
    """Four or more query heads share a value head, so its tensor is small."""
    return at.gqa >= 4


def _eight_experts(at: _Place) -> bool:
    """Mixtral: the attention is small next to the experts."""
    return at.experts == 8


def _all(*conditions: _Condition) -> _Condition:
    return lambda at: all(condition(at) for condition in conditions)


def _any(*conditions: _Condition) -> _Condition:
    return lambda at: any(condition(at) for condition in conditions)


def _not(condition: _Condition) -> _Condition:
    return lambda at: not condition(at)


def _falcon(at: _Place) -> bool:
    return at.falcon


def _imatrix(at: _Place) -> bool:
    return at.imatrix


@dataclass(frozen=True)
class _Rule:
    """For these file types (names with blanks between), when it holds, the tensor gets `gives`."""

    types: str
    gives: GGMLQuantizationType
    when: _Condition = _always


_MIDDLE = _all(_not(_first(8)), lambda at: at.i < 7 * at.n // 8)
_NARROWED_UP_GATE = (_Rule("iq3_xs", _T.IQ3_XXS, _MIDDLE),)
# with 8 experts these file types give the attention's output more bits, and no other does
_MIXTRAL_OUTPUT = "q2_k iq3_xs iq3_xxs q3_k_s q3_k_m iq4_nl q4_k_s q4_k_m iq3_s iq3_m iq4_xs"

_RULES: dict[_Kind, tuple[_Rule, ...]] = {
    _Kind.EMBEDDING: (
        _Rule("iq1_s iq1_m iq2_xxs iq2_xs", _T.Q2_K),
        _Rule("iq2_s iq2_m iq3_xxs", _T.IQ3_S),
        _Rule("tq1_0 tq2_0", _T.Q4_K),
    ),
    _Kind.ATTN_V: (
        _Rule(_TINY, _T.Q4_K, _any(_wide_gqa, lambda at: at.experts >= 4)),
        _Rule("iq2_s iq2_m", _T.IQ3_S),
        _Rule("iq1_s iq1_m iq2_xxs iq2_xs", _T.Q2_K),
        _Rule("q2_k q2_k_s iq3_xxs iq3_xs iq3_s", _T.Q4_K, _wide_gqa),
        _Rule("q2_k", _T.Q3_K),
        _Rule("iq3_xxs", _T.IQ3_S, _not(_imatrix)),
        _Rule("q3_k_m", _T.Q5_K, lambda at: at.i < 2),
        _Rule("q3_k_m iq3_m", _T.Q4_K),
        _Rule("q3_k_l", _T.Q5_K),
        _Rule("iq4_nl iq4_xs", _T.Q5_K, _wide_gqa),
        _Rule("q4_k_m q5_k_m", _T.Q6_K, _more_bits),
        _Rule("q4_k_s", _T.Q5_K, lambda at: at.i < 4),
    ),
    _Kind.ATTN_K: (
        _Rule(_TINY, _T.Q4_K, _eight_experts),
        _Rule("iq3_xs", _T.IQ3_XXS),
        _Rule("iq3_xxs", _T.IQ2_S),
    ),
    _Kind.ATTN_Q: (
        _Rule("iq3_xs", _T.IQ3_XXS),
        _Rule("iq3_xxs", _T.IQ2_S),
    ),
    _Kind.ATTN_OUTPUT: (
        _Rule(_TINY, _T.Q5_K, _eight_experts),
        _Rule("iq1_s iq1_m", _T.IQ2_XXS),
        _Rule("iq2_s iq2_m", _T.IQ3_S),
        _Rule("q3_k_l", _T.Q4_K, _falcon),
        _Rule(_MIXTRAL_OUTPUT, _T.Q5_K, _all(_eight_experts, _not(_falcon))),
        _Rule("q2_k", _T.Q3_K, _not(_any(_falcon, _eight_experts))),
        _Rule("iq3_xxs", _T.IQ3_S, _not(_any(_falcon, _eight_experts))),
        _Rule("q3_k_m iq3_m", _T.Q4_K, _not(_any(_falcon, _eight_experts))),
        _Rule("q3_k_l", _T.Q5_K, _not(_any(_falcon, _eight_experts))),
    ),
    _Kind.FFN_DOWN: (
        _Rule("iq2_s iq2_m", _T.IQ3_S, _first(8)),
        _Rule("iq1_s iq1_m iq2_xxs iq2_xs", _T.Q2_K, _first(8)),
        _Rule("q2_k", _T.Q3_K),
        _Rule("q2_k_s", _T.Q4_K, _first(8)),
        _Rule("iq3_xxs", _T.Q4_K, _all(_first(8), _not(_imatrix))),
        _Rule("iq3_xxs", _T.Q3_K, _not(_imatrix)),
        _Rule("q3_k_m", _T.Q5_K, _first(16)),
        _Rule("q3_k_m", _T.Q4_K, _any(_not(_falcon), _more_bits)),
        _Rule("iq3_m", _T.Q4_K, _any(_first(8), _all(_eight_experts, _more_bits))),
        _Rule("q3_k_l", _T.Q4_K, _falcon),
        _Rule("q3_k_l", _T.Q5_K),
        _Rule("q4_k_m", _T.Q6_K, _all(_falcon, _first(16))),
        _Rule("q4_k_m", _T.Q5_K, _all(_falcon, _more_bits)),
        _Rule("q4_k_m", _T.Q6_K, _all(_not(_falcon), _more_bits)),
        _Rule("q5_k_m", _T.Q6_K, _more_bits),
        _Rule("q4_k_s", _T.Q5_K, _all(_not(_falcon), _first(8))),
        _Rule("iq4_nl iq4_xs", _T.Q5_K, _all(_first(8), _not(_imatrix))),
        # with importances these two can go wrong in the first layers
        _Rule("q4_0", _T.Q4_1, _all(_imatrix, _first(8))),
        _Rule("q5_0", _T.Q5_1, _all(_imatrix, _first(8))),
    ),
    _Kind.FFN_UP: _NARROWED_UP_GATE,
    _Kind.FFN_GATE: _NARROWED_UP_GATE,
}


class _Mixer:
    """One pass over the tensors: rules that speak of the i-th tensor of a kind count those they have seen."""

    def __init__(self, model: MixModel, ftype: FileType, tensors: Sequence[MixTensor], options: MixOptions) -> None:
        self.model, self.ftype, self.options = model, ftype, options
        self.overrides = [(_compile(pattern), kind) for pattern, kind in options.tensor_types]
        self.tied = not any(tensor.name in _OUTPUT for tensor in tensors)
        self.n_values = sum(_kind(tensor.name) is _Kind.ATTN_V for tensor in tensors)
        self.seen = dict.fromkeys(_Kind, 0)
        self.rules = {
            kind: [rule for rule in rules if ftype.name in rule.types.split()] for kind, rules in _RULES.items()
        }

    def choose(self, tensor: MixTensor) -> tuple[GGMLQuantizationType, bool]:
        """The type, and whether the row length forced another than the rules gave (llama_tensor_get_type)."""
        options, kind = self.options, _kind(tensor.name)
        if not quantizable(self.model, tensor, options):
            return tensor.dtype, False
        override = next((type_ for pattern, type_ in self.overrides if pattern.search(tensor.name)), None)
        per_layer = tensor.name == "per_layer_token_embd.weight"
        if options.embedding_type is not None and kind is _Kind.EMBEDDING and not (per_layer and override is not None):
            return _fitting(options.embedding_type, tensor, "--embedding-type"), False
        if options.output_type is not None and kind is _Kind.OUTPUT:
            return _fitting(options.output_type, tensor, "--output-type"), False
        default = self.ftype.tensor_type
        if default in (_T.F32, _T.F16, _T.BF16):
            return default, False
        if override is not None:
            return _fallback(override, tensor)
        return _fallback(default if options.pure else self._by_rules(tensor, kind), tensor)

    def _by_rules(self, tensor: MixTensor, kind: _Kind) -> GGMLQuantizationType:
        """llama_tensor_get_type_impl."""
        if any(part in tensor.name for part in _AT_LEAST_Q8_0.get(self.model.arch, ())):
            return _T.Q8_0
        if kind is _Kind.OUTPUT or (self.tied and kind is _Kind.EMBEDDING):
            return self._output(tensor)
        if self.ftype.name == "mxfp4":
            return _T.MXFP4 if self._holds_experts(tensor, kind) else _T.Q8_0
        place = self._place(tensor, kind)
        self.seen[kind] += 1
        chosen = next((rule.gives for rule in self.rules.get(kind, ()) if rule.when(place)), self.ftype.tensor_type)
        if self.ftype.name in _TINY.split():
            return chosen
        if kind is _Kind.ATTN_V and self._is_70b() and chosen in (_T.Q3_K, _T.Q4_K):
            chosen = _T.Q5_K
        return _T.Q8_0 if kind in (_Kind.ATTN_V, _Kind.ATTN_K) and self.model.n_expert == 8 else chosen

    def _output(self, tensor: MixTensor) -> GGMLQuantizationType:
        """The head, or the embedding that serves as one."""
        default = self.ftype.tensor_type
        if self.options.output_type is not None:
            return self.options.output_type
        if self.ftype.name == "mxfp4" or self.model.arch == "falcon" or tensor.shape[-1] % block_size(default)[0]:
            return _T.Q8_0
        if self.ftype.name in (*_TINY.split(), "iq3_xxs"):
            return _T.Q5_K
        return _T.Q8_0 if default == _T.Q8_0 else _T.Q6_K

    def _holds_experts(self, tensor: MixTensor, kind: _Kind) -> bool:
        dims = _ggml_dims(tensor.shape)
        stacked = len(dims) > 2 and dims[-3] > 1
        # this architecture's latent attention is stacked too
        return stacked and (self.model.arch != "bailingmoe3" or kind in _FFN)

    def _place(self, tensor: MixTensor, kind: _Kind) -> _Place:
        model, n, i = self.model, self.model.n_layer, self.seen[kind]
        if kind is _Kind.ATTN_V:
            n = self.n_values
        elif kind in _FFN and model.n_expert > 1 and self.ftype.name not in _TINY.split():
            # experts' tensors may be several per layer, so the name says which; the tiny types count all the same
            i = _layer_of(tensor.name, n)
        gqa = model.n_head // model.n_head_kv if model.n_head_kv else 0
        return _Place(i, n, gqa, model.n_expert, self.options.has_imatrix, model.arch == "falcon")

    def _is_70b(self) -> bool:
        model = self.model
        if _70B_LAYERS.get(model.arch) != model.n_layer:
            return False
        # an 80-layer Llama without shared values is the 65B, and with 8 experts it has no such name
        return not model.arch.startswith("llama") or (model.n_head != model.n_head_kv and model.n_expert != 8)


def _kind(name: str) -> _Kind:
    if name in _OUTPUT:
        return _Kind.OUTPUT
    if name in _EMBEDDINGS:
        return _Kind.EMBEDDING
    return next((kind for part, kind in _KIND_BY_PART if part in name), _Kind.OTHER)


def _layer_of(name: str, n_layer: int) -> int:
    layer = sort_key(name)[0]
    if not 0 <= layer < n_layer:
        raise UnsupportedError(f"The name of the expert tensor {name} gives no layer below the model's {n_layer}.")
    return layer


def _ggml_dims(shape: Iterable[int]) -> tuple[int, ...]:
    """The shape without leading ones: ggml does not count them as dimensions (ggml_n_dims)."""
    dims = tuple(shape)
    while len(dims) > 1 and dims[0] == 1:
        dims = dims[1:]
    return dims


def _fallback(kind: GGMLQuantizationType, tensor: MixTensor) -> tuple[GGMLQuantizationType, bool]:
    """`kind`, or the nearest type whose blocks fit the rows of `tensor`, and whether it is another."""
    cols = tensor.shape[-1]
    if cols % block_size(kind)[0] == 0:
        return kind, False
    smaller = _FALLBACK.get(kind, kind)
    return (smaller if cols % block_size(smaller)[0] == 0 else _T.F16), True


def _fitting(kind: GGMLQuantizationType, tensor: MixTensor, option: str) -> GGMLQuantizationType:
    cols, block = tensor.shape[-1], block_size(kind)[0]
    if cols % block:
        raise UsageError(
            f"{option} {kind.name.lower()} needs rows of whole {block}s, but those of {tensor.name} are {cols} long; "
            "choose q8_0 or f16."
        )
    return kind


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.ASCII)
    except re.error as error:
        raise UsageError(f"The tensor pattern {pattern!r} is not a regular expression: {error}.") from error
