"""The pass keeps its promises: same bytes with any threads and after any kill, shards as llama.cpp names them."""

import hashlib
import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from quantkit.journal import JournalFile
from tests.helpers.command import command, quantkit
from tests.helpers.forked import start_process
from tests.helpers.kills import disturbed
from tests.helpers.tiny import tiny_llama

TYPES = ("-t", "q4_0", "-t", "q2_k", "-t", "q4_k_m", "-t", "q8_0")


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.gguf"))}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that a conversion takes a second or two: kills land in the middle of it."""
    folder = tmp_path_factory.mktemp("source") / "model"
    return tiny_llama(folder, variant="llama3", hidden=512, intermediate=1536, layers=4, heads=8, shards=3)


@pytest.fixture(scope="module")
def undisturbed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed")
    answer = quantkit("gguf", checkpoint, *TYPES, "-o", out, "--no-logits")
    assert answer.code == 0, answer.stderr
    digests = hashes(out / "model-GGUF")
    assert len(digests) == 4
    return digests


# one is the default in a test's process, which `undisturbed` has
@pytest.mark.parametrize("threads", [pytest.param(2, marks=pytest.mark.full), 7])
def test_threads_change_no_byte(checkpoint: Path, undisturbed: dict[str, str], tmp_path: Path, threads: int) -> None:
    answer = quantkit("gguf", checkpoint, *TYPES, "-o", tmp_path, "--no-logits", "--threads", str(threads))
    assert answer.code == 0, answer.stderr
    assert hashes(tmp_path / "model-GGUF") == undisturbed


@pytest.mark.parametrize("most", [12, pytest.param(30, marks=pytest.mark.full)])
def test_a_conversion_killed_many_times_ends_in_the_same_bytes(
    most: int, checkpoint: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "model-GGUF"
    unfinished = kills = 0
    moments = random.Random(20)
    while kills < most:
        process = start_process(
            command("gguf", checkpoint, *TYPES, "-o", tmp_path, "--no-logits", "--threads", "1", "--force"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # From the first partial file on, so that the moment lies in the pass or the finish, not in the imports.
        while process.poll() is None and not list(out.glob("*.gguf.partial")):
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.12))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        unfinished += (tmp_path / "model-conversion.partial" / "journal").exists()
        if process.returncode == 0:
            assert hashes(out) == undisturbed
    assert unfinished >= most // 2
    answer = quantkit("gguf", checkpoint, *TYPES, "-o", tmp_path, "--no-logits", "--force")
    assert answer.code == 0, answer.stderr
    assert hashes(out) == undisturbed
    assert not list(out.glob("*.partial"))


def test_a_resumed_run_skips_what_is_done_and_refuses_other_options(checkpoint: Path, tmp_path: Path) -> None:
    interrupted(checkpoint, tmp_path, lines=5)
    other = quantkit("gguf", checkpoint, "-t", "q5_0", "-o", tmp_path, "--no-logits")
    assert other.code == 1
    assert f"unfinished run with --type {', '.join(TYPES[1::2])} (now q5_0); finish it" in other.sentence
    resumed = quantkit("gguf", checkpoint, *TYPES, "-o", tmp_path, "--no-logits", "--format", "json")
    assert resumed.code == 0, resumed.stderr
    assert json.loads(resumed.stdout)["resumed_tensors"] >= 5


def test_force_throws_an_unfinished_run_away_with_its_files(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "model-GGUF"
    killed(checkpoint, tmp_path, lambda: len(list(out.glob("*.gguf.partial"))) == 4)
    answer = quantkit("gguf", checkpoint, "-t", "q5_0", "-o", tmp_path, "--no-logits", "--force")
    assert answer.code == 0, answer.stderr
    assert sorted(path.name for path in out.iterdir()) == ["model-Q5_0.gguf", "quantkit.json"]


def test_a_changed_source_is_not_resumed(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model", variant="llama3", hidden=512, intermediate=1536, layers=4, heads=8)
    interrupted(folder, tmp_path, lines=2)
    tiny_llama(folder, variant="llama3", hidden=512, intermediate=1536, layers=4, heads=8, seed=1)
    answer = quantkit("gguf", folder, *TYPES, "-o", tmp_path, "--no-logits")
    assert answer.code == 1
    assert "unfinished run with other files of the source;" in answer.sentence


def interrupted(checkpoint: Path, folder: Path, *, lines: int) -> Path:
    """A conversion killed once its journal has so many lines; the folder of its partial files."""
    journal = folder / "model-conversion.partial" / "journal"
    return killed(checkpoint, folder, lambda: journal.exists() and journal.read_text().count("\n") > lines)


def killed(checkpoint: Path, folder: Path, at_the_point: Callable[[], bool]) -> Path:
    """A conversion killed at a point; the folder of its partial files."""
    words = command("gguf", checkpoint, *TYPES, "-o", folder, "--no-logits", "--threads", "1")
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    made = folder / "model-GGUF"
    disturbed(lambda: start_process(words, **silent), at_the_point, lambda process: process.kill(), made)
    return made


def test_a_partial_file_removed_meanwhile_is_made_anew(
    checkpoint: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    out = interrupted(checkpoint, tmp_path, lines=20)
    (out / "model-Q8_0.gguf.partial").unlink()
    answer = quantkit("gguf", checkpoint, *TYPES, "-o", tmp_path, "--no-logits", "--format", "json")
    assert answer.code == 0, answer.stderr
    assert json.loads(answer.stdout)["resumed_tensors"] == 0
    assert hashes(out) == undisturbed


def test_a_journal_of_an_earlier_start_of_the_machine_is_not_believed(
    checkpoint: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    out = interrupted(checkpoint, tmp_path, lines=20)
    journal = tmp_path / "model-conversion.partial" / "journal"
    file = JournalFile(journal, "")
    assert file.head is not None
    file.start({**file.head, "boot": "another"}, file.lines)
    file.close()
    answer = quantkit("gguf", checkpoint, *TYPES, "-o", tmp_path, "--no-logits", "--format", "json")
    assert answer.code == 0, answer.stderr
    assert json.loads(answer.stdout)["resumed_tensors"] == 0
    assert hashes(out) == undisturbed


def test_a_finish_that_was_cut_short_is_finished_and_a_lost_one_made_anew(
    checkpoint: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    words = ("gguf", checkpoint, *TYPES, "-o", tmp_path, "--no-logits")
    out = interrupted(checkpoint, tmp_path, lines=3)
    journal = tmp_path / "model-conversion.partial" / "journal"
    file = JournalFile(journal, "")
    assert file.head is not None
    file.start(file.head, [{"finishing": undisturbed}])
    file.close()
    finishing = journal.read_bytes()
    shutil.rmtree(journal.parent)
    assert quantkit(*words).code == 0
    # Killed between the first and the second rename.
    journal.parent.mkdir()
    journal.write_bytes(finishing)
    (out / "model-Q8_0.gguf").rename(out / "model-Q8_0.gguf.partial")
    assert quantkit(*words).code == 0
    assert hashes(out) == undisturbed
    assert not list(out.glob("*.partial"))
    journal.parent.mkdir()
    journal.write_bytes(finishing)
    for path in out.glob("*.gguf"):
        path.unlink()
    assert quantkit(*words).code == 0
    assert hashes(out) == undisturbed


def test_shards_hold_every_tensor_once_under_llama_cpps_names(checkpoint: Path, tmp_path: Path) -> None:
    whole = quantkit("gguf", checkpoint, "-t", "q8_0", "-o", tmp_path / "whole", "--no-logits")
    split = quantkit("gguf", checkpoint, "-t", "q8_0", "-o", tmp_path / "split", "--split-max-size", "4M")
    assert (whole.code, split.code) == (0, 0), split.stderr
    shards = sorted((tmp_path / "split" / "model-GGUF").glob("*.gguf"))
    count = len(shards)
    assert count > 2
    assert [path.name for path in shards] == [f"model-Q8_0-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)]
    assert all(sum(t.n_bytes for t in GGUFReader(path).tensors) <= 4_000_000 for path in shards)
    tensors = {t.name: t.data for path in shards for t in GGUFReader(path).tensors}
    expected = {t.name: t.data for t in GGUFReader(tmp_path / "whole" / "model-GGUF" / "model-Q8_0.gguf").tensors}
    assert tensors.keys() == expected.keys()
    assert all(np.array_equal(tensors[name], expected[name]) for name in expected)
    again = quantkit("gguf", shards[0], "-t", "q8_0", "-o", tmp_path / "joined", "--name", "model")
    assert again.code == 0, again.stderr
    assert hashes(tmp_path / "joined" / "model-GGUF") == hashes(tmp_path / "whole" / "model-GGUF")


def test_the_origin_record_tells_source_hashes_types_and_checks(checkpoint: Path, tmp_path: Path) -> None:
    for kind in ("q4_0", "q8_0"):
        assert quantkit("gguf", checkpoint, "-t", kind, "-o", tmp_path, "--no-logits").code == 0
    folder = tmp_path / "model-GGUF"
    record = json.loads((folder / "quantkit.json").read_text())
    assert set(record["outputs"]) == {"model-Q4_0", "model-Q8_0"}
    entry = record["outputs"]["model-Q4_0"]
    file = folder / "model-Q4_0.gguf"
    assert entry["files"][file.name] == {
        "bytes": file.stat().st_size,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    header = (checkpoint / "model-00001-of-00003.safetensors").read_bytes()
    length = int.from_bytes(header[:8], "little")
    assert entry["origin"]["header_sha256"]["model-00001-of-00003.safetensors"] in (
        hashlib.sha256(header[8 : 8 + length]).hexdigest(),
        hashlib.sha256(header[: 8 + length]).hexdigest(),
    )
    assert {check["name"]: check["status"] for check in entry["checks"]}["tokens"] == "passed"
    assert str(tmp_path) not in json.dumps(record)


def test_a_dry_run_writes_nothing_and_states_the_sizes_that_follow(checkpoint: Path, tmp_path: Path) -> None:
    dry = quantkit("gguf", checkpoint, *TYPES, "-o", tmp_path, "--dry-run", "--format", "json")
    assert dry.code == 0, dry.stderr
    assert not list(tmp_path.iterdir())
    stated = {file["name"]: file["bytes"] for item in json.loads(dry.stdout)["outputs"] for file in item["files"]}
    assert quantkit("gguf", checkpoint, *TYPES, "-o", tmp_path, "--no-logits").code == 0
    assert stated == {path.name: path.stat().st_size for path in (tmp_path / "model-GGUF").glob("*.gguf")}
