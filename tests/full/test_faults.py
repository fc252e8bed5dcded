"""Every read, write, fsync and rename of a run fails in turn, or is where it is killed: nothing is lost, same bytes."""

import random
from collections.abc import Iterator

import pytest

from tests.helpers.fault_points import CASES, RUNS, STREAMS, TIMED, Case, Place, check, make_place
from tests.helpers.faults import faulty_runs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("faults")
    with faulty_runs(folder / "faults") as runs:
        yield make_place(folder, runs)


@pytest.mark.parametrize(("run", "case"), [("convert", 0), ("convert", 1), ("convert", 2), ("shards", 3)])
def test_a_few_faults_cost_nothing(place: Place, run: str, case: int) -> None:
    count, _, expected = place.undisturbed(run, CASES[case])
    check(place, run, CASES[case], random.Random(f"{run} {case}").sample(range(1, count + 1), 1), expected)


@pytest.mark.parametrize(
    ("run", "points"),
    [
        pytest.param(run, count, marks=[pytest.mark.full] if count > 1 else [])
        for run in ("convert", "shards")
        for count in (1, 50)
    ],
)
def test_a_read_that_fails_in_llama_cpp_fails_no_check(place: Place, run: str, points: int) -> None:
    count, _, expected = place.undisturbed(run, STREAMS)
    check(place, run, STREAMS, random.Random(run).sample(range(1, count + 1), points), expected)


@pytest.mark.full
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("run", RUNS)
def test_every_fault_costs_nothing(place: Place, run: str, case: Case) -> None:
    count, _, expected = place.undisturbed(run, case)
    check(place, run, case, range(1, count + 1), expected)


@pytest.mark.full
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("run", RUNS)
def test_a_kill_at_any_time_costs_nothing(place: Place, run: str) -> None:
    """1,000 kills together with those of the test before this one."""
    _, duration, expected = place.undisturbed(run, TIMED)
    rng = random.Random(run)
    check(place, run, TIMED, [rng.uniform(0, duration) for _ in range(100)], expected)
