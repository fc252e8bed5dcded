"""A calibrated conversion that is killed again and again ends in the same bytes."""

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.calibrated import SMALL, hashes
from tests.helpers.command import command, quantkit
from tests.helpers.tiny import tiny_llama

KINDS = ("-t", "awq", "-t", "gptq", "-t", "q8_0", "-t", "q2_k")


@pytest.mark.full
def test_a_conversion_killed_at_ten_moments_ends_in_the_same_bytes(tmp_path: Path) -> None:
    """tests/conversion/test_calibrated.py kills AWQ and GPTQ alone; here the GGUF part too."""
    deep = tiny_llama(tmp_path / "model", variant="llama3", hidden=256, intermediate=512, layers=12)
    assert quantkit("convert", deep, *KINDS, *SMALL, "-o", tmp_path / "undisturbed", "--threads", "2").code == 0
    expected, out = hashes(tmp_path / "undisturbed"), tmp_path / "out"
    words = command("convert", deep, *KINDS, *SMALL, "-o", out, "--threads", "2")
    moments, kills, in_gguf = random.Random(4), 0, 0
    while kills < 10:
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        gguf = kills >= 5
        while process.poll() is None and not (
            list(out.glob("model-GGUF/*.partial")) if gguf else layers_done(out) > 2 * kills
        ):
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.05 if gguf else 0.2))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        in_gguf += gguf
        assert not (out / "model-AWQ").exists()
        assert not (out / "model-GPTQ").exists()
    assert kills >= 6
    assert in_gguf >= 1
    answer = quantkit(*words[3:], *(["--force"] if not (out / "model-conversion.partial").exists() else []))
    assert answer.code == 0, answer.stderr
    assert hashes(out) == expected
    assert sorted(path.name for path in out.iterdir()) == ["model-AWQ", "model-GGUF", "model-GPTQ"]


def layers_done(out: Path) -> int:
    journal = out / "model-conversion.partial" / "journal"
    try:
        return journal.read_text().count('"tensor":"layer')
    except FileNotFoundError:
        return 0
