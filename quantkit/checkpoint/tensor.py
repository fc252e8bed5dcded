"""The description of one tensor of a checkpoint, and the element types of the safetensors format."""

import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

# Bits per element: the `Dtype` enumeration of the safetensors crate, 0.8.
DTYPE_BITS: dict[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}

# The numpy type of the stored bytes, for the types that quantkit reads.
NUMPY_DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}

FLOAT8 = ("F8_E4M3", "F8_E5M2")

# The unsigned integer of each float's size, and the bits that are all set in NaN and, but for e4m3, infinity.
_NOT_FINITE: dict[str, tuple[str, int]] = {
    "F8_E4M3": ("u1", 0x7F),
    "F8_E5M2": ("u1", 0x7C),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F32": ("<u4", 0x7F800000),
    "F64": ("<u8", 0x7FF0000000000000),
}
_PIECE = 1 << 18


def all_finite(dtype: str, data: NDArray[np.uint8]) -> bool:
    """Whether no float in `data` is NaN or infinite; True for types without either. `data`: contiguous whole elements.

    The test is of bits: numpy's isfinite takes five times as long for the types of ml_dtypes.
    """
    if dtype not in _NOT_FINITE:
        return True
    kind, mask = _NOT_FINITE[dtype]
    for start in range(0, data.size, _PIECE):
        bits = data[start : start + _PIECE].view(kind)
        if (bits & bits.dtype.type(mask)).max(initial=0) == mask:
            return False
    return True


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as its file describes it, without its data."""

    name: str
    dtype: str
    """The safetensors name of the stored element type: "F32", "BF16", "F8_E4M3", ..."""
    shape: tuple[int, ...]
    file: str
    """The weight file inside the checkpoint."""
    offset: int
    """Absolute byte offset of the data in that file."""
    nbytes: int
    scale: str | None = None
    """The tensor that holds the scales of a scaled f8 tensor."""
    linear: str | None = None
    """The quantized linear that the tensor is read from, by dequantizing it to float32."""

    @property
    def n_params(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def n_rows(self) -> int:
        """Rows of the tensor seen as (prod(shape[:-1]), shape[-1]); a scalar or a vector is one row."""
        return math.prod(self.shape[:-1])

    @property
    def row_length(self) -> int:
        """Elements of one row."""
        return self.shape[-1] if self.shape else 1

    @property
    def is_quantized(self) -> bool:
        """Whether the values are dequantized as they are read."""
        return self.dtype in FLOAT8 or self.linear is not None

    @property
    def read_dtype(self) -> np.dtype:
        """The numpy type `Checkpoint.read_rows` returns: as stored, except that f8 and f64 become float32."""
        if self.dtype in FLOAT8 or self.dtype == "F64":
            return np.dtype(np.float32)
        return NUMPY_DTYPES[self.dtype]
