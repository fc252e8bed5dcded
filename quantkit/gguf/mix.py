"""The type mix: the type of each tensor in a file.

llama.cpp gives more bits to the weights that lose most from quantization. The rules are from its src/llama-quant.cpp
(llama_tensor_get_type and the functions that it calls); mix_rules has them as tables. Each role of a
tensor has a list of rules. The first rule that names the file type and whose condition is true gives the type. Without
such a rule, the tensor gets the default type of the file type.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from gguf import GGMLQuantizationType

from quantkit.errors import UnsupportedError, UsageError
from quantkit.gguf.file_types import FileType, file_type
from quantkit.gguf.mix_rules import (
    AT_LEAST_Q8_0,
    EMBEDDINGS,
    FFN,
    KEPT_NAMES,
    KEPT_PARTS,
    KEPT_PARTS_BY_ARCH,
    LAYERS_OF_70B,
    NEEDS_IMATRIX,
    OUTPUT,
    RULES,
    TINY_TYPES,
    Place,
    Role,
    role_of,
)
from quantkit.gguf.row_fit import fitting_type, require_fit
from quantkit.gguf.types import block_size, tensor_type

_T = GGMLQuantizationType
_LAYER = re.compile(r"blk\.(\d+)")


@dataclass(frozen=True)
class MixTensor:
    """A tensor in llama.cpp's intermediate GGUF. `shape`: in numpy order (..., rows, cols)."""

    name: str
    shape: tuple[int, ...]
    dtype: GGMLQuantizationType


@dataclass(frozen=True)
class MixModel:
    """The model's properties that the rules use. Head counts are those of the first layer."""

    arch: str
    n_layer: int
    n_head: int
    n_head_kv: int
    n_expert: int


@dataclass(frozen=True)
class MixOptions:
    """The user's options, as in llama-quantize: --output-tensor-type, --token-embedding-type, --pure and others."""

    output_type: GGMLQuantizationType | None = None
    embedding_type: GGMLQuantizationType | None = None
    pure: bool = False
    tensor_types: tuple[tuple[str, GGMLQuantizationType], ...] = ()
    """(regular expression that is searched in the tensor's name, type); the first match wins."""
    has_imatrix: bool = False
    leave_output: bool = False


@dataclass(frozen=True)
class Choice:
    """The type of one tensor."""

    name: str
    type: GGMLQuantizationType
    fallback: bool
    """The row length does not fit the type of the rules, so this is another type."""
    requires_imatrix: bool
    """llama.cpp refuses to quantize this tensor without importances."""


def choose_types(
    model: MixModel, ftype: FileType, tensors: Sequence[MixTensor], options: MixOptions | None = None
) -> list[Choice]:
    """The type of each tensor, equal to llama_model_quantize's choice in every case that it accepts.

    `tensors` must be in llama.cpp's order (see sort_key), because some rules count tensors.

    Raises:
        UsageError: an option's type does not fit a tensor's row length (llama.cpp aborts), or a pattern is not a
            regular expression.
        UnsupportedError: the name of an expert tensor has no layer number.
    """
    options = options or MixOptions()
    mixer = _Mixer(model, ftype, tensors, options)
    choices = []
    for tensor in tensors:
        kind, fallback = mixer.choose(tensor)
        needs = kind in NEEDS_IMATRIX or (kind == _T.Q2_K and ftype.name == "q2_k_s")
        needs = needs and tensor.name not in OUTPUT | EMBEDDINGS and quantizable(model, tensor, options)
        choices.append(Choice(tensor.name, kind, fallback, needs))
    return choices


def fixed_types(
    model: MixModel, tensors: Sequence[MixTensor], options: MixOptions
) -> list[GGMLQuantizationType | None]:
    """The type of each tensor that no file type changes: llama.cpp keeps it, or an option names it. None for others.

    Raises UsageError as `choose_types` does.
    """
    mixer = _Mixer(model, file_type("q8_0"), tensors, options)
    return [mixer.named(tensor) if quantizable(model, tensor, options) else tensor.dtype for tensor in tensors]


def idle_overrides(model: MixModel, tensors: Sequence[MixTensor], options: MixOptions) -> list[str]:
    """The patterns of `options.tensor_types` that match no quantizable tensor."""
    names = [tensor.name for tensor in tensors if quantizable(model, tensor, options)]
    return [pattern for pattern, _ in options.tensor_types if not any(map(_compile(pattern).search, names))]


def sort_key(name: str) -> tuple[int, str]:
    """Sort key of llama.cpp's loader (weight_name_comparer): tensors outside layers first, then by layer and name."""
    layer = _LAYER.match(name)
    return (int(layer[1]) if layer else -1, name)


def parse_override(text: str) -> tuple[str, GGMLQuantizationType]:
    """Parse `--tensor-type REGEX=TYPE`. The pattern is lowercased, as in llama-quantize. Raises UsageError."""
    pattern, separator, kind = text.partition("=")
    if not (pattern and separator and kind):
        raise UsageError(f"--tensor-type {text!r} is not REGEX=TYPE; write it as in attn_v=q6_k")
    _compile(pattern.lower())
    return pattern.lower(), tensor_type(kind)


def quantizable(model: MixModel, tensor: MixTensor, options: MixOptions) -> bool:
    """Whether llama.cpp quantizes the tensor (tensor_allows_quantization); otherwise the tensor keeps its type."""
    name = tensor.name
    if len(_ggml_dims(tensor.shape)) < 2 or not name.endswith("weight") or name in KEPT_NAMES:
        return False
    if options.leave_output and name in OUTPUT:
        return False
    return not _is_kept(model.arch, name)


@lru_cache(2048)
def _is_kept(arch: str, name: str) -> bool:
    """Whether a part of the name keeps the tensor; every file type of a run asks for every name."""
    return any(part in name for part in KEPT_PARTS + KEPT_PARTS_BY_ARCH.get(arch, ()))


class _Mixer:
    """One pass over the tensors. It counts the tensors of each role, for rules that depend on the count."""

    def __init__(self, model: MixModel, ftype: FileType, tensors: Sequence[MixTensor], options: MixOptions) -> None:
        self.model, self.ftype, self.options = model, ftype, options
        self.overrides = [(_compile(pattern), type_) for pattern, type_ in options.tensor_types]
        self.tied = not any(tensor.name in OUTPUT for tensor in tensors)
        self.n_values = sum(role_of(tensor.name) is Role.ATTN_V for tensor in tensors)
        self.counts = dict.fromkeys(Role, 0)
        self.rules = {
            role: [rule for rule in rules if ftype.name in rule.types.split()] for role, rules in RULES.items()
        }

    def choose(self, tensor: MixTensor) -> tuple[GGMLQuantizationType, bool]:
        """The type, and whether it is a fallback for the row length (llama_tensor_get_type)."""
        role, default = role_of(tensor.name), self.ftype.tensor_type
        if not quantizable(self.model, tensor, self.options):
            return tensor.dtype, False
        of_ends = self._of_ends(tensor, role)
        if of_ends is not None:
            return of_ends, False
        if default in (_T.F32, _T.F16, _T.BF16):
            return default, False
        override = self._override(tensor)
        if override is not None:
            return fitting_type(override, tensor.name, tensor.shape[-1])
        chosen = default if self.options.pure else self._by_rules(tensor, role)
        return fitting_type(chosen, tensor.name, tensor.shape[-1])

    def named(self, tensor: MixTensor) -> GGMLQuantizationType | None:
        """The type that an option of the user gives the tensor."""
        of_ends, override = self._of_ends(tensor, role_of(tensor.name)), self._override(tensor)
        if of_ends is not None or override is None:
            return of_ends
        return fitting_type(override, tensor.name, tensor.shape[-1])[0]

    def _of_ends(self, tensor: MixTensor, role: Role) -> GGMLQuantizationType | None:
        """The type of --embedding-type or --output-type."""
        options = self.options
        per_layer = tensor.name == "per_layer_token_embd.weight" and self._override(tensor) is not None
        if options.embedding_type is not None and role is Role.EMBEDDING and not per_layer:
            return require_fit(options.embedding_type, tensor.name, tensor.shape[-1], "--embedding-type")
        if options.output_type is not None and role is Role.OUTPUT:
            return require_fit(options.output_type, tensor.name, tensor.shape[-1], "--output-type")
        return None

    def _override(self, tensor: MixTensor) -> GGMLQuantizationType | None:
        """The type of the first pattern of --tensor-type that matches."""
        return next((type_ for pattern, type_ in self.overrides if pattern.search(tensor.name)), None)

    def _by_rules(self, tensor: MixTensor, role: Role) -> GGMLQuantizationType:
        """llama_tensor_get_type_impl."""
        if any(part in tensor.name for part in AT_LEAST_Q8_0.get(self.model.arch, ())):
            return _T.Q8_0
        if role is Role.OUTPUT or (self.tied and role is Role.EMBEDDING):
            return self._output(tensor)
        if self.ftype.name == "mxfp4":
            return _T.MXFP4 if self._holds_experts(tensor, role) else _T.Q8_0
        position = self._place(tensor, role)
        self.counts[role] += 1
        chosen = next((rule.gives for rule in self.rules.get(role, ()) if rule.when(position)), self.ftype.tensor_type)
        if self.ftype.name in TINY_TYPES:
            return chosen
        if role is Role.ATTN_V and self._is_70b() and chosen in (_T.Q3_K, _T.Q4_K):
            chosen = _T.Q5_K
        return _T.Q8_0 if role in (Role.ATTN_V, Role.ATTN_K) and self.model.n_expert == 8 else chosen

    def _output(self, tensor: MixTensor) -> GGMLQuantizationType:
        """The type of the output head, or of the tied embedding."""
        default = self.ftype.tensor_type
        if self.options.output_type is not None:
            return self.options.output_type
        if self.ftype.name == "mxfp4" or self.model.arch == "falcon" or tensor.shape[-1] % block_size(default)[0]:
            return _T.Q8_0
        if self.ftype.name in TINY_TYPES | {"iq3_xxs"}:
            return _T.Q5_K
        return _T.Q8_0 if default == _T.Q8_0 else _T.Q6_K

    def _holds_experts(self, tensor: MixTensor, role: Role) -> bool:
        dims = _ggml_dims(tensor.shape)
        stacked = len(dims) > 2 and dims[-3] > 1
        # the latent attention of bailingmoe3 is stacked too
        return stacked and (self.model.arch != "bailingmoe3" or role in FFN)

    def _place(self, tensor: MixTensor, role: Role) -> Place:
        model, n, i = self.model, self.model.n_layer, self.counts[role]
        if role is Role.ATTN_V:
            n = self.n_values
        elif role in FFN and model.n_expert > 1 and self.ftype.name not in TINY_TYPES:
            # a layer may have several expert tensors, so the layer number is from the name; the tiny types still count
            i = _layer_of(tensor.name, n)
        gqa = model.n_head // model.n_head_kv if model.n_head_kv else 0
        return Place(i, n, gqa, model.n_expert, self.options.has_imatrix, model.arch == "falcon")

    def _is_70b(self) -> bool:
        model = self.model
        if LAYERS_OF_70B.get(model.arch) != model.n_layer:
            return False
        # an 80-layer Llama without GQA is the 65B; llama.cpp does not call one with 8 experts 70B
        return not model.arch.startswith("llama") or (model.n_head != model.n_head_kv and model.n_expert != 8)


def _layer_of(name: str, n_layer: int) -> int:
    layer = sort_key(name)[0]
    if not 0 <= layer < n_layer:
        raise UnsupportedError(
            f"the name of expert tensor {name} has no layer number below {n_layer}; use --pure or an f16 file type"
        )
    return layer


def _ggml_dims(shape: Iterable[int]) -> tuple[int, ...]:
    """The shape without leading ones, which ggml does not count as dimensions (ggml_n_dims)."""
    dims = tuple(shape)
    while len(dims) > 1 and dims[0] == 1:
        dims = dims[1:]
    return dims


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.ASCII)
    except re.error as error:
        raise UsageError(
            f"tensor pattern {pattern!r} is not a valid regular expression: {error}; correct it"
        ) from error
