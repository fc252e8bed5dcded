"""The tensor type whose blocks fit the rows of a tensor, as in llama.cpp (llama-quant.cpp, tensor_type_fallback)."""

from gguf import GGMLQuantizationType

from quantkit.errors import UnsupportedError, UsageError
from quantkit.gguf.types import Q2_0, block_size

_T = GGMLQuantizationType
# the type to use when rows are not whole blocks of the type on the left
_FALLBACK = {
    **dict.fromkeys((_T.IQ1_S, _T.IQ1_M, _T.IQ2_XXS, _T.IQ2_XS, _T.IQ2_S, _T.IQ3_XXS, _T.IQ3_S, _T.IQ4_XS), _T.IQ4_NL),
    **dict.fromkeys((Q2_0, _T.Q2_K, _T.Q3_K, _T.TQ1_0, _T.TQ2_0), _T.Q4_0),
    _T.Q4_K: _T.Q5_0,
    _T.Q5_K: _T.Q5_1,
    _T.Q6_K: _T.Q8_0,
}


def fitting_type(kind: GGMLQuantizationType, name: str, cols: int) -> tuple[GGMLQuantizationType, bool]:
    """`kind`, or the nearest type whose blocks fit rows of `cols` values; and whether the type differs from `kind`.

    Raises UnsupportedError for a type of long blocks that has no nearest type.
    """
    if cols % block_size(kind)[0] == 0:
        return kind, False
    smaller = _FALLBACK.get(kind, kind)
    if smaller == kind and block_size(kind)[0] > 32:
        raise UnsupportedError(
            f"rows of {name} have {cols} values, not a multiple of {block_size(kind)[0]}; llama.cpp has no"
            f" fallback for {kind.name.lower()}, so give the tensor another type with --tensor-type"
        )
    return (smaller if cols % block_size(smaller)[0] == 0 else _T.F16), True


def require_fit(kind: GGMLQuantizationType, name: str, cols: int, option: str) -> GGMLQuantizationType:
    """`kind`. Raises UsageError if its blocks do not fit rows of `cols` values."""
    block = block_size(kind)[0]
    if cols % block:
        raise UsageError(
            f"{option} {kind.name.lower()} needs rows of a multiple of {block}, but rows of {name} have {cols};"
            " choose q8_0 or f16"
        )
    return kind
