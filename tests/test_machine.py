"""The limits of the process: cores by affinity and quota, memory by control group and address space."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from quantkit import machine

GB = 10**9
OWN = "container/service"


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A control group file system of version 2 whose process is in container/service; no limit is set yet."""
    (tmp_path / "groups" / OWN).mkdir(parents=True)
    (tmp_path / "cgroup").write_text(f"0::/{OWN}\n")
    monkeypatch.setattr(machine, "CONTROL_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(machine, "CONTROL_GROUP_OF_PROCESS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_free_memory", lambda: 64 * GB)
    monkeypatch.setattr(machine, "_physical_memory", lambda: 128 * GB)
    monkeypatch.setattr(machine, "_address_space_limit", lambda: None)
    return tmp_path / "groups"


def limit(group: Path, most: str, used: int) -> None:
    (group / "memory.max").write_text(f"{most}\n")
    (group / "memory.current").write_text(f"{used}\n")


def test_without_a_limit_memory_is_the_machines(groups: Path) -> None:
    limit(groups / OWN, "max", GB)
    assert machine.available_memory() == 64 * GB
    assert machine.memory_limit() == 128 * GB


def test_memory_is_what_the_control_group_leaves(groups: Path) -> None:
    limit(groups / OWN, str(8 * GB), 3 * GB)
    assert machine.available_memory() == 5 * GB
    assert machine.memory_limit() == 8 * GB


def test_the_tightest_of_nested_groups_counts(groups: Path) -> None:
    limit(groups / OWN, str(8 * GB), GB)
    limit(groups / "container", str(4 * GB), 3 * GB)
    assert machine.available_memory() == GB
    assert machine.memory_limit() == 4 * GB


def test_a_group_over_its_limit_leaves_nothing(groups: Path) -> None:
    limit(groups / OWN, str(GB), 2 * GB)
    assert machine.available_memory() == 0


def test_version_1_of_control_groups_is_read_too(groups: Path) -> None:
    (groups / "memory").mkdir()
    (groups / "memory/memory.limit_in_bytes").write_text(str(2 * GB))
    (groups / "memory/memory.usage_in_bytes").write_text(str(GB))
    assert machine.available_memory() == GB
    assert machine.memory_limit() == 2 * GB


def test_version_1_without_a_limit_states_a_huge_number(groups: Path) -> None:
    (groups / "memory").mkdir()
    (groups / "memory/memory.limit_in_bytes").write_text(str((1 << 63) - 4096))
    (groups / "memory/memory.usage_in_bytes").write_text(str(GB))
    assert machine.memory_limit() == 128 * GB


def test_the_address_space_limit_counts(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_address_space_limit", lambda: 3 * GB)
    assert machine.available_memory() == machine.memory_limit() == 3 * GB


def test_an_address_space_limit_is_read_from_the_kernel() -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, resource.RLIM_INFINITY))

    kept = "import resource; print(resource.getrlimit(resource.RLIMIT_AS)[0])"
    if int(subprocess.check_output([sys.executable, "-c", kept], preexec_fn=limited)) != 4 << 30:
        pytest.skip("the system ignores the limit, as qemu-user does")
    assert int(ask("memory_limit()", preexec_fn=limited)) <= 4 << 30


@pytest.mark.usefixtures("every_core")
@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 3), ("150000 100000", 2), ("10000 100000", 1)])
def test_cores_are_those_of_the_cpu_quota_rounded_up(
    groups: Path, quota: str, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    (groups / OWN / "cpu.max").write_text(quota + "\n")
    assert machine.cores() == cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_a_process_pinned_to_one_core_has_one() -> None:
    assert ask("cores()", preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})) == "1"


def test_peak_memory_is_at_least_what_is_held_now() -> None:
    assert machine.peak_memory() >= machine.resident_memory() * 0.9 > 1 << 20


def ask(expression: str, **options: object) -> str:
    """The value of `machine.EXPRESSION` in a process of its own."""
    code = f"from quantkit import machine; print(machine.{expression})"
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        **options,  # type: ignore[call-overload]
    ).stdout.strip()
