"""A safetensors header is believed only as far as the reference library would believe it."""

import json
import struct
from typing import Any

import hypothesis.strategies as st
import pytest
import safetensors
from hypothesis import HealthCheck, given, settings

from quantkit.checkpoint.safetensors_file import MAX_HEADER_BYTES, PREFIX_BYTES, Header, header_length, parse_header
from quantkit.checkpoint.tensor import DTYPE_BITS
from quantkit.errors import CheckpointError
from tests.checkpoint.files import entry, file_bytes
from tests.helpers.examples import examples


def parse(file: bytes) -> Header:
    """As `read_header`, on bytes in memory."""
    length = header_length(file[:PREFIX_BYTES], "x.safetensors", len(file))
    return parse_header(file[PREFIX_BYTES : PREFIX_BYTES + length], "x.safetensors", len(file))


def refused(header: dict[str, Any] | bytes, data: bytes = bytes(16), length: int | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        parse(file_bytes(header, data, length))
    assert "x.safetensors" in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_a_good_header_gives_absolute_offsets_and_its_sha256() -> None:
    header = json.dumps({"__metadata__": {"format": "pt"}, "w": entry("F32", [2, 2], 0, 16)}).encode()
    parsed = parse(file_bytes(header, bytes(16)))
    (tensor,) = parsed.tensors.values()
    assert (tensor.name, tensor.dtype, tensor.shape) == ("w", "F32", (2, 2))
    assert (tensor.offset, tensor.nbytes) == (8 + len(header), 16)
    import hashlib

    assert parsed.sha256 == hashlib.sha256(header).hexdigest()


def test_a_header_of_two_to_the_sixty_bytes_is_refused_unread() -> None:
    with pytest.raises(CheckpointError, match=str(2**60)):
        header_length(struct.pack("<Q", 2**60), "x.safetensors", 2**61)


def test_the_longest_header_the_format_allows_is_allowed_and_one_more_byte_is_not() -> None:
    prefix = struct.pack("<Q", MAX_HEADER_BYTES)
    assert header_length(prefix, "x.safetensors", 10**12) == MAX_HEADER_BYTES
    with pytest.raises(CheckpointError, match="100000001"):
        header_length(struct.pack("<Q", MAX_HEADER_BYTES + 1), "x.safetensors", 10**12)


def test_a_header_longer_than_its_file_is_called_truncated() -> None:
    assert "truncated" in refused({"w": entry("F32", [4], 0, 16)}, length=5000)


def test_a_git_lfs_pointer_is_recognised() -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
    with pytest.raises(CheckpointError, match="git lfs pull"):
        parse(pointer)


def test_data_shorter_than_the_header_says_is_called_truncated() -> None:
    assert "truncated" in refused({"w": entry("F32", [4], 0, 16)}, data=bytes(15))


W = entry("F32", [2], 0, 8)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        pytest.param(b"", "does not start", id="empty"),
        pytest.param(b"[]", "does not start", id="a-list"),
        pytest.param(b' {"w":{}}', "does not start", id="a-space-first"),
        pytest.param(b'{"w":', "not valid JSON", id="cut-off"),
        pytest.param(b'{"\xff":{}}', "UTF-8", id="not-utf8"),
        pytest.param(b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply", id="deep"),
        pytest.param(b'{"w":{"shape":[' + b"9" * 5000 + b"]}}", "not valid JSON", id="5000-digits"),
        pytest.param(b'{"w":{},"w":{}}', "twice", id="a-tensor-twice"),
        pytest.param(b'{"w":{"dtype":"F32","dtype":"F16"}}', "twice", id="a-field-twice"),
        pytest.param(b'{"\\ud800":{}}', "not Unicode", id="half-a-surrogate"),
        pytest.param({"__metadata__": {"a": 1}, "w": W}, "__metadata__", id="metadata-of-numbers"),
        pytest.param({"w": [1]}, "not an object", id="a-list-for-a-tensor"),
        pytest.param({"w": {"dtype": "F32", "shape": [2]}}, "no data_offsets", id="no-offsets"),
        pytest.param({"w": {**W, "stride": 1}}, "'stride'", id="an-unknown-field"),
        pytest.param({"w": {**W, "dtype": "F31"}}, "F31", id="an-unknown-dtype"),
        pytest.param({"w": {**W, "dtype": ["F32"]}}, "unknown dtype", id="a-list-for-a-dtype"),
        pytest.param({"w": {**W, "shape": [2.0]}}, "[2.0]", id="a-float-shape"),
        pytest.param({"w": entry("F32", [True], 0, 4)}, "list of sizes", id="a-boolean-shape"),
        pytest.param({"w": {**W, "shape": [-2]}}, "[-2]", id="a-negative-shape"),
        pytest.param(b'{"w":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}', "sizes", id="minus-zero"),
        pytest.param({"w": {**W, "shape": [2**40, 2**40]}}, "too large", id="a-product-beyond-64-bits"),
        pytest.param(
            {"w": {"dtype": "F32", "shape": [2**62, 8, 0], "data_offsets": [0, 0]}}, "too large", id="overflow-times-0"
        ),
        pytest.param({"w": {**W, "data_offsets": [0, 8, 16]}}, "data_offsets", id="three-offsets"),
        pytest.param({"w": {**W, "data_offsets": [8, 0]}}, "takes 8", id="backwards"),
        pytest.param({"w": {**W, "data_offsets": [0, 4]}}, "takes 8", id="too-few-bytes-for-the-shape"),
        pytest.param({"w": {**W, "data_offsets": [2**64, 2**64 + 8]}}, "data_offsets", id="offsets-beyond-64-bits"),
        pytest.param({"w": entry("F4", [3], 0, 1)}, "whole number of bytes", id="half-a-byte"),
        pytest.param({"a": W, "b": entry("F32", [2], 4, 12)}, "overlap", id="overlap"),
        pytest.param({"a": entry("F32", [4], 0, 16), "b": W}, "overlap", id="one-inside-the-other"),
        pytest.param({"a": entry("F32", [2], 8, 16)}, "belong to no tensor", id="a-hole-at-the-start"),
        pytest.param({"a": W}, "after its last tensor", id="bytes-left-over"),
    ],
)
def test_a_malformed_header_is_refused_and_the_fault_named(header: dict[str, Any] | bytes, words: str) -> None:
    assert words in refused(header)


def test_an_empty_tensor_may_share_its_offset_with_another_in_either_order() -> None:
    empty = entry("F32", [0, 3], 0, 0)
    for header in ({"w": W, "empty": empty}, {"empty": empty, "w": W}):
        assert _holds(file_bytes(header, bytes(8)))


def test_nesting_is_refused_in_a_sentence_at_every_depth() -> None:
    for depth in (1, 100, *range(900, 1050, 3)):
        nested = b"[" * depth + b"]" * depth
        refused(b'{"w":{"dtype":' + nested + b',"shape":[],"data_offsets":[0,4]}}')


def test_a_long_name_does_not_flood_the_message() -> None:
    assert len(refused({"w" * 10_000: {**W, "shape": [1] * 10_000}})) < 500


# The property: whatever bytes come, the outcome is a header the reference library also accepts, or a CheckpointError.

_sizes = st.one_of(st.integers(0, 4), st.sampled_from([2**31, 2**32, 2**62, 2**63, 2**64, 2**70]))
_odd = st.one_of(
    st.none(), st.booleans(), st.floats(), st.text(max_size=3), st.integers(-3, 3), st.just([]), st.just({}), _sizes
)


@st.composite
def good_files(draw: st.DrawFn) -> tuple[dict[str, Any], int]:
    """A valid header and the length of its data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}} if draw(st.booleans()) else {}
    position = 0
    for name in draw(st.lists(st.text(max_size=6), max_size=4, unique=True)):
        dtype = draw(st.sampled_from(sorted(set(DTYPE_BITS) - {"F4", "F6_E2M3", "F6_E3M2"})))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        nbytes = DTYPE_BITS[dtype] // 8
        for size in shape:
            nbytes *= size
        header[name] = entry(dtype, shape, position, position + nbytes)
        position += nbytes
    header.pop("__metadata__", None) if draw(st.booleans()) else None
    return header, position


@st.composite
def broken_fields(draw: st.DrawFn) -> bytes:
    """A valid file with a few fields of its header replaced."""
    header, size = draw(good_files())
    for name in list(header):
        if name == "__metadata__" or not draw(st.booleans()):
            continue
        match draw(st.integers(0, 5)):
            case 0:
                header[name][draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"]))] = draw(_odd)
            case 1:
                header[name]["shape"] = draw(st.lists(st.one_of(_sizes, _odd), max_size=4))
            case 2:
                begin, end = header[name]["data_offsets"]
                header[name]["data_offsets"] = [begin + draw(st.integers(-9, 9)), end + draw(st.integers(-9, 9))]
            case 3:
                header[name]["data_offsets"] = draw(st.lists(st.one_of(_sizes, _odd), max_size=3))
            case 4:
                del header[name][draw(st.sampled_from(["dtype", "shape", "data_offsets"]))]
            case _:
                header[name] = draw(_odd)
    if draw(st.booleans()):
        header["__metadata__"] = draw(st.one_of(_odd, st.dictionaries(st.text(max_size=2), _odd, max_size=2)))
    size = max(0, size + draw(st.sampled_from([0, 0, 0, -1, 1, -8, 8])))
    return file_bytes(header, bytes(size), draw(st.sampled_from([None, None, None, 0, 1, 7, 2**60, 2**64 - 1])))


@st.composite
def broken_bytes(draw: st.DrawFn) -> bytes:
    """A valid file with a few bytes changed, cut out or put in."""
    header, size = draw(good_files())
    pretty = draw(st.booleans())
    file = bytearray(file_bytes(json.dumps(header, ensure_ascii=pretty).encode("utf-8", "surrogatepass"), bytes(size)))
    for _ in range(draw(st.integers(0, 4))):
        position = draw(st.integers(0, max(0, len(file) - size - 1)))
        match draw(st.integers(0, 2)):
            case 0:
                file[position : position + 1] = draw(st.binary(min_size=1, max_size=1))
            case 1:
                del file[position : position + draw(st.integers(1, 12))]
            case _:
                file[position:position] = draw(
                    st.sampled_from([b"{", b"}", b"-", b".0", b"e9", b",", b'"', b"\\u0000", b" "])
                )
    if draw(st.booleans()) and len(file) >= 8:
        file[:8] = struct.pack("<Q", max(0, len(file) - 8 - size))
    return bytes(file)


def _holds(file: bytes) -> bool:
    """Check the property; True when the file was accepted."""
    try:
        ours = parse(file)
    except CheckpointError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
        return False
    reference = dict(safetensors.deserialize(file))
    assert set(ours.tensors) == set(reference)
    for name, tensor in ours.tensors.items():
        assert (tensor.dtype, list(tensor.shape)) == (reference[name]["dtype"], reference[name]["shape"])
        assert file[tensor.offset : tensor.offset + tensor.nbytes] == bytes(reference[name]["data"])
    return True


_hundreds = settings(
    max_examples=examples(700), deadline=2000, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@_hundreds
@given(broken_fields())
def test_any_header_with_changed_fields_is_refused_in_a_sentence_or_read_as_the_reference_reads_it(file: bytes) -> None:
    _holds(file)


@_hundreds
@given(broken_bytes())
def test_any_header_with_changed_bytes_is_refused_in_a_sentence_or_read_as_the_reference_reads_it(file: bytes) -> None:
    _holds(file)


@settings(max_examples=examples(700), deadline=2000)
@given(st.binary(max_size=200))
def test_random_bytes_never_get_past_as_a_traceback(file: bytes) -> None:
    _holds(file)


@settings(max_examples=examples(500), deadline=2000, suppress_health_check=[HealthCheck.too_slow])
@given(good_files())
def test_every_well_formed_header_is_accepted(made: tuple[dict[str, Any], int]) -> None:
    header, size = made
    assert _holds(file_bytes(header, bytes(size)))
