"""The quick reader gives what the gguf package's own gives."""

from pathlib import Path
from unittest.mock import patch

import gguf
import numpy as np
import pytest

from tests.families.expected import write_checkpoint
from tests.helpers import quick_reader
from tests.helpers.conversions import to_gguf

# By the package itself: conftest.py puts the quick methods in their place for the whole session.
SLOW = {"_get_field_parts": quick_reader._read_parts, "_get": quick_reader._read}


def contents(path: Path) -> list[object]:
    """All that a reader says of a file."""
    reader = gguf.GGUFReader(path)
    fields = [
        (field.offset, name, field.data, field.types, field.contents(), [part.tolist() for part in field.parts])
        for name, field in reader.fields.items()
    ]
    tensors = [
        (tensor.name, tensor.tensor_type, tensor.shape.tolist(), tensor.n_bytes, tensor.data_offset, tensor.data.dtype)
        for tensor in reader.tensors
    ]
    return [fields, tensors, [tensor.data.tobytes() for tensor in reader.tensors], reader.data_offset, reader.alignment]


def test_fields_parts_and_tensors_are_those_of_the_packages_reader(tmp_path: Path) -> None:
    path = to_gguf(write_checkpoint("llama", tmp_path / "llama"), "q8_0", tmp_path)
    assert gguf.GGUFReader._get is quick_reader._get
    ours = contents(path)
    with patch.multiple(gguf.GGUFReader, **SLOW):
        assert contents(path) == ours


def require_same_contents(writer: gguf.GGUFWriter, path: Path) -> None:
    """Write the file, and read it by both readers."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours = contents(path)
    with patch.multiple(gguf.GGUFReader, **SLOW):
        assert contents(path) == ours


@pytest.mark.parametrize("kind", [kind for kind in gguf.GGUFValueType if kind.name not in ("STRING", "ARRAY")])
def test_an_array_of_each_type_is_read_as_by_the_packages_reader(kind: gguf.GGUFValueType, tmp_path: Path) -> None:
    path = tmp_path / "arrays.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    values = [1.5, -2.0] * 500 if kind.name.startswith("FLOAT") else [0, 1, 1, 0] * 250
    writer.add_key_value("before", values, gguf.GGUFValueType.ARRAY, kind)
    writer.add_array("texts", ["a", "Ünicode", ""])
    writer.add_key_value("after", values[:3], gguf.GGUFValueType.ARRAY, kind)
    writer.add_tensor("t", np.arange(6, dtype=np.float32).reshape(2, 3))
    require_same_contents(writer, path)


def test_a_file_of_the_other_byte_order_is_read_as_by_the_packages_reader(tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    writer = gguf.GGUFWriter(path, "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_array("numbers", [1, 2, 70000])
    writer.add_tensor("t", np.arange(6, dtype=np.float32).reshape(2, 3))
    require_same_contents(writer, path)


def test_what_is_written_into_a_tensor_reaches_the_file(tmp_path: Path) -> None:
    path = to_gguf(write_checkpoint("llama", tmp_path / "llama"), "f32", tmp_path)
    reader = gguf.GGUFReader(path, "r+")
    reader.tensors[0].data[0, 0] = 77
    reader.tensors[0].data.flush()
    assert gguf.GGUFReader(path).tensors[0].data[0, 0] == 77
