"""The tensor types of GGUF files, and the sizes of their blocks and rows.

Names and numbers are from ggml (`enum ggml_type`).
"""

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from quantkit.errors import UsageError
from quantkit.gguf.file_types import unknown_name

_T = GGMLQuantizationType


def _registered(name: str, number: int, elements: int, n_bytes: int) -> GGMLQuantizationType:
    """The type of this name, which ggml has; a gguf package that does not have it yet receives it.

    number: in `enum ggml_type`. elements, n_bytes: of one block.
    """
    if name not in _T.__members__:
        kind = int.__new__(_T, number)
        kind._name_, kind._value_ = name, number
        _T._member_map_[name] = _T._value2member_map_[number] = kind
        _T._member_names_.append(name)
        GGML_QUANT_SIZES[kind] = (elements, n_bytes)
    return _T[name]


# block_q2_0 in ggml-common.h: a float16 scale and 64 levels of 2 bits
Q2_0 = _registered("Q2_0", 42, 64, 18)

TENSOR_TYPES: dict[str, GGMLQuantizationType] = {
    kind.name.lower(): kind
    for kind in (
        *(_T.F32, _T.F16, _T.BF16, _T.Q8_0, _T.Q6_K, _T.Q5_K, _T.Q5_1, _T.Q5_0, _T.Q4_K, _T.Q4_1, _T.Q4_0),
        *(_T.IQ4_NL, _T.IQ4_XS, _T.MXFP4, _T.Q3_K, _T.IQ3_S, _T.IQ3_XXS, _T.Q2_K, _T.IQ2_S, _T.IQ2_XS, _T.IQ2_XXS),
        *(_T.NVFP4, _T.TQ2_0, Q2_0, _T.TQ1_0, _T.IQ1_M, _T.IQ1_S, _T.Q1_0),
    )
}


def tensor_type(name: str) -> GGMLQuantizationType:
    """The tensor type `name` ("q6_k", "f16"), in any case. Raises UsageError for an unknown name."""
    key = name.strip().lower()
    if key not in TENSOR_TYPES:
        raise UsageError(
            unknown_name("tensor type", name, key, TENSOR_TYPES) + "; pass a type of ggml such as q4_0, q4_k or q8_0"
        )
    return TENSOR_TYPES[key]


def block_size(kind: GGMLQuantizationType) -> tuple[int, int]:
    """Elements and bytes of one block of `kind`; (1, 4) for F32."""
    elements, n_bytes = GGML_QUANT_SIZES[kind]
    return elements, n_bytes


def row_bytes(kind: GGMLQuantizationType, n_per_row: int) -> int:
    """Bytes of a row of `n_per_row` elements (ggml_row_size). Raises ValueError when the row is not whole blocks."""
    elements, n_bytes = block_size(kind)
    if n_per_row % elements:
        raise ValueError(f"a row of {n_per_row} elements is not whole blocks of {elements} ({kind.name})")
    return n_per_row // elements * n_bytes
