"""The file types of `-t`, as plain data. The module does not import numpy or the gguf package.

Names and numbers are from llama.cpp: `enum llama_ftype` and llama_ftype_get_default_type (src/llama-quant.cpp). The
bits per weight are from tools/quantize.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantkit.errors import UsageError

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType


@dataclass(frozen=True)
class FileType:
    """A file type of `-t`: a mix of tensor types with a default type."""

    name: str
    """The name on the command line: "q4_k_m"."""
    ftype: int
    """llama.cpp's number, stored as general.file_type."""
    default: str
    """Name of the tensor type of most weights (llama_ftype_get_default_type)."""
    bits: float
    """Bits per weight of Llama 3 8B in this type (MXFP4: of the experts), for help texts."""
    summary: str
    needs_imatrix: bool = False
    """llama.cpp refuses the type without an importance matrix, unless the shapes force other types everywhere."""

    @property
    def label(self) -> str:
        """The suffix of a file name: "Q4_K_M"."""
        return self.name.upper()

    @property
    def uses_importances(self) -> bool:
        """Whether an importance matrix changes the tensors of a file of this type."""
        # MXFP4's other tensors are Q8_0
        return self.default not in ("F32", "F16", "BF16", "Q8_0", "MXFP4")

    @property
    def tensor_type(self) -> "GGMLQuantizationType":
        """The tensor type of most weights."""
        from quantkit.gguf.types import TENSOR_TYPES

        return TENSOR_TYPES[self.default.lower()]


def _by_name(*types: FileType) -> dict[str, FileType]:
    return {kind.name: kind for kind in types}


FILE_TYPES: dict[str, FileType] = _by_name(
    FileType("f32", 0, "F32", 32.0, "unquantized, twice the size of any checkpoint"),
    FileType("f16", 1, "F16", 16.0, "unquantized, half precision"),
    FileType("bf16", 32, "BF16", 16.0, "unquantized, as most checkpoints are"),
    FileType("q8_0", 7, "Q8_0", 8.5, "nearly lossless"),
    FileType("q6_k", 18, "Q6_K", 6.6, "very close to lossless"),
    FileType("q5_k_m", 17, "Q5_K", 5.7, "small loss"),
    FileType("q5_k_s", 16, "Q5_K", 5.6, "small loss, a little smaller"),
    FileType("q5_1", 9, "Q5_1", 6.0, "legacy; q5_k_m is better"),
    FileType("q5_0", 8, "Q5_0", 5.6, "legacy; q5_k_s is better"),
    FileType("q4_k_m", 15, "Q4_K", 4.9, "the usual choice"),
    FileType("q4_k_s", 14, "Q4_K", 4.7, "the usual choice, a little smaller"),
    FileType("q4_1", 3, "Q4_1", 5.1, "legacy; q4_k_m is better"),
    FileType("q4_0", 2, "Q4_0", 4.6, "fast on phones and ARM"),
    FileType("iq4_nl", 25, "IQ4_NL", 4.7, "non-linear 4 bit, any row length"),
    FileType("iq4_xs", 30, "IQ4_XS", 4.5, "non-linear 4 bit, smaller than q4_k_s"),
    FileType("q3_k_l", 13, "Q3_K", 4.3, "3 bit, large mix"),
    FileType("q3_k_m", 12, "Q3_K", 4.0, "3 bit, medium mix"),
    FileType("q3_k_s", 11, "Q3_K", 3.6, "3 bit, small mix"),
    FileType("iq3_m", 27, "IQ3_S", 3.8, "3 bit, better than q3_k_s"),
    FileType("iq3_s", 26, "IQ3_S", 3.7, "3 bit, smaller"),
    FileType("iq3_xs", 22, "IQ3_S", 3.5, "3 bit, smaller still", needs_imatrix=True),
    FileType("iq3_xxs", 23, "IQ3_XXS", 3.3, "3 bit, smallest", needs_imatrix=True),
    FileType("q2_k", 10, "Q2_K", 3.2, "2 bit, strong loss"),
    FileType("q2_k_s", 21, "Q2_K", 3.0, "2 bit, smaller", needs_imatrix=True),
    FileType("iq2_m", 29, "IQ2_S", 2.9, "2 bit, better than q2_k_s", needs_imatrix=True),
    FileType("iq2_s", 28, "IQ2_XS", 2.7, "2 bit", needs_imatrix=True),
    FileType("iq2_xs", 20, "IQ2_XS", 2.6, "2 bit, smaller", needs_imatrix=True),
    FileType("iq2_xxs", 19, "IQ2_XXS", 2.4, "2 bit, smallest", needs_imatrix=True),
    FileType("iq1_m", 31, "IQ1_M", 2.1, "extreme loss", needs_imatrix=True),
    FileType("iq1_s", 24, "IQ1_S", 2.0, "extreme loss, smallest of all", needs_imatrix=True),
    FileType("tq2_0", 37, "TQ2_0", 2.5, "for models trained ternary (BitNet, TriLM)"),
    FileType("q2_0", 41, "Q2_0", 2.7, "for models trained ternary, groups of 64"),
    FileType("tq1_0", 36, "TQ1_0", 2.2, "for models trained ternary, denser"),
    FileType("q1_0", 40, "Q1_0", 1.5, "for models trained in 1 bit"),
    FileType("mxfp4", 38, "MXFP4", 4.3, "experts in MXFP4, the rest in q8_0 (gpt-oss)"),
)

# aliases that llama-quantize accepts
_ALIASES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m", "mxfp4_moe": "mxfp4"}


_NAMED_ELSEWHERE = {
    "int4": ("w4a16", "awq", "q4_0"),
    "4bit": ("w4a16", "awq", "q4_0"),
    "int8": ("w8a16", "w8a8", "q8_0"),
    "8bit": ("w8a16", "w8a8", "q8_0"),
    "fp4": ("nvfp4a16", "mxfp4a16", "mxfp4"),
    "nf4": ("nvfp4a16", "mxfp4", "iq4_nl"),
    "mlx": ("mlx-4bit", "mlx-8bit"),
    "fp16": ("f16",),
    "fp32": ("f32",),
}
"""What a type is called in other tools: the names here that come nearest, of all rooms."""


def file_type(name: str, others: Iterable[str] = ()) -> FileType:
    """The file type `name`, in any case; accepts llama-quantize's aliases.

    `others`: names of other outputs, which the message of an unknown name may suggest. Raises UsageError.
    """
    key = name.strip().lower()
    key = _ALIASES.get(key, key)
    if "," in key:
        raise UsageError(f"type {name!r} is a list; pass each type with its own -t: {_separate(key)}")
    if key not in FILE_TYPES:
        others = tuple(others)
        listed = f"the types of GGUF; others are {', '.join(others)}" if others else "all types"
        unknown = unknown_name("quantization type", name, key, (*FILE_TYPES, *others))
        raise UsageError(f"{unknown}; quantkit gguf --help lists {listed}")
    return FILE_TYPES[key]


def _separate(names: str) -> str:
    return " ".join(f"-t {name.strip()}" for name in names.split(",") if name.strip())


def unknown_name(category: str, name: str, key: str, known: Iterable[str]) -> str:
    """The error message for a `name` that is not one of `known`, with the three that are nearest to `key`."""
    known = list(known)
    meant = [other for other in _NAMED_ELSEWHERE.get(key.replace("-", ""), ()) if other in known]
    close = meant or difflib.get_close_matches(key, known, n=3, cutoff=0.4)
    nearest = f"; the nearest are {', '.join(close)}" if close else ""
    return f"unknown {category} {name!r}{nearest}"
