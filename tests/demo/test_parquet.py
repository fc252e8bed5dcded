from demo.parquet import _indices, _snappy


def test_snappy_copies_may_overlap_what_they_write() -> None:
    """Snappy's format: a literal "ab", then a 2-byte-offset copy of 8 bytes from 2 back."""
    assert _snappy(bytes([10, (2 - 1) << 2]) + b"ab" + bytes([(8 - 1) << 2 | 2, 2, 0])) == b"ababababab"


def test_snappy_short_copies_hold_three_bits_of_the_offset_in_the_tag() -> None:
    literal = bytes(range(256)) + bytes(44)
    data = bytes([0xB0, 2, 61 << 2]) + (299).to_bytes(2, "little") + literal + bytes([1 << 5 | (4 - 4) << 2 | 1, 44])
    assert _snappy(data) == literal + literal[:4]


def test_indices_mix_runs_and_bit_packed_groups() -> None:
    """Encodings.md's own example packs 0..7 in 3 bits as 88 C6 FA; before it stands a run of four fives."""
    assert _indices(bytes([3, 4 << 1, 5, 1 << 1 | 1, 0x88, 0xC6, 0xFA]), 11) == [5, 5, 5, 5, 0, 1, 2, 3, 4, 5, 6]
