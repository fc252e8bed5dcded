"""`make bench`, third part: `quantkit measure` against llama-perplexity, their time and memory on the same windows.

Perplexity of each file, and the KL divergence of each from the first, for which llama-perplexity runs twice: once to
write the first's log probabilities, once to compare. quantkit is its whole command, its report and plots included;
llama-perplexity is compiled from the same llama.cpp that quantkit loads. The two take turns and the best run of each
counts; threads of llama.cpp wait asleep on both sides (OMP_WAIT_POLICY=PASSIVE), so that what else runs on the machine
does little harm. Results go to the terminal and, as JSON, to bench-output/measured.json.
"""

import argparse
import json
import os
import shutil
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from benchmarks.lines import WORK, Lines, Target, figures, machine, print_machine
from benchmarks.process import Measured, measure, warm
from demo.smollm2 import NAME, smollm2_checkpoint
from demo.wikitext import wikitext2_test
from tests.helpers.llama_perplexity import perplexity_command

REFERENCE, CANDIDATES = "bf16", ("q4_0", "q2_k")
_FOLDER = WORK / "measured"
_TEXT = _FOLDER / "wiki.test.raw"
_BASE = _FOLDER / "base.kld"
# as installed by pip: compiled once, not at each start
_COMPILED = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(WORK / "bytecode")}
_ENVIRONMENT = {**os.environ, **_COMPILED, "OMP_WAIT_POLICY": "PASSIVE"}


class PeakMemory(threading.Thread):
    """The most bytes that the processes started by this one hold together at a time, looked at five times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = 0
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.2):
            self.bytes = max(self.bytes, sum(_resident_bytes(pid) for pid in descendants(os.getpid())))

    def __enter__(self) -> "PeakMemory":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


class Bench(Lines):
    """The measurements of one run, over `chunks` windows of 512 tokens."""

    def __init__(self, threads: int, chunks: int, repeats: int) -> None:
        super().__init__()
        self.threads, self.chunks, self.repeats = threads, chunks, repeats

    def perplexity(self, kind: str) -> None:
        file = _file(kind)
        theirs = [perplexity_command(file, _TEXT, chunks=self.chunks, threads=self.threads)]
        self._side_by_side("perplexity", kind, self._ours(file), theirs)

    def divergence(self, kind: str) -> None:
        reference, file = _file(REFERENCE), _file(kind)
        theirs = [
            perplexity_command(reference, _TEXT, chunks=self.chunks, threads=self.threads, base=_BASE),
            perplexity_command(file, _TEXT, chunks=self.chunks, threads=self.threads, base=_BASE, kl=True),
        ]
        self._side_by_side("KL divergence", kind, self._ours(reference, file), theirs)
        _BASE.unlink()

    def _ours(self, *files: Path) -> list[str]:
        words = [sys.executable, "-m", "quantkit", "measure", *map(str, files), "--text", str(_TEXT)]
        words += ["--chunks", str(self.chunks), "--threads", str(self.threads), "--gpu-layers", "none", "--force"]
        return [*words, "-o", str(_FOLDER / "report")]

    def _side_by_side(self, what: str, kind: str, ours: list[str], theirs: Sequence[list[str]]) -> None:
        mine, other, peaks = [], [], ([0], [0])
        for _ in range(self.repeats):
            for commands, taken, peak in (([ours], mine, peaks[0]), (theirs, other, peaks[1])):
                with PeakMemory() as memory:
                    taken.append([measure(command, env=_ENVIRONMENT) for command in commands])
                peak.append(memory.bytes)
            shutil.rmtree(_FOLDER / "report")
        self.raw[f"{what} {kind}"] = {
            side: [[figures(run) for run in runs] for runs in taken]
            for side, taken in (("ours", mine), ("theirs", other))
        }
        wall, cpu = (_best(mine, field) / _best(other, field) for field in ("seconds", "cpu_seconds"))
        self.add(Target(f"{what}, quantkit", kind, _best(mine, "seconds"), "s"))
        self.add(Target(f"{what}, llama-perplexity", kind, _best(other, "seconds"), "s"))
        self.add(Target("  wall time, quantkit / llama-perplexity", kind, wall, "", at_most=1.1))
        self.add(Target("  processor time, quantkit / llama-perplexity", kind, cpu, ""))
        self.add(Target("  peak memory, quantkit, all its processes", kind, max(peaks[0]) / 1e6, "MB"))
        self.add(Target("  peak memory, llama-perplexity", kind, max(peaks[1]) / 1e6, "MB"))


def _best(runs: Sequence[Sequence[Measured]], field: str) -> float:
    return min(sum(float(getattr(step, field)) for step in steps) for steps in runs)


def descendants(pid: int) -> list[int]:
    pids = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(word) for word in task.read_text().split()]
        except OSError:
            continue  # it has ended
        for child in children:
            pids += [child, *descendants(child)]
    return pids


def _resident_bytes(pid: int) -> int:
    """Proportional set size of a process in bytes: a page shared with others counts in part."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:")), 0)


def _file(kind: str) -> Path:
    return _FOLDER / f"{NAME}-GGUF" / f"{NAME}-{kind.upper()}.gguf"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, default=min(2, len(os.sched_getaffinity(0))), help="for both sides")
    options.add_argument("--chunks", type=int, default=16, help="windows of 512 tokens of WikiText-2's test split")
    options.add_argument("--repeats", type=int, default=3, help="runs of each; the best counts")
    arguments = options.parse_args()
    bench = Bench(arguments.threads, arguments.chunks, arguments.repeats)
    facts = machine()
    print_machine(facts)
    print(
        f"{bench.threads} threads on both sides, asleep when they wait; {bench.chunks} windows; best of {bench.repeats}"
    )
    shutil.rmtree(_FOLDER, ignore_errors=True)
    _FOLDER.mkdir(parents=True)
    try:
        _TEXT.write_text(wikitext2_test(), encoding="utf-8")
        kinds = [word for kind in (REFERENCE, *CANDIDATES) for word in ("-t", kind)]
        made = [
            sys.executable,
            "-m",
            "quantkit",
            "gguf",
            smollm2_checkpoint(),
            *kinds,
            "-o",
            _FOLDER,
            "--format",
            "json",
        ]
        bench.raw["conversion"] = json.loads(measure(made, env=_ENVIRONMENT).stdout)["seconds"]
        measure([sys.executable, "-m", "quantkit", "measure", "--help"], env=_ENVIRONMENT)
        warm(_file(REFERENCE).parent)
        for kind in (REFERENCE, *CANDIDATES):
            bench.perplexity(kind)
        for kind in CANDIDATES:
            bench.divergence(kind)
    finally:
        shutil.rmtree(_FOLDER, ignore_errors=True)
        bench.save("measured", facts)


if __name__ == "__main__":
    main()
