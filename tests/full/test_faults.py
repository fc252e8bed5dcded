"""Every read, write, fsync and rename of a run fails in turn, or is where it is killed: nothing is lost, same bytes."""

import random
from collections.abc import Iterator

import pytest

from tests.helpers.fault_points import (
    CASES,
    PAUSES,
    RUNS,
    STREAMS,
    TIMED,
    Case,
    Place,
    check,
    distinct_read_faults,
    running_place,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with running_place(tmp_path_factory.mktemp("faults")) as place:
        yield place


@pytest.mark.parametrize(("run", "case"), [("convert", 0), ("convert", 1), ("convert", 2), ("shards", 3)])
def test_a_few_faults_cost_nothing(place: Place, run: str, case: int) -> None:
    count, _, expected = place.undisturbed(run, CASES[case])
    check(place, run, CASES[case], random.Random(f"{run} {case}").sample(range(1, count + 1), 1), expected)


@pytest.mark.parametrize("run", ["convert", "shards"])
def test_a_read_that_fails_in_llama_cpp_fails_no_check(place: Place, run: str) -> None:
    count, _, expected = place.undisturbed(run, STREAMS)
    check(place, run, STREAMS, random.Random(run).sample(range(1, count + 1), 1), expected)


def test_an_adapter_loses_nothing_at_its_last_writes(place: Place) -> None:
    """Its record comes before its final name, so that a file with that name is complete.

    An output that is removed at the last write is an error.
    """
    for case in (*CASES[2:], PAUSES[2]):
        count, _, expected = place.undisturbed("lora", case)
        check(place, "lora", case, range(count - 3, count + 1), expected)


@pytest.mark.full
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("run", ["convert", "shards", "measure", "callback", "bake"])
def test_every_read_of_llama_cpp_fails_in_turn_and_costs_nothing(place: Place, run: str) -> None:
    """Reads or so have a few dozen outcomes; each outcome disturbs a whole run."""
    _, _, expected = place.undisturbed(run, STREAMS)
    count, points = distinct_read_faults(place, run)
    print(f"{run}: {count} reads, {len(points)} outcomes")
    assert count > 1000
    check(place, run, STREAMS, points, expected)


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
