"""A bake's journal: which units are finished, and which files are its own."""

import os
from pathlib import Path

import pytest

from quantkit.errors import OutputError
from quantkit.recipes.bake.journal import BakeJournal


def opened(folder: Path) -> BakeJournal:
    return BakeJournal(folder / "m.bake.journal")


def test_a_finished_unit_is_current_until_its_files_or_inputs_change(tmp_path: Path) -> None:
    file = tmp_path / "out.gguf"
    journal = opened(tmp_path)
    assert not journal.current("q4_0", "a")
    journal.start("q4_0", "a", [file])
    file.write_bytes(b"x")
    journal.finish("q4_0", "a", [file], {"seconds": 1.5})
    journal.close()
    journal = opened(tmp_path)
    assert journal.current("q4_0", "a") and not journal.current("q4_0", "b")
    assert journal.record("q4_0") == {"seconds": 1.5}
    os.utime(file, ns=(1, 1))
    assert not journal.current("q4_0", "a")
    file.unlink()
    assert not journal.current("q4_0", "a")


@pytest.mark.parametrize("name", ["out.gguf", "m.bake.journal"])
def test_a_unit_whose_file_or_journal_was_removed_does_not_finish(name: str, tmp_path: Path) -> None:
    file = tmp_path / "out.gguf"
    journal = opened(tmp_path)
    journal.start("q4_0", "a", [file])
    file.write_bytes(b"x")
    (tmp_path / name).unlink()
    with pytest.raises(OutputError, match=f"{name} was removed during the bake; run the command again"):
        journal.finish("q4_0", "a", [file], {})


def test_what_somebody_else_left_is_not_ours(tmp_path: Path) -> None:
    file = tmp_path / "out.gguf"
    journal = opened(tmp_path)
    assert journal.ours("q4_0", [file])
    file.write_bytes(b"x")
    assert not journal.ours("q4_0", [file])
    journal.start("q4_0", "a", [file])
    assert journal.ours("q4_0", [file])
    journal.finish("q4_0", "a", [file], {})
    assert journal.ours("q4_0", [file])
    file.write_bytes(b"edited")
    assert not journal.ours("q4_0", [file])


def test_a_unit_that_ended_before_it_was_noted_is_complete(tmp_path: Path) -> None:
    file = tmp_path / "out.gguf"
    file.write_bytes(b"old")
    journal = opened(tmp_path)
    journal.start("q4_0", "a", [file])
    assert not journal.complete("q4_0", "a")
    journal.start("q4_0", "a", [file])
    file.write_bytes(b"new one")
    journal.start("q4_0", "a", [file])  # taken up again
    assert journal.complete("q4_0", "a") and not journal.complete("q4_0", "b")


def test_a_torn_last_line_is_forgotten(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.finish("awq", "a", [], {})
    journal.finish("gptq", "b", [], {})
    journal.close()
    data = journal.path.read_bytes()
    journal.path.write_bytes(data[:-9])
    journal = opened(tmp_path)
    assert journal.current("awq", "a") and not journal.current("gptq", "b")
    journal.finish("gptq", "b", [], {})
    journal.close()
    assert opened(tmp_path).current("gptq", "b")


def test_two_bakes_of_one_recipe_do_not_work_at_once(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    with pytest.raises(OutputError, match="another bake is writing"):
        opened(tmp_path)
    journal.close()
    opened(tmp_path).close()


@pytest.mark.parametrize("data", [b"{}\n", b"[1]\n", b"no JSON\n", b'{"format":"quantkit-bake","version":2}\n'])
def test_a_file_that_is_no_journal_is_not_overwritten(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.bake.journal").write_bytes(data)
    with pytest.raises(OutputError, match="not a journal of a bake"):
        opened(tmp_path)
    assert (tmp_path / "m.bake.journal").read_bytes() == data
