"""Writing: nothing half-written under a final name, nothing through a link, refusals in one sentence."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from quantkit import files
from quantkit.errors import OutputError


def test_a_file_is_written_whole_and_no_partial_is_left(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    files.write_atomically(path, "ü\n")
    files.write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_former_file_and_no_partial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    path.write_text("former")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"cannot write .*report\.json: No space left on device"):
        files.write_atomically(path, "new")
    assert path.read_text() == "former"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_planted_at_the_partial_name_is_refused_and_its_target_is_untouched(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("precious")
    (tmp_path / "m.gguf.partial").symlink_to(target)
    for write in (
        lambda: files.write_atomically(tmp_path / "m.gguf", "data"),
        lambda: files.open_partial(tmp_path / "m.gguf.partial", keep=False),
    ):
        with pytest.raises(OutputError, match=r"m\.gguf\.partial is a link.*remove the link"):
            write()
    assert target.read_text() == "precious"


def test_a_pipe_at_the_partial_name_is_refused_without_waiting_for_a_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="pipe is not a regular file; remove it"):
        files.open_partial(tmp_path / "pipe", keep=False)


@pytest.mark.parametrize("keep", [True, False])
def test_a_partial_file_is_kept_or_emptied(tmp_path: Path, keep: bool) -> None:
    path = tmp_path / "m.gguf.partial"
    path.write_bytes(b"half")
    os.close(files.open_partial(path, keep=keep))
    assert path.read_bytes() == (b"half" if keep else b"")


def test_a_folder_that_cannot_be_created_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot create .*file/out: Not a directory; choose another folder with -o"):
        files.make_folder(tmp_path / "file" / "out")


def test_outputs_that_exist_are_refused_without_force(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    paths = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(OutputError, match=r"b already exists; add --force to overwrite it"):
        files.refuse_existing(paths, force=False)
    files.refuse_existing(paths, force=True)


def test_space_that_a_killed_run_owns_counts_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = tmp_path / "m.gguf.partial"
    partial.write_bytes(bytes(1 << 20))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))  # type: ignore[attr-defined]
    files.require_space(tmp_path, 1 << 20, [partial, tmp_path / "missing"])
    with pytest.raises(OutputError, match=r"has 0 B free but the outputs take 1.05 MB; free some space"):
        files.require_space(tmp_path, 1 << 20)


def test_free_space_of_a_folder_that_does_not_exist_yet_is_its_parents(tmp_path: Path) -> None:
    assert files.free_space(tmp_path / "a" / "b") > 0
