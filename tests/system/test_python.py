"""What Python 3.10 lacks, and what every later Python does instead."""

import hashlib
import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from quantkit.system import python


@pytest.mark.parametrize("version", [sys.version_info, (3, 10, 13)])
def test_a_module_runs_as_a_program_and_imports_nothing_from_the_current_folder(
    version: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "gzip.py").write_text("raise SystemExit('imported from the current folder')")
    monkeypatch.setattr(python, "sys", SimpleNamespace(executable=sys.executable, version_info=version))
    command = [*python.module_command("gzip"), "-h"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "gzip" in done.stdout and "usage" in done.stdout


def test_the_digest_of_a_file_is_that_of_all_its_bytes() -> None:
    data = bytes(range(256)) * 10_000
    assert python.file_sha256(io.BytesIO(data)) == hashlib.sha256(data).hexdigest()
