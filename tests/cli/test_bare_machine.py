"""A machine without what most have: a cache to write, /dev/shm, space in /tmp, a disk that is not full."""

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.helpers.command import Answer, command, quantkit, quantkit_process
from tests.helpers.hub_server import Repo, running_hub
from tests.helpers.tiny import tiny_llama
from tests.helpers.tiny_tokenizers import CORPUS

FEW = ("--samples", "8", "--seq-len", "32", "--raw", "--group-size", "32", "--threads", "1")
NO_SHM = (
    'mkdir "$ROOM/dev"; mount --rbind /dev "$ROOM/dev"; mount -t tmpfs none /dev;'
    ' for file in null zero urandom random tty; do touch /dev/$file; mount --bind "$ROOM/dev/$file" /dev/$file; done;'
    ' ln -s /proc/self/fd /dev/fd; test ! -e /dev/shm'
)  # fmt: skip


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system gives no mount namespaces")
    folder = tmp_path_factory.mktemp("bare")
    tiny_llama(folder / "model", variant="llama3", hidden=64, intermediate=96)
    (folder / "text.txt").write_text(CORPUS, "utf-8")
    made = quantkit("convert", "model", "-t", "q8_0", "-t", "awq", *FEW, "-o", "whole", cwd=folder)
    assert made.code == 0, made.stderr
    return folder


def bare(here: Path, setup: str, *words: str | Path, **environment: str) -> Answer:
    """Run a command after the shell commands `setup`, in a mount namespace of its own; $ROOM is an empty folder."""
    room = here / f"room-{len(list(here.glob('room-*')))}"
    room.mkdir()
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-ec", f'{setup}; exec "$@"', "sh", *command(*words)],
        cwd=here,
        env={**os.environ, "COLUMNS": "80", "ROOM": str(room), **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "quantkit.json"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


CONVERT = ("convert", "model", "-t", "q8_0", "-t", "awq", *FEW, "-o")


def test_without_dev_shm_and_with_a_cache_that_cannot_be_written_the_bytes_are_the_same(here: Path) -> None:
    setup = (
        f'{NO_SHM}; mkdir "$ROOM/cache"; mount -t tmpfs -o ro none "$ROOM/cache"; export XDG_CACHE_HOME="$ROOM/cache"'
    )
    answer = bare(here, setup, *CONVERT, "bare")
    assert answer.code == 0, answer.stderr
    assert "passed" in answer.stdout and "skipped" not in answer.stdout
    assert hashes(here / "bare") == hashes(here / "whole")


MEASURE = ("measure", "model", "whole/model-GGUF/model-Q8_0.gguf", "--text", "text.txt", "--ctx", "32")
MEASURE += ("--chunks", "2", "--gpu-layers", "none", "--format", "json", "-o")


@pytest.mark.full
def test_without_dev_shm_a_measurement_has_the_same_figures(here: Path) -> None:
    reports = [quantkit_process(*MEASURE, "usual", cwd=here), bare(here, NO_SHM, *MEASURE, "without")]
    first, second = (json.loads(answer.stdout)["models"] for answer in reports)
    assert [model["quality"] for model in first] == [model["quality"] for model in second]


FULL = (
    'mkdir "$ROOM/tmp"; for at in /dev/shm "$ROOM/tmp"; do mount -t tmpfs -o size=8k none "$at"; done;'
    ' export TMPDIR="$ROOM/tmp"'
)


def test_a_full_tmp_and_dev_shm_keep_the_work_and_a_rerun_resumes(here: Path) -> None:
    """24 tokens' logits over 512 words take 49 kB."""
    answer = bare(here, FULL, *CONVERT, "full")
    assert answer.code == 1 and "No space left on device" in answer.sentence, answer
    assert not list((here / "full").rglob("*.failed"))
    assert (here / "full" / "model-conversion.partial").is_dir()
    again = quantkit("convert", *CONVERT[1:], "full", cwd=here)
    assert again.code == 0, again.stderr
    assert hashes(here / "full") == hashes(here / "whole")


@pytest.mark.full
def test_a_full_tmp_ends_a_measurement_in_one_sentence_and_a_rerun_completes(here: Path) -> None:
    answer = bare(here, FULL, *MEASURE, "measured")
    assert answer.code == 1 and "free some space" in answer.sentence, answer
    assert quantkit_process(*MEASURE, "measured", cwd=here).code == 0


@pytest.mark.full
@pytest.mark.parametrize("size", [f"{size}k" for size in range(200, 1500, 100)])
def test_an_output_disk_that_fills_up_is_one_sentence(here: Path, size: str) -> None:
    """The space is checked before; a limit of file size stands for a disk that fills up later."""
    setup = f'mkdir "$ROOM/out"; mount -t tmpfs -o size={size} none "$ROOM/out"; cd "$ROOM"; ln -s ../model .'
    answer = bare(here, setup, *CONVERT, "out")
    assert answer.code in (0, 1), answer
    assert answer.code == 0 or answer.sentence


@pytest.mark.full
@pytest.mark.parametrize("blocks", [20, 100, 300])
def test_a_limit_of_file_size_is_one_sentence(here: Path, blocks: int) -> None:
    answer = bare(here, f"ulimit -f {blocks}", *CONVERT, f"limited-{blocks}")
    assert answer.code == 1 and answer.sentence, answer
    again = quantkit_process(*CONVERT, f"limited-{blocks}", cwd=here)
    assert again.code == 0, again.stderr
    assert hashes(here / f"limited-{blocks}") == hashes(here / "whole")


@pytest.mark.full
def test_a_hub_cache_that_cannot_be_written_serves_what_it_holds(here: Path) -> None:
    files = {path.name: path.read_bytes() for path in (here / "model").iterdir()}
    with running_hub() as hub:
        hub.repos["some-org/model"] = Repo(files)
        variables = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(here / "home"), "HF_HUB_OFFLINE": "0"}
        words = ("gguf", "some-org/model", "-t", "q8_0", "--no-logits", "-o")
        assert quantkit_process(*words, "fetched", cwd=here, env=variables).code == 0
        read_only = f'mount --bind "{here}/home" "{here}/home"; mount -o remount,ro,bind "{here}/home"'
        answer = bare(here, read_only, *words, "cached", **variables)
        assert answer.code == 0, answer.stderr
        assert hashes(here / "cached") == hashes(here / "fetched")
        (here / "empty").mkdir()
        other = f'mount -t tmpfs -o ro none "{here}/empty"'
        answer = bare(here, other, *words, "not-cached", **{**variables, "HF_HOME": str(here / "empty")})
        assert answer.code == 1 and "HF_H" in answer.sentence, answer


@pytest.mark.full
def test_a_read_only_output_folder_is_named(here: Path) -> None:
    answer = bare(
        here, 'mkdir "$ROOM/out"; mount -t tmpfs -o ro none "$ROOM/out"; cd "$ROOM"; ln -s ../model .', *CONVERT, "out"
    )
    assert answer.code == 1 and "Read-only file system" in answer.sentence, answer
