"""The lines of a benchmark's table, the bounds they are held against, and the machine they were measured on."""

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.process import Measured

REPOSITORY = Path(__file__).resolve().parents[1]
WORK = REPOSITORY / ".cache" / "bench"
_RESULTS = REPOSITORY / "bench-output"


@dataclass(frozen=True)
class Target:
    """One line of the table: a figure, and the bound it is held against (None: for information)."""

    what: str
    model: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def verdict(self) -> str:
        if self.at_most is not None and self.at_least is not None:
            within = self.at_least <= self.value <= self.at_most
            return f"{'ok  ' if within else 'MISS'} ({self.at_least:g} to {self.at_most:g})"
        if self.at_most is not None:
            return f"{'ok  ' if self.value <= self.at_most else 'MISS'} (at most {self.at_most:g})"
        if self.at_least is not None:
            return f"{'ok  ' if self.value >= self.at_least else 'MISS'} (at least {self.at_least:g})"
        return ""


@dataclass
class Lines:
    """The lines of one run, printed as they come; `raw`: all that was measured."""

    lines: list[Target] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)

    def add(self, line: Target) -> None:
        self.lines.append(line)
        print(
            f"  {line.what:<52} {line.model:<15} {line.value:>9.3f} {line.unit:<5} {line.verdict}".rstrip(), flush=True
        )

    def save(self, name: str, facts: dict[str, Any]) -> None:
        """Write bench-output/NAME.json."""
        _RESULTS.mkdir(exist_ok=True)
        document = {"machine": facts, "lines": [asdict(line) for line in self.lines], "runs": self.raw}
        (_RESULTS / f"{name}.json").write_text(json.dumps(document, indent=2))


def figures(run: Measured) -> dict[str, Any]:
    """What was measured of a command, without its words."""
    return {key: value for key, value in asdict(run).items() if key != "stdout"}


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, its vector units, cores, memory, software; nothing that names the host."""
    cpu = Path("/proc/cpuinfo").read_text()
    model = next((line.partition(":")[2].strip() for line in cpu.splitlines() if line.startswith("model name")), "")
    flags = next((line.partition(":")[2].split() for line in cpu.splitlines() if line.startswith("flags")), [])
    return {
        "processor": model or platform.machine(),
        "vector units": [
            flag for flag in ("avx", "avx2", "fma", "f16c", "avx512f", "avx512_bf16", "amx_tile") if flag in flags
        ],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE") / 1e9, 1),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "llama-cpp-python": version("llama-cpp-python"),
    }


def print_machine(facts: dict[str, Any]) -> None:
    """The machine in a line."""
    print("; ".join(f"{key}: {' '.join(value) if isinstance(value, list) else value}" for key, value in facts.items()))
