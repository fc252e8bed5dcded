"""Headers and layouts against the format's own package, and headers that lie."""

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as T
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantkit.errors import CheckpointError, UsageError
from quantkit.gguf import reader
from quantkit.gguf.keyvalues import KeyValue, array, boolean, float32, string, uint32
from quantkit.gguf.layout import lay_out
from quantkit.gguf.reader import read_header, shard_paths
from tests.helpers.examples import examples

KEYS = [
    string("general.architecture", "llama"),
    string("general.name", "模型"),
    uint32("llama.block_count", 2),
    float32("llama.rope.freq_base", 10000.0),
    boolean("tokenizer.ggml.add_bos_token", True),
    array("tokenizer.ggml.tokens", GGUFValueType.STRING, [b"a", "é", b"\xe2\x96\x81b"]),
    array("tokenizer.ggml.token_type", GGUFValueType.INT32, [1, -2, 3]),
    array("tokenizer.ggml.scores", GGUFValueType.FLOAT32, [0.0, -1.5, 2.0]),
]
TENSORS = [("output_norm.weight", (64,), T.F32), ("token_embd.weight", (5, 64), T.Q8_0), ("x", (2, 3, 64), T.Q4_0)]


def test_a_header_is_the_formats_own_writers(tmp_path: Path) -> None:
    (ours,) = lay_out("model", KEYS, TENSORS)
    writer = GGUFWriter(tmp_path / "theirs.gguf", "llama")
    for key in KEYS[1:]:
        writer.add_key_value(key.key, key.value, key.kind, sub_type=key.item)
    for name, shape, kind in TENSORS:
        slot = next(slot for slot in ours.slots if slot.name == name)
        writer.add_tensor(name, np.zeros((*shape[:-1], slot.row_bytes), np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    theirs = (tmp_path / "theirs.gguf").read_bytes()
    assert theirs[: len(ours.header)] == ours.header
    assert len(theirs) == ours.size
    (tmp_path / "ours.gguf").write_bytes(ours.header + bytes(ours.size - len(ours.header)))
    tensors = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "ours.gguf").tensors}
    for slot in ours.slots:
        assert (tensors[slot.name].data_offset, tensors[slot.name].n_bytes) == (slot.offset, slot.nbytes)


@pytest.mark.parametrize("piece", [8, 16, 17, 1 << 20])
def test_a_vocabulary_is_read_in_pieces_of_any_size(
    piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_PIECE", piece)
    texts = [b"x" * length for length in (0, 1, 7, 8, 9, 30, 0, 0, 16, 100)]
    (file,) = lay_out("model", [array("tokens", GGUFValueType.STRING, texts), uint32("after", 7)], TENSORS)
    path = tmp_path / "model.gguf"
    path.write_bytes(file.header + bytes(file.size - len(file.header)))
    header = read_header(path)
    assert header.value("tokens") == texts and header.value("after") == 7 and header.tensors == file.slots
    (first, *_) = header.keys
    packed = b"".join(struct.pack("<Q", len(text)) + text for text in texts)
    assert first.pack().endswith(struct.pack("<IQ", GGUFValueType.STRING, len(texts)) + packed)
    cut = file.header.index(b"x" * 100) + 50
    path.write_bytes(file.header[:cut])
    with pytest.raises(CheckpointError, match="ends early"):
        read_header(path)


def test_a_header_read_back_is_what_was_laid_out(tmp_path: Path) -> None:
    (file,) = lay_out("model", KEYS, TENSORS)
    path = tmp_path / file.name
    path.write_bytes(file.header + bytes(file.size - len(file.header)))
    header = read_header(path)
    assert header.tensors == file.slots
    assert b"".join(key.pack() for key in header.keys) == b"".join(key.pack() for key in KEYS)


def test_shards_fill_up_in_order_and_only_the_first_has_the_keys(tmp_path: Path) -> None:
    tensors = [(f"blk.{i}.w", (10, 64), T.Q8_0) for i in range(7)]
    files = lay_out("model", KEYS, tensors, split_max_size=1500)
    assert [len(file.slots) for file in files] == [2, 2, 2, 1]
    for file in files:
        (tmp_path / file.name).write_bytes(file.header + bytes(file.size - len(file.header)))
    headers = [read_header(path) for path in shard_paths(tmp_path / files[0].name)]
    assert [header.value("split.no") for header in headers] == [0, 1, 2, 3]
    assert {header.value("split.count") for header in headers} == {4}
    assert {header.value("split.tensors.count") for header in headers} == {7}
    assert [header.value("general.name") for header in headers] == ["模型", None, None, None]
    (tmp_path / files[2].name).unlink()
    with pytest.raises(CheckpointError, match="00003-of-00004"):
        shard_paths(tmp_path / files[0].name)
    with pytest.raises(UsageError, match="is smaller than tensor"):
        lay_out("model", KEYS, tensors, split_max_size=100)


(SOUND,) = lay_out("model", KEYS, TENSORS)
BODY = SOUND.header + bytes(SOUND.size - len(SOUND.header))


@settings(max_examples=examples(1500), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutated_header_is_read_or_refused_in_one_sentence(tmp_path: Path, data: st.DataObject) -> None:
    mutant = bytearray(BODY)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(SOUND.header) - 9))
        if data.draw(st.booleans()):
            mutant[at] = data.draw(st.integers(0, 255))
        else:
            mutant[at : at + 8] = struct.pack("<Q", data.draw(st.sampled_from([0, 1, 2**31, 2**32, 2**60, 2**64 - 1])))
    del mutant[data.draw(st.integers(0, len(mutant))) if data.draw(st.booleans()) else len(mutant) :]
    path = tmp_path / "mutant.gguf"
    path.write_bytes(mutant)
    try:
        header = read_header(path)
    except CheckpointError as error:
        assert "mutant.gguf" in str(error)
        assert "\n" not in str(error)
    else:
        assert all(slot.offset + slot.nbytes <= len(mutant) for slot in header.tensors)


def test_an_array_of_arrays_has_no_bytes() -> None:
    with pytest.raises(ValueError, match="element type"):
        KeyValue("a", GGUFValueType.ARRAY, [[1]], GGUFValueType.ARRAY).pack()


def test_a_number_that_its_key_cannot_hold_is_one_sentence() -> None:
    sections = "qwen2vl.rope.dimension_sections"
    wrong = [array(sections, GGUFValueType.INT32, values) for values in ([2, 2**64, 3], [2, None, 3], [2, [3], 4])]
    for key in (*wrong, uint32("count", 2**32)):
        with pytest.raises(CheckpointError, match=f"does not fit into the GGUF key {key.key}"):
            key.pack()
