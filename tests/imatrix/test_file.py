"""Importance matrices, against files packed by hand after tools/imatrix and against the quantizer that uses them."""

import hashlib
import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.errors import ImatrixError, OutputError
from quantkit.imatrix.file import load_imatrix, write_imatrix
from tests.helpers.examples import examples

SUMS = {"blk.0.attn_q.weight": np.array([2.0, 4.0, 1.0]), "blk.0.ffn_down_exps.weight": np.arange(6.0).reshape(2, 3)}
COUNTS = {"blk.0.attn_q.weight": np.array(4), "blk.0.ffn_down_exps.weight": np.array([2, 0])}


def a_dat(*entries: tuple[bytes, int, list[float]], tail: bytes = b"") -> bytes:
    """The old format: means times calls."""
    data = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        data += struct.pack("<i", len(name)) + name + struct.pack("<ii", calls, len(values))
        data += struct.pack(f"<{len(values)}f", *values)
    return data + tail


def written(path: Path) -> Path:
    write_imatrix(path, SUMS, COUNTS, datasets=["wiki.txt", "code.txt"], chunk_size=512, chunks=7)
    return path


def test_sums_and_counts_come_back_as_means_and_an_unseen_expert_as_ones(tmp_path: Path) -> None:
    path = written(tmp_path / "imatrix.gguf")
    imatrix = load_imatrix(path)
    assert imatrix.values["blk.0.attn_q.weight"].tolist() == [0.5, 1.0, 0.25]
    assert imatrix.values["blk.0.ffn_down_exps.weight"].tolist() == [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]
    assert all(values.dtype == np.float32 for values in imatrix.values.values())
    assert (imatrix.datasets, imatrix.chunks, imatrix.chunk_size) == (["wiki.txt", "code.txt"], 7, 512)
    assert imatrix.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_file_has_the_keys_and_tensors_of_llama_imatrix_in_its_order(tmp_path: Path) -> None:
    reader = gguf.GGUFReader(written(tmp_path / "imatrix.gguf"))
    keys = [key for key in reader.fields if not key.startswith("GGUF.")]
    assert keys == ["general.type", "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"]
    assert reader.fields["general.type"].contents() == "imatrix"
    shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}  # ggml's order: columns first
    assert list(shapes.items()) == [
        ("blk.0.attn_q.weight.in_sum2", [3, 1]),
        ("blk.0.attn_q.weight.counts", [1, 1]),
        ("blk.0.ffn_down_exps.weight.in_sum2", [3, 2]),
        ("blk.0.ffn_down_exps.weight.counts", [1, 2]),
    ]


def test_the_old_format_divides_by_the_calls(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    tail = struct.pack("<ii", 12, 8) + b"wiki.txt"
    path.write_bytes(a_dat((b"output.weight", 4, [4.0, 1.0]), (b"blk.0.attn_k.weight", 0, [3.0]), tail=tail))
    imatrix = load_imatrix(path)
    assert imatrix.values["output.weight"].tolist() == [1.0, 0.25]
    assert imatrix.values["blk.0.attn_k.weight"].tolist() == [3.0]
    assert (imatrix.datasets, imatrix.chunks) == (["wiki.txt"], 12)


def test_the_old_format_may_end_after_the_entries(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(a_dat((b"output.weight", 1, [4.0])))
    assert (load_imatrix(path).datasets, load_imatrix(path).chunks) == ([], 0)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "number of entries at byte 0 needs 4 bytes, but 0 are left"),
        (b"not an imatrix at all", "not an importance matrix"),
        (struct.pack("<i", 0), "no entries"),
        (a_dat((b"a", 1, [1.0, 2.0]))[:-3], "the values of a at byte"),
        (a_dat((b"a", 1, [])), "no values for a"),
        (a_dat((b"a", 1, [1.0, float("nan")])), "value nan for a"),
        (a_dat((b"a", 1, [1.0, float("inf")])), "value inf for a"),
        (a_dat((b"a", 1, [1.0, -2.0])), "value -2.0 for a"),
        (struct.pack("<ii", 1, -5), "length|needs -5"),
        (struct.pack("<ii", 1, 2**31 - 1), "name 0"),
        (struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, 2**29), "the values of a"),
        (b"GGUF", "malformed or truncated"),
        (b"GGUF" + bytes(20), "malformed or truncated"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60), "malformed or truncated"),
    ],
)
def test_what_is_no_importance_matrix_is_refused_in_one_sentence(tmp_path: Path, data: bytes, sentence: str) -> None:
    path = tmp_path / "imatrix"
    path.write_bytes(data)
    with pytest.raises(ImatrixError, match=sentence) as caught:
        load_imatrix(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_that_claims_a_terabyte_is_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    """gguf-py's reader believes the count: a file of 300 bytes took 5.8 GB."""
    path = written(tmp_path / "imatrix.gguf")
    data = path.read_bytes()
    count = struct.pack("<Q", len(SUMS))
    at = data.index(b"imatrix.datasets") + len("imatrix.datasets") + 8
    assert data[at : at + 8] == count
    path.write_bytes(data[:at] + struct.pack("<Q", 2**40) + data[at + 8 :])
    tracemalloc.start()
    with pytest.raises(ImatrixError, match=r"imatrix\.datasets claims 1099511627776 strings"):
        load_imatrix(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_missing_file_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ImatrixError, match=r"nothing\.gguf \(No such file"):
        load_imatrix(tmp_path / "nothing.gguf")


def test_a_gguf_model_is_refused_as_an_importance_matrix(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("output.weight", np.ones((2, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ImatrixError, match=r"without imatrix\.datasets, not an importance matrix"):
        load_imatrix(path)


def test_sums_without_counts_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "imatrix.gguf")
    path.write_bytes(path.read_bytes().replace(b"attn_q.weight.counts", b"attn_x.weight.counts"))
    with pytest.raises(ImatrixError, match=r"only sums or only counts for blk\.0\.attn_q\.weight"):
        load_imatrix(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_a_value_that_makes_no_sense_is_refused_and_named(tmp_path: Path, value: float) -> None:
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, {"a": np.array([1.0, value])}, {"a": np.array(1)}, datasets=["t"], chunk_size=1, chunks=1)
    with pytest.raises(ImatrixError, match=f"the value {value} for a"):
        load_imatrix(path)


def test_a_name_over_two_lines_is_refused_in_one(tmp_path: Path) -> None:
    (tmp_path / "imatrix.dat").write_bytes(a_dat((b"out\nput.weight", 4, [4.0])))
    with pytest.raises(ImatrixError, match=r"invalid tensor name 'out\\nput.weight'"):
        load_imatrix(tmp_path / "imatrix.dat")


@settings(max_examples=examples(300), deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_but_never_a_traceback(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    whole = bytearray(
        written(folder / "imatrix").read_bytes()
        if data.draw(st.booleans())
        else a_dat((b"output.weight", 4, [4.0, 1.0]), (b"b", 1, [3.0]), tail=struct.pack("<ii", 12, 1) + b"t")
    )
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    (folder / "imatrix").write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        imatrix = load_imatrix(folder / "imatrix")
    except ImatrixError as error:
        assert "\n" not in str(error)
        return
    assert all(np.isfinite(values).all() for values in imatrix.values.values())


def test_a_folder_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        written(tmp_path / "nowhere" / "imatrix.gguf")
