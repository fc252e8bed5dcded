"""The packed words against the formats' descriptions, bit by bit in plain python."""

import numpy as np
import pytest
from numpy.typing import NDArray

from quantkit.packed.packing import (
    pack_awq,
    pack_gptq,
    packed_shapes,
    unpack_awq,
    unpack_gptq,
    why_not_packed,
)
from quantkit.quant.grid import Grid, Quantized
from tests.quant.matrices import random_quantized

WIDTHS = (2, 3, 4, 8)
TAGS = {"I32": np.dtype("<i4"), "F16": np.dtype("<f2")}


def bits_of(words: list[int]) -> str:
    """The words' bits from the lowest on, one string."""
    return "".join(format(word & 0xFFFFFFFF, "032b")[::-1] for word in words)


def value_at(bits: str, start: int, width: int) -> int:
    return int(bits[start : start + width][::-1], 2)


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_bit_of_awqs_words_is_where_the_format_puts_it(bits: int) -> None:
    quantized = random_quantized(Grid(bits, 32), n_out=64, n_in=96)
    packed = pack_awq(quantized)
    order = [0, 2, 4, 6, 1, 3, 5, 7] if bits == 4 else list(range(8))
    for name, integers in (("qweight", quantized.q.T), ("qzeros", quantized.zeros.T)):
        assert packed[name].shape == (len(integers), 64 * bits // 32)
        for row, values in zip(packed[name].tolist(), integers.tolist(), strict=True):
            stream = bits_of(row)
            for at in range(64):
                output = at // 8 * 8 + order[at % 8]
                assert value_at(stream, at * bits, bits) == values[output]
    assert np.array_equal(packed["scales"], quantized.scales.T.astype(np.float16))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("bits", WIDTHS)
def test_every_bit_of_gptqs_words_is_where_the_format_puts_it(bits: int, version: int) -> None:
    quantized = random_quantized(Grid(bits, 32), n_out=64, n_in=96, least_zero=1)
    packed = pack_gptq(quantized, version)
    assert packed["qweight"].shape == (96 * bits // 32, 64)
    for output in range(64):
        stream = bits_of(packed["qweight"][:, output].tolist())
        assert [value_at(stream, i * bits, bits) for i in range(96)] == quantized.q[output].tolist()
    for group in range(3):
        stream = bits_of(packed["qzeros"][group].tolist())
        stored = [value_at(stream, i * bits, bits) for i in range(64)]
        assert stored == [zero - (2 - version) for zero in quantized.zeros[:, group].tolist()]
    assert packed["g_idx"].tolist() == quantized.groups.tolist()


def test_three_bits_of_gptq_are_ten_one_ten_one_ten_to_three_words() -> None:
    quantized = random_quantized(Grid(3, -1), n_out=32, n_in=32)
    words = [int(word) & 0xFFFFFFFF for word in pack_gptq(quantized, 2)["qweight"][:, 5]]
    q = quantized.q[5].tolist()
    first = sum(q[i] << (3 * i) for i in range(10)) | (q[10] & 3) << 30
    second = q[10] >> 2 | sum(q[11 + i] << (3 * i + 1) for i in range(10)) | (q[21] & 1) << 31
    third = q[21] >> 1 | sum(q[22 + i] << (3 * i + 2) for i in range(10))
    assert words == [first, second, third]


@pytest.mark.parametrize("group", [32, -1])
@pytest.mark.parametrize("bits", WIDTHS)
def test_unpacking_gives_back_what_was_packed(bits: int, group: int) -> None:
    quantized = random_quantized(Grid(bits, group), n_out=96, n_in=64)
    order = np.random.default_rng(1).permutation(quantized.groups).astype(np.int32)
    shuffled = Quantized(quantized.grid, quantized.q, quantized.scales, quantized.zeros, order)
    for actual, expected in (
        (unpack_awq(pack_awq(quantized), quantized.grid), quantized),
        (unpack_gptq(pack_gptq(shuffled, 1), quantized.grid, 1), shuffled),
        (unpack_gptq(pack_gptq(shuffled, 2), quantized.grid, 2), shuffled),
    ):
        for name in ("q", "scales", "zeros", "groups"):
            assert np.array_equal(getattr(actual, name), getattr(expected, name)), name
        assert np.array_equal(actual.dequantized(), expected.dequantized())


@pytest.mark.parametrize("bits", WIDTHS)
def test_shapes_are_known_before_anything_is_packed(bits: int) -> None:
    grid = Grid(bits, 32)
    quantized = random_quantized(grid, n_out=64, n_in=96)
    for method, packed in (("awq", pack_awq(quantized)), ("gptq", pack_gptq(quantized, 1))):
        stated = packed_shapes(method, grid, 96, 64)
        assert {name: (array.dtype, array.shape) for name, array in packed.items()} == {
            name: (TAGS[dtype], shape) for name, (dtype, shape) in stated.items()
        }


@pytest.mark.parametrize(
    ("method", "grid", "n_in", "n_out", "reason"),
    [
        ("awq", Grid(4, 128), 576, 64, "its 576 inputs are not a multiple of the group size 128"),
        ("awq", Grid(4, 64), 576, 60, "its 60 outputs are not a multiple of 8"),
        ("gptq", Grid(3, 64), 576, 24, "its 24 outputs are not a multiple of 32"),
        ("gptq", Grid(4, -1), 20, 32, "its 20 inputs are not a multiple of 8"),
        ("awq", Grid(5, 64), 64, 64, "awq has no 5 bit packing"),
    ],
)
def test_a_matrix_that_no_word_or_group_divides_is_told(
    method: str, grid: Grid, n_in: int, n_out: int, reason: str
) -> None:
    assert str(why_not_packed(method, grid, n_in, n_out)).startswith(reason)


def test_a_matrix_that_fits_has_no_reason_against_it() -> None:
    assert why_not_packed("awq", Grid(4, 64), 576, 1536) is None
    assert why_not_packed("gptq", Grid(3, 64), 1536, 576) is None


def test_packing_does_not_change_what_it_was_given() -> None:
    quantized = random_quantized(Grid(4, 32), n_out=32, n_in=64)
    before: NDArray[np.uint8] = quantized.q.copy()
    pack_awq(quantized)
    pack_gptq(quantized)
    assert np.array_equal(quantized.q, before)


def test_gptq_stores_zeros_less_one_only_where_they_are_all_the_same() -> None:
    made = random_quantized(Grid(4, 32), n_out=32, n_in=64)
    middle = Quantized(Grid(4, 32, symmetric=True), made.q, made.scales, np.full_like(made.zeros, 8), made.groups)
    assert set(pack_gptq(middle)["qzeros"].ravel().tolist()) == {0x77777777}
    assert np.array_equal(pack_gptq(made)["qzeros"], pack_gptq(made, 2)["qzeros"])
    assert np.array_equal(unpack_gptq(pack_gptq(made), made.grid).zeros, made.zeros)
    assert np.array_equal(unpack_gptq(pack_gptq(middle), middle.grid).zeros, middle.zeros)
