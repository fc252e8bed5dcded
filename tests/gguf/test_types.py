"""The type tables against llama.cpp's own."""

import ctypes
import re
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from quantkit.errors import UsageError
from quantkit.gguf import file_types
from quantkit.gguf.file_types import FILE_TYPES, file_type
from quantkit.gguf.mix import MixModel, MixOptions, MixTensor, choose_types, sort_key
from quantkit.gguf.types import TENSOR_TYPES, block_size, row_bytes, tensor_type
from quantkit.packed.registry import FORMATS
from tests.helpers import oracle


@pytest.fixture(scope="module")
def libllama() -> ctypes.CDLL:
    return ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libllama.so"))


@pytest.mark.parametrize("name", FILE_TYPES)
def test_a_file_type_has_llama_cpps_name_number_and_default_type(name: str, libllama: ctypes.CDLL) -> None:
    kind = FILE_TYPES[name]
    default = libllama._Z28llama_ftype_get_default_type11llama_ftype
    assert default(kind.ftype) == kind.tensor_type
    libllama.llama_ftype_name.restype = ctypes.c_char_p
    full = libllama.llama_ftype_name(kind.ftype).decode().lower()
    theirs = full.replace("all ", "").split(" ")[0]  # "Q4_K - Medium", "all F32", "MXFP4 MoE"
    expected = "iq3_s" if name == "iq3_m" else name.removesuffix("_m").removesuffix("_s").removesuffix("_l")
    assert theirs.startswith(expected), full


def test_the_types_the_user_is_promised_are_all_there() -> None:
    promised = """f32 f16 bf16 q8_0 q4_0 q4_1 q5_0 q5_1 q2_k q2_k_s q3_k_s q3_k_m q3_k_l q4_k_s q4_k_m q5_k_s q5_k_m
        q6_k iq1_s iq1_m iq2_xxs iq2_xs iq2_s iq2_m iq3_xxs iq3_xs iq3_s iq3_m iq4_nl iq4_xs tq1_0 tq2_0 mxfp4
        q1_0 q2_0"""
    assert set(FILE_TYPES) == set(promised.split())


@pytest.mark.parametrize("name", sorted(set(FILE_TYPES) - {"mxfp4"}))
def test_the_bits_and_the_need_for_importances_are_those_of_a_llama_3_8b(name: str) -> None:
    sizes = {"n_layer": 32, "n_embd": 4096, "n_ff": 14336, "n_head": 32, "n_head_kv": 8, "n_vocab": 128256}
    tensors = sorted(oracle.model_tensors(**sizes), key=lambda tensor: sort_key(tensor[0]))
    mix = [MixTensor(*tensor) for tensor in tensors]
    kind = FILE_TYPES[name]
    options = MixOptions(has_imatrix=kind.needs_imatrix)
    choices = choose_types(MixModel("llama", 32, 32, 8, 0), kind, mix, options)
    elements = sum(int(np.prod(item.shape)) for item in mix)
    n_bytes = sum(
        row_bytes(choice.type, item.shape[-1]) * int(np.prod(item.shape[:-1]))
        for choice, item in zip(choices, mix, strict=True)
    )
    assert round(8 * n_bytes / elements, 1) == kind.bits
    assert any(choice.requires_imatrix for choice in choices) == kind.needs_imatrix


@pytest.mark.parametrize(
    ("typed", "name"),
    [("Q4_K_M", "q4_k_m"), ("q4_k", "q4_k_m"), ("Q3_K", "q3_k_m"), ("q5_k", "q5_k_m"), (" f16 ", "f16")],
)
def test_a_file_type_is_found_in_any_case_and_by_llama_quantizes_aliases(typed: str, name: str) -> None:
    assert file_type(typed).name == name
    assert file_type(typed).label == name.upper()


def test_an_unknown_file_type_names_the_three_nearest_and_the_command_that_lists_all() -> None:
    with pytest.raises(UsageError) as refusal:
        file_type("q4_k_x")
    message = str(refusal.value)
    assert message.startswith("unknown quantization type 'q4_k_x'; the nearest are ")
    assert {"q4_k_s", "q4_k_m"} < {name for name in FILE_TYPES if re.search(rf"\b{name}\b", message)}
    assert message.count(", ") == 2 and message.endswith("; quantkit gguf --help lists all types")
    with pytest.raises(UsageError, match=r"unknown quantization type '§'; quantkit gguf --help lists all types$"):
        file_type("§")


def test_a_list_with_commas_is_refused_with_the_words_to_write() -> None:
    with pytest.raises(UsageError, match=r"type 'q4_0, awq' is a list; pass each type with its own -t: -t q4_0 -t awq"):
        file_type("q4_0, awq")


@pytest.mark.parametrize(
    ("typed", "names"),
    [("int8", "w8a16, w8a8, q8_0"), ("4-bit", "w4a16, awq, q4_0"), ("nf4", "nvfp4a16, mxfp4, iq4_nl"), ("FP16", "f16")],
)
def test_a_name_of_another_tool_gets_the_names_that_come_nearest_here(typed: str, names: str) -> None:
    with pytest.raises(UsageError, match=f"unknown quantization type '{typed}'; the nearest are {names}; quantkit"):
        file_type(typed, FORMATS)


def test_every_name_offered_for_one_of_another_tool_exists() -> None:
    offered = {name for names in file_types._NAMED_ELSEWHERE.values() for name in names}
    assert offered <= {*FILE_TYPES, *FORMATS}
    assert not set(file_types._NAMED_ELSEWHERE) & {*FILE_TYPES, *FORMATS}


def test_an_unknown_tensor_type_is_refused_and_a_mix_is_not_a_tensor_type() -> None:
    assert tensor_type("Q6_K") == GGMLQuantizationType.Q6_K
    with pytest.raises(UsageError, match=r"unknown tensor type 'q4_k_m'.*q4_k"):
        tensor_type("q4_k_m")


@pytest.mark.parametrize("name", TENSOR_TYPES)
def test_rows_are_whole_blocks_of_the_size_ggml_gives(name: str, libllama: ctypes.CDLL) -> None:
    kind = TENSOR_TYPES[name]
    libllama.ggml_type_size.restype = ctypes.c_size_t
    libllama.ggml_blck_size.restype = ctypes.c_int64
    libllama.ggml_row_size.restype = ctypes.c_size_t
    assert block_size(kind) == (libllama.ggml_blck_size(kind), libllama.ggml_type_size(kind))
    assert row_bytes(kind, 2048) == libllama.ggml_row_size(kind, ctypes.c_int64(2048))
    assert TENSOR_TYPES[name].name in gguf.GGMLQuantizationType.__members__
    if block_size(kind)[0] > 1:
        with pytest.raises(ValueError, match="not whole blocks"):
            row_bytes(kind, block_size(kind)[0] + 1)
