"""A run that is stopped, whose source or output changes meanwhile, or whose child dies, costs nothing."""

import random
import signal
import subprocess
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.helpers.command import command, quantkit_process
from tests.helpers.fault_points import CASES, PAUSES, RUNS, TIMED, Case, Place, check, running_place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("interruptions")
    with running_place(folder, FAULTS_CLOCK="3600") as place:
        yield place


def some(run: str, case: Case, count: int, points: int) -> list[int]:
    """Operations of the second half of a run, which has something to lose then; the last one is among them."""
    return [*random.Random(run + case.name).sample(range(count // 2, count), points - 1), count]


@pytest.mark.parametrize("case", PAUSES, ids=lambda case: case.name)
def test_a_pause_and_what_happens_in_it_cost_nothing(place: Place, case: Case) -> None:
    """SIGSTOP and SIGCONT; the source is cut, or the output removed meanwhile. The clock goes back all the time."""
    count, _, expected = place.undisturbed("gptq", case)
    check(place, "gptq", case, some("gptq", case, count, 2), expected)


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", PAUSES, ids=lambda case: case.name)
@pytest.mark.parametrize("run", RUNS)
def test_a_pause_in_any_run_costs_nothing(place: Place, run: str, case: Case) -> None:
    count, _, expected = place.undisturbed(run, case)
    check(place, run, case, some(run, case, count, min(5, count // 2)), expected)


def test_a_clock_that_goes_back_changes_no_output(place: Place) -> None:
    """Every look at the clock gives a time that is an hour before the last one; then runs with the true one."""
    _, _, expected = place.undisturbed("convert", TIMED)
    place.clean()
    true = quantkit_process(*RUNS["convert"], cwd=place.folder)
    assert true.code == 0, true.stderr
    assert place.facts() == expected


@pytest.mark.full
@pytest.mark.parametrize("run", ["measure", "bake"])
def test_a_clock_that_goes_back_between_runs_repeats_nothing(place: Place, run: str) -> None:
    _, _, expected = place.undisturbed(run, TIMED)
    again = place.runs.run(*RUNS[run], *(["--force"] if run == "measure" else []), cwd=place.folder).answer
    assert again.code == 0, again.stderr
    assert place.facts() == expected


@pytest.mark.full
@pytest.mark.parametrize("run", ["measure", "bake"])
def test_a_child_that_is_killed_is_one_sentence_and_the_rerun_completes(place: Place, run: str) -> None:
    _, duration, expected = place.undisturbed(run, TIMED)
    for share in (0.3, 0.6, 0.8):
        place.clean()
        process = subprocess.Popen(
            command(*RUNS[run]), cwd=place.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        time.sleep(1 + share * duration)
        for child in psutil.Process(process.pid).children(recursive=True):
            child.send_signal(signal.SIGKILL)
        _, stderr = process.communicate(timeout=120)
        assert process.returncode in (0, 1) and "Traceback" not in stderr, stderr
        again = quantkit_process(*RUNS[run], cwd=place.folder)
        assert again.code == 0 or "--force" in again.stderr, again.stderr
        assert place.facts() == expected


def test_a_second_command_is_refused_while_the_first_one_is_stopped(place: Place) -> None:
    _, _, expected = place.undisturbed("gptq", TIMED)
    place.clean()
    refused = []

    def second() -> None:
        refused.append(quantkit_process(*RUNS["gptq"], cwd=place.folder))

    first = place.runs.run(
        *RUNS["gptq"], cwd=place.folder, under=place.folder / "out", calls="w", at=20, error=-1, stopped=second
    ).answer
    assert refused[0].code == 1 and "another quantkit is writing into" in refused[0].sentence
    assert first.code == 0, first.stderr
    assert place.facts() == expected


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("run", ["converter", "bridged projector", "bridged calibration"])
def test_twenty_kills_of_a_run_with_llama_cpps_converter_cost_nothing(place: Place, run: str) -> None:
    """Ten at a write, flush or rename, the last one among them, and ten at a time."""
    rng = random.Random(run)
    count, duration, expected = place.undisturbed(run, CASES[3])
    check(place, run, CASES[3], [*rng.sample(range(1, count), 9), count], expected)
    check(place, run, TIMED, [rng.uniform(0, duration) for _ in range(10)], expected)
