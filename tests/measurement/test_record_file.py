"""Records of windows come back as they were written; what a power cut or a full disk left is not taken for one."""

import errno
import os
import random
from pathlib import Path

import numpy as np
import pytest

from quantkit.errors import OutputError
from quantkit.measurement.record_file import RecordFile
from quantkit.measurement.scores import RECORD

WINDOWS, SCORED = 5, 7


def scores(window: int) -> np.ndarray:
    rng = np.random.default_rng(window)
    values = np.zeros(SCORED, RECORD)
    values["loss"], values["kl"] = rng.uniform(1, 9, SCORED), rng.uniform(0, 1, SCORED)
    return values


def written(path: Path) -> bytes:
    file = RecordFile(path, WINDOWS, SCORED)
    for window in (0, 1, 2, 4):
        file.keep(window, scores(window))
    file.close()
    return path.read_bytes()


def known(path: Path) -> list[int]:
    """The windows that a new reader takes, each as it was written."""
    file = RecordFile(path, WINDOWS, SCORED)
    file.close()
    windows = [window for window in range(WINDOWS) if not np.isnan(file.values["loss"][window]).any()]
    for window in windows:
        np.testing.assert_array_equal(file.values[window], scores(window))
    return windows


def test_windows_come_back_and_one_that_is_missing_is_not_zero(tmp_path: Path) -> None:
    written(tmp_path / "records")
    assert known(tmp_path / "records") == [0, 1, 2, 4]


def test_zeros_cuts_and_changed_bytes_cost_their_window_alone(tmp_path: Path) -> None:
    path = tmp_path / "records"
    data = written(path)
    size = len(data) // WINDOWS
    rng = random.Random(0)
    for _ in range(50):
        start = rng.randrange(len(data))
        stop = min(len(data), start + rng.randint(1, 2 * size))
        path.write_bytes(data[:start] + bytes(stop - start) + data[stop:])
        assert set(known(path)) >= {0, 1, 2, 4} - set(range(start // size, (stop - 1) // size + 1))
        path.write_bytes(data[:start])
        assert known(path) == [window for window in (0, 1, 2, 4) if (window + 1) * size <= start]
    path.write_bytes(bytes(len(data)))
    assert known(path) == []
    path.write_bytes(data[size : 2 * size] + data[:size] + data[2 * size :])
    assert known(path) == [2, 4]


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = RecordFile(tmp_path / "records", WINDOWS, SCORED)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(OutputError, match="No space left on device; free some space and run the command again"):
            file.keep(0, scores(0))
    file.close()
