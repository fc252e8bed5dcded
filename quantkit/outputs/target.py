"""A GGUF of a given size: which types each tensor may have, how many bytes they may take, the name of the file.

`conversion/type_choice.py` chooses the types after the calibration. Until then the plan has types of
about the same number of bits for every tensor.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from gguf import GGMLQuantizationType

from quantkit.errors import MissingExtraError, UsageError
from quantkit.gguf.file_types import FileType, file_type
from quantkit.gguf.kernels import require, requires_imatrix
from quantkit.gguf.layout import padded, tensor_bytes
from quantkit.gguf.mix import Choice, MixModel, MixOptions, MixTensor, fixed_types
from quantkit.gguf.mix_rules import EMBEDDINGS, NEEDS_IMATRIX, OUTPUT
from quantkit.gguf.types import block_size
from quantkit.quant.budget import choose_within
from quantkit.units import human_bytes, size_argument

_T = GGMLQuantizationType
_FLOATS = (_T.F32, _T.F16, _T.BF16)
_OF_256 = (_T.Q6_K, _T.Q5_K, _T.Q4_K, _T.IQ4_XS, _T.Q3_K, _T.IQ3_S, _T.IQ3_XXS, _T.Q2_K)
_OF_256_WEIGHTED = (_T.IQ2_S, _T.IQ2_XS, _T.IQ2_XXS)
_OF_32 = (_T.Q8_0, _T.Q5_1, _T.Q5_0, _T.Q4_1, _T.Q4_0, _T.IQ4_NL)


@dataclass(frozen=True)
class Target:
    """The size to stay below: `size` bytes of the whole file, or `bits` for each weight. One of them is given.

    `types`: tensor name -> type, once the calibration has chosen them.
    """

    size: int | None = None
    bits: float | None = None
    types: Mapping[str, GGMLQuantizationType] | None = None

    def __post_init__(self) -> None:
        if (self.size is None) == (self.bits is None):
            raise UsageError("a target is a size or bits per weight; give one of --target-size and --target-bpw")
        if self.bits is not None and not 0 < self.bits <= 32:
            raise UsageError(f"--target-bpw {self.bits:g} is not between 0 and 32 bits; give a number such as 4.5")

    def tensor_budget(self, overhead: int, n_elements: int) -> int:
        """Bytes that all tensors may take. `overhead`: bytes of the file outside its tensors."""
        return int(self.bits * n_elements / 8) if self.bits is not None else int(self.size or 0) - overhead

    def file_type(self, overhead: int, n_elements: int) -> FileType:
        """The type of the file, named after its bits for each weight ("4.50bpw")."""
        # a larger file would not be better than f16
        bits = min(16.0, 8 * self.tensor_budget(overhead, n_elements) / n_elements)
        return FileType(f"{bits:.2f}bpw", file_type("q4_k_m").ftype, "Q4_K", bits, "types chosen for the size")


@dataclass(frozen=True)
class Candidates:
    """The types that one tensor may have, and the bytes that it then takes in the file."""

    tensor: MixTensor
    types: tuple[GGMLQuantizationType, ...]
    bytes: tuple[int, ...]


def candidates(
    model: MixModel, tensors: Sequence[MixTensor], options: MixOptions, weighted: frozenset[str], least: float = 0.0
) -> list[Candidates]:
    """For each tensor the types that fit its rows and the options of the user.

    A tensor has a single type in three cases: llama.cpp keeps it, its source is quantized already, or an option names
    its type. `weighted`: the tensors with importances; the other ones get no type that needs them.
    `least`: types of fewer bits per weight are left out where a tensor has a larger one.
    """
    result = []
    for tensor, fixed in zip(tensors, fixed_types(model, tensors, options), strict=True):
        fixed_type = tensor.dtype if fixed is None and tensor.dtype not in _FLOATS else fixed
        kinds = (fixed_type,) if fixed_type is not None else _fitting(tensor, weighted=tensor.name in weighted)
        kinds = tuple(kind for kind in kinds if _bits(kind) >= least) or kinds
        sizes = tuple(padded(tensor_bytes(kind, tensor.shape)) for kind in kinds)
        result.append(Candidates(tensor, kinds, sizes))
    return result


def _fitting(tensor: MixTensor, *, weighted: bool) -> tuple[GGMLQuantizationType, ...]:
    ends = tensor.name in EMBEDDINGS | OUTPUT
    kinds = [_T.F16, *_OF_32]
    if tensor.shape[-1] % 256 == 0:
        kinds += [*_OF_256, *(_OF_256_WEIGHTED if weighted and not ends else ())]
    return tuple(
        kind
        for kind in kinds
        if tensor.shape[-1] % block_size(kind)[0] == 0
        and _available(kind, weighted=weighted)
        and (weighted or not (requires_imatrix(kind) or kind in NEEDS_IMATRIX))
    )


def _bits(kind: GGMLQuantizationType) -> float:
    elements, n_bytes = block_size(kind)
    return 8 * n_bytes / elements


def _available(kind: GGMLQuantizationType, *, weighted: bool) -> bool:
    try:
        require(kind, weighted=weighted)
    except MissingExtraError:
        return False
    return True


def even_types(target: Target, options: Sequence[Candidates], overhead: int) -> dict[str, GGMLQuantizationType]:
    """Types of about the same number of bits for all tensors, within the target.

    overhead: bytes of the file outside its tensors.

    Raises UsageError, with the smallest target that works, when no types fit.
    """
    _require_possible(target, options, overhead)
    sizes = [np.array(option.bytes, np.int64) for option in options]
    costs = []
    for option in options:
        count = float(np.prod(option.tensor.shape))
        # the error of a rounded weight falls by 6 dB for each bit
        costs.append(np.array([count * 4.0 ** (-8 * size / count) for size in option.bytes]))
    budget = target.tensor_budget(overhead, sum(int(np.prod(option.tensor.shape)) for option in options))
    chosen = choose_within(sizes, costs, budget)
    return {option.tensor.name: option.types[index] for option, index in zip(options, chosen, strict=True)}


def _require_possible(target: Target, options: Sequence[Candidates], overhead: int) -> None:
    n_elements = sum(int(np.prod(option.tensor.shape)) for option in options)
    smallest = sum(min(option.bytes) for option in options)
    if smallest <= target.tensor_budget(overhead, n_elements):
        return
    size, bits = smallest + overhead, 8 * smallest / n_elements
    # rounded up, so that what the sentence names works
    least_size, least_bits = size_argument(size, up=True), f"{math.ceil(100 * bits + 1e-6) / 100:.2f}"
    if target.bits is not None:
        given, least, other = f"{target.bits:g} bits per weight", f"--target-bpw {least_bits}", human_bytes(size)
    else:
        given, least = human_bytes(target.size or 0), f"--target-size {least_size}"
        other = f"{least_bits} bits per weight"
    raise UsageError(
        f"a file of {given} is too small; the smallest that works with this source and these options is"
        f" {least} ({other})"
    )


def target_choices(options: Sequence[Candidates], types: Mapping[str, GGMLQuantizationType]) -> list[Choice]:
    """The types as the mix of a file. Raises ValueError for a type that a tensor may not have."""
    for option in options:
        if types[option.tensor.name] not in option.types:
            raise ValueError(f"{option.tensor.name} may not be {types[option.tensor.name].name}")
    return [Choice(o.tensor.name, types[o.tensor.name], False, types[o.tensor.name] in NEEDS_IMATRIX) for o in options]


def labelled(kind: FileType, chosen: Sequence[Choice], tensors: Sequence[MixTensor]) -> FileType:
    """`kind` with the number and default type of the type that most weights have, as llama.cpp's loader guesses it."""
    weights: dict[GGMLQuantizationType, int] = {}
    for choice, tensor in zip(chosen, tensors, strict=True):
        weights[choice.type] = weights.get(choice.type, 0) + int(np.prod(tensor.shape))
    most = max(weights, key=lambda type_: weights[type_]).name.lower()
    nearest = file_type(most)
    return replace(kind, ftype=nearest.ftype, default=nearest.default)
