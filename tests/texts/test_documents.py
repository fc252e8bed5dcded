"""Calibration text on disk: which formats are read, and what is said of files that are none of them."""

import gzip
import importlib.util
import json
from pathlib import Path

import pytest

from quantkit.errors import CalibrationError, MissingExtraError
from quantkit.texts.documents import Document, read_documents

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "你好"}]
ROWS = [{"text": "one"}, {"messages": CHAT}, {"text": "drei äöü"}]
DOCUMENTS: list[Document] = ["one", CHAT, "drei äöü"]


def write(folder: Path, name: str, data: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_every_json_form_gives_the_same_documents(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps(row) for row in ROWS) + "\n\n"
    for name, data in (
        ("a.jsonl", lines.encode()),
        ("b.json", json.dumps(ROWS, indent=1).encode()),
        ("lines.json", lines.encode()),
        ("packed.JSONL.gz", gzip.compress(lines.encode())),
        ("bom.jsonl", b"\xef\xbb\xbf" + lines.encode()),
    ):
        assert read_documents(write(tmp_path, name, data)) == (DOCUMENTS, []), name


def test_one_json_object_and_sharegpt_conversations_are_read(tmp_path: Path) -> None:
    shared = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "你好"}]}
    assert read_documents(write(tmp_path, "one.json", json.dumps(shared, indent=2)))[0] == [CHAT]


def test_any_other_file_is_one_text_byte_for_byte(tmp_path: Path) -> None:
    text = "Zeile\r\n\n  夜 \u3000 end"
    assert read_documents(write(tmp_path, "notes.md", text)) == ([text], [])
    assert read_documents(write(tmp_path, "noending", "\ufeff" + text)) == ([text], [])


def test_only_the_start_of_a_long_source_is_read_and_that_is_said(tmp_path: Path) -> None:
    plain, warnings = read_documents(write(tmp_path, "a.txt", "a line\n" * 20 + "夜" * 30), most=100)
    assert plain == ["a line\n" * 14] and "a.txt is long" in warnings[0]
    cut, _ = read_documents(write(tmp_path, "b.txt", "夜" * 60), most=100)
    assert cut == ["夜" * 33]
    rows, warnings = read_documents(write(tmp_path, "c.jsonl", '{"text": "0123456789"}\n' * 20), most=100)
    assert rows == ["0123456789"] * 10 and "c.jsonl is long" in warnings[0]


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.txt", b"abc\xff\xfe", r"a\.txt is not UTF-8 text: byte 3 is 0xff"),
        ("a.txt", "text".encode("utf-16-le"), r"a\.txt is not text: byte 1 is zero"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text": \n', r"line 3 of a\.jsonl is not valid JSON: .* at character 1"),
        ("a.jsonl", b'{"text": "x"}\n{"prompt": "x", "id": 1}', r"line 2 of a\.jsonl has neither .* 'prompt', 'id'"),
        ("a.jsonl", b'{"text": 7}', r"line 1 of a\.jsonl has a 'text' of type int"),
        ("a.jsonl", b"7", r"line 1 of a\.jsonl has neither 'text' nor 'messages', but int"),
        ("a.jsonl", b'{"messages": "Hi"}', r"line 1 of a\.jsonl has 'messages' of type str; it must be a list"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}', r"line 1 of a\.jsonl has an invalid message in 'messages'"),
        ("a.jsonl", b"[" * 100_000, r"line 1 of a\.jsonl is nested too deeply|line 1 of a\.jsonl is not"),
        ("a.jsonl", b'{"text": "\xff"}', r"line 1 of a\.jsonl is not UTF-8"),
        ("a.json", b'[{"text": "x"},\n 3]', r"entry 2 of a\.json has neither"),
        ("a.json", b"", r"a\.json is not valid JSON"),
        ("a.jsonl.gz", b"not gzip", r"a\.jsonl\.gz \(damaged \.gz"),
        ("a.jsonl.xz", b"not xz", r"a\.jsonl\.xz \(damaged \.xz"),
    ],
)
def test_a_malformed_file_is_refused_with_the_place(tmp_path: Path, name: str, data: bytes, expected: str) -> None:
    with pytest.raises(CalibrationError, match=expected):
        read_documents(write(tmp_path, name, data))


def test_a_missing_file_and_a_folder_are_said(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"gone\.txt not found"):
        read_documents(tmp_path / "gone.txt")
    with pytest.raises(CalibrationError, match="is a folder"):
        read_documents(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is not None, reason="pyarrow is installed")
def test_parquet_without_pyarrow_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match="pip install pyarrow"):
        read_documents(write(tmp_path, "a.parquet", b"PAR1"))


def test_parquet_gives_its_column_of_text_or_messages(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"id": [1, 2, 3], "text": ["one", None, "zwei"]}), tmp_path / "a.parquet")
    assert read_documents(tmp_path / "a.parquet") == (["one", "zwei"], [])
    parquet.write_table(pyarrow.table({"messages": [CHAT]}), tmp_path / "b.parquet")
    assert read_documents(tmp_path / "b.parquet") == ([CHAT], [])
    parquet.write_table(pyarrow.table({"question": ["?"]}), tmp_path / "c.parquet")
    with pytest.raises(CalibrationError, match=r"no column 'text' or 'messages' \(its columns: question"):
        read_documents(tmp_path / "c.parquet")
    with pytest.raises(CalibrationError, match="not readable Parquet"):
        read_documents(write(tmp_path, "d.parquet", b"PAR1 no table PAR1"))
