"""Runs of quantkit, the points at which they can be disturbed, and what must hold after a disturbance.

`python -m tests.helpers.fault_points FOLDER SECONDS [RUN...]` disturbs random points in turn until the time is up.
"""

import argparse
import errno
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers.adapters import AdapterCase, write_adapter
from tests.helpers.command import quantkit_process
from tests.helpers.faults import FORK, KILL, READS, STOP, WRITES, FaultyRuns, faulty_runs
from tests.helpers.hub_server import Repo, running_hub
from tests.helpers.small_converter import AGAIN, TOWER, unknown_checkpoint, write_converter
from tests.helpers.tiny import tiny_llama
from tests.vision.expected import expected, write_checkpoint

FEW = (
    "--calibration",
    "text.txt",
    "--samples",
    "8",
    "--seq-len",
    "32",
    "--raw",
    "--group-size",
    "32",
    "--threads",
    "1",
)
REMOTE = "some-org/Tiny-Llama"
RUNS: dict[str, tuple[str, ...]] = {
    "convert": ("convert", "model", "-t", "awq", "-t", "q8_0", "-t", "imatrix", *FEW, "-o", "out"),
    "shards": ("gguf", "model", "-t", "q8_0", "--split-max-size", "100k", "--threads", "1", "-o", "out"),
    "gptq": ("gptq", "model", *FEW, "-o", "out"),
    "converter": (
        "gguf", "newest", "-t", "f16", "-t", "q4_k_m", "--converter", "converter", "--no-logits", "--threads", "1",
        "-o", "out",
    ),
    "bridged projector": (
        "gguf", "newest", "-t", "q8_0", "--mmproj", "f16", "--mmproj", "bf16", "--converter", "converter",
        "--no-logits", "--threads", "1", "-o", "out",
    ),
    "bridged calibration": (
        "gguf", "bridged", "-t", "q4_k_m", "-t", "iq4_nl", "--calibrate", *FEW[:7], "--converter", "again",
        "--no-logits", "--threads", "1", "-o", "out",
    ),
    "imatrix": ("imatrix", "model", *FEW[:7], "--threads", "1", "-o", "out/model-imatrix.gguf"),
    "measure": (
        "measure", "model", "model-GGUF/model-Q8_0.gguf", "--text", "text.txt", "--ctx", "32", "--chunks", "2",
        "--gpu-layers", "none", "--threads", "1", "-o", "out",
    ),
    "callback": ("imatrix", "model-GGUF/model-Q8_0.gguf", *FEW[:7], "--threads", "1", "-o", "out/model-imatrix.gguf"),
    "target size": ("gguf", "model", "--target-size", "150k", *FEW[:7], "--threads", "1", "-o", "out"),
    "folders": (
        "convert", "model", "-t", "w8a8", "-t", "w4a4", "-t", "fp8", "-t", "mlx-4bit-gptq", *FEW, "-o", "out",
    ),
    "mmproj": (
        "gguf", "qwen2.5-vl", "-t", "q8_0", "--mmproj", "f16", "--pre", "smollm", "--no-logits", "--threads", "1",
        "-o", "out",
    ),
    "adapter": ("gguf", "model", "-t", "q8_0", "--adapter", "adapter", "--threads", "1", "-o", "out"),
    "lora": ("lora", "adapter", "--base", "model", "-t", "q8_0", "-o", "out"),
    "streamed": ("gguf", REMOTE, "-t", "q8_0", "--stream", "--threads", "1", "-o", "out"),
    "bake": ("bake", "recipe.toml", "--threads", "1", "-o", "out"),
}  # fmt: skip
RECIPE = """
version = 1
[model]
name = "tiny"
source = "./model"
[formats]
gguf = ["q8_0"]
awq = { group_size = 32 }
[calibration]
text = "./text.txt"
samples = 8
seq_len = 32
chat = false
"""


@dataclass(frozen=True)
class Case:
    """A kind of disturbance: operations `calls` on files below `folder` meet `error`, or `signals` come at a time.

    `meanwhile`: what happens to the files while an operation waits, of which `Place.changed` knows the names.
    """

    name: str
    folder: str = "out"
    calls: str = ""
    error: int = KILL
    signals: tuple[int, ...] = ()
    meanwhile: str = ""


CASES = (
    Case("reads of the source", "model", READS, errno.EIO),
    Case("reads of the output", "out", READS, errno.EIO),
    Case("writes", "out", WRITES, errno.ENOSPC),
    Case("kills", "out", WRITES, KILL),
)
STREAMS = Case("reads by llama.cpp", "", "f", errno.EIO)
"""Thousands of small ones in a run: `distinct_read_faults` has each of them, `check` a few."""
TIMED = Case("kills at a time", signals=(signal.SIGKILL,))
UNWOUND = (
    Case("SIGTERM at a time", signals=(signal.SIGTERM,)),
    Case("SIGINT at a time", signals=(signal.SIGINT,)),
    Case("SIGINT twice at a time", signals=(signal.SIGINT, signal.SIGINT)),
)
PAUSES = (
    Case("pauses", "out", READS + WRITES, STOP),
    Case("the source cut", "model", READS, STOP, meanwhile="cut"),
    Case("the output removed", "out", WRITES, STOP, meanwhile="removed"),
)


@dataclass(frozen=True)
class Place:
    """A folder with the inputs of all RUNS; `clean` removes the outputs, `facts` reads them."""

    folder: Path
    runs: FaultyRuns
    weights: bytes
    weights_time: int

    def clean(self) -> None:
        shutil.rmtree(self.folder / "out", ignore_errors=True)

    def facts(self) -> dict[str, Any]:
        """Every file of the output: its sha256, or, of a document, all but times, memory and measured speed."""
        out = self.folder / "out"
        files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.suffix not in (".journal", ".png")]
        return {str(path.relative_to(out)): _facts(path) for path in files}

    def whole(self) -> dict[str, Any]:
        """Of `facts`, the weights and matrices under a final name; every document under one is whole too."""
        out = self.folder / "out"
        final = [path for path in out.rglob("*.*") if ".partial" not in str(path.relative_to(out))]
        for path in final:
            if path.suffix == ".json":
                json.loads(path.read_text("utf-8"))
        weights = [path for path in final if path.suffix in (".gguf", ".safetensors")]
        return {str(path.relative_to(out)): _facts(path) for path in weights}

    def scratch(self) -> list[Path]:
        """Temporary files of the runs, and folders in memory whose process has ended."""
        shared = [path for path in Path("/dev/shm").glob("quantkit-*") if _is_abandoned(path)]
        return [*(self.folder / "tmp").iterdir(), *shared]

    def change(self, meanwhile: str) -> None:
        """Cut the weights of the source, or remove the output."""
        if meanwhile == "cut":
            os.truncate(self._weights, self._weights.stat().st_size // 2)
        elif meanwhile == "removed":
            self.clean()

    def restore(self) -> None:
        """Give the source the weights and the time of change that it had."""
        if self._weights.stat().st_size != len(self.weights):
            self._weights.write_bytes(self.weights)
            os.utime(self._weights, ns=(self.weights_time, self.weights_time))

    @property
    def _weights(self) -> Path:
        return self.folder / "model" / "model.safetensors"

    def undisturbed(self, run: str, case: Case) -> tuple[int, float, dict[str, Any]]:
        """Of a run without a fault: its operations, its seconds, its files."""
        self.clean()
        start = time.monotonic()
        sound = self.runs.run(*RUNS[run], cwd=self.folder, under=self.folder / case.folder, calls=case.calls)
        assert sound.answer.code == 0, sound.answer.stderr
        return sound.operations, time.monotonic() - start, self.facts()


def _is_abandoned(folder: Path) -> bool:
    return not Path("/proc", folder.name.split("-")[1]).exists()


@contextmanager
def running_place(folder: Path, **environment: str) -> Iterator[Place]:
    """The inputs, in `folder`, the process that runs quantkit, and a hub with the same model."""
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    with running_hub() as hub:
        variables = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "hub"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        variables["TMPDIR"] = str(folder / "tmp")
        with faulty_runs(folder / "faults", **variables, **environment) as runs:
            place = _make_place(folder, runs)
            hub.repos[REMOTE] = Repo({path.name: path.read_bytes() for path in (folder / "model").iterdir()})
            yield place


def _make_place(folder: Path, runs: FaultyRuns) -> Place:
    unknown_checkpoint(folder / "newest")
    write_converter(folder / "converter", MAIN=TOWER)
    write_converter(folder / "again", MAIN=AGAIN)
    tiny_llama(folder / "model", variant="llama3", hidden=64, intermediate=96)
    write_adapter(folder / "adapter", folder / "model", AdapterCase())
    write_checkpoint("qwen2.5-vl", expected("qwen2.5-vl")["layout"], folder)
    (folder / "text.txt").write_text("A short text to measure on. " * 40)
    (folder / "recipe.toml").write_text(RECIPE)
    made = quantkit_process("gguf", "model", "-t", "q8_0", cwd=folder)
    assert made.code == 0, made.stderr
    unknown_checkpoint(folder / "bridged")
    made = quantkit_process("gguf", "model", "-t", "bf16", "-o", "bridged", cwd=folder)
    assert made.code == 0, made.stderr
    (whole,) = (folder / "bridged").rglob("*.gguf")
    whole.rename(folder / "bridged" / "whole.gguf")
    shutil.rmtree(whole.parent)
    weights = folder / "model" / "model.safetensors"
    return Place(folder, runs, weights.read_bytes(), weights.stat().st_mtime_ns)


def check(place: Place, run: str, case: Case, points: Iterable[float], expected: dict[str, Any]) -> None:
    """A disturbance at each point (a number of an operation, or seconds): one sentence, then the undisturbed files."""
    words = RUNS[run]
    for point in points:
        place.clean()
        at = f"{run}, {case.name}, point {point}"
        under = place.folder / case.folder
        before = place.scratch()
        fault = (
            place.runs.run(*words, cwd=place.folder, signal_after=point, signals=case.signals)
            if case.signals
            else place.runs.run(
                *words,
                cwd=place.folder,
                under=under,
                calls=case.calls,
                at=int(point),
                error=case.error,
                stopped=lambda: place.change(case.meanwhile),
            )
        ).answer
        place.restore()
        if case in UNWOUND:
            # a signal can come before the handlers, and after the answer
            assert fault.code in (0, -case.signals[0], 128 + case.signals[0], 70), (at, fault)
            assert "Traceback" not in fault.stderr, (at, fault)
            assert not set(place.scratch()) - set(before), (at, place.scratch())
        elif case.error == KILL:
            # of bake it may be a step's process that is killed
            assert fault.code in (-9, 1) or case.signals, (at, fault)
        else:
            assert "Traceback" not in fault.stderr and "unexpected" not in fault.stderr, (at, fault)
            assert fault.code in (0, 1, 2), (at, fault)
            assert fault.code == 0 or fault.sentence, at
        assert not list(place.folder.glob("out/**/*.failed")), at
        assert place.whole().items() <= expected.items(), at
        if fault.code == 0:
            assert place.facts() == expected, at
            continue
        again = place.runs.run(*words, cwd=place.folder).answer
        # a kill can come after the last step
        complete = case.error == KILL and "already exists" in again.stderr
        assert again.code == 0 or complete, (at, fault, again)
        assert place.facts() == expected, (at, fault)


def distinct_read_faults(place: Place, run: str) -> tuple[int, list[int]]:
    """Fail each read of llama.cpp in turn; how many there are, and one point for each thing that quantkit then sees.

    Each read fails in a fork of llama.cpp's process at that read. quantkit sees of that process its answer, its log and
    its exit status, so faults that agree in these and in the process are one fault to quantkit. Random names of
    folders, and numbers in sentences of llama.cpp, do not count. A fork with a result is a point of its own.
    """
    place.clean()
    words, under = RUNS[run], place.folder / STREAMS.folder
    walk = place.runs.run(*words, cwd=place.folder, under=under, calls=STREAMS.calls, error=FORK)
    faults = place.runs.forks()
    assert walk.answer.code == 0, walk.answer.stderr
    assert [fault.number for fault in faults] == list(range(1, walk.operations + 1)), run
    outcomes: dict[tuple[int, int, str], int] = {}
    for fault in faults:
        seen = re.sub(r"/tmp/quantkit-[^/]*|-?\d+", "N", fault.text)
        if '{"result"' in fault.text:
            seen = str(fault.number)
        outcomes.setdefault((fault.process, fault.status, seen), fault.number)
    return len(faults), list(outcomes.values())


def _facts(path: Path) -> Any:
    if path.suffix == ".json":
        return _without_times(json.loads(path.read_text("utf-8")))
    if path.suffix in (".md", ".html"):
        return "a document of the others"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        timed = ("written", "seconds", "peak_memory_bytes", "date", "created", "memory", "speed", "machine")
        return {name: _without_times(item) for name, item in value.items() if name not in timed}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def main() -> None:
    """Random points of runs and cases; each point once. Prints how many were disturbed."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cases = {case.name: case for case in (*CASES, STREAMS, TIMED, *UNWOUND)}
    options.add_argument("folder", type=Path)
    options.add_argument("seconds", type=float)
    options.add_argument("runs", nargs="*", metavar="RUN", help=f"all without one: {', '.join(RUNS)}")
    options.add_argument("--case", action="append", choices=cases, help="repeat for more; all without it")
    options.add_argument("--seed", default="", help="other points than those without it")
    arguments = options.parse_args()
    folder, until, done = arguments.folder.resolve(), time.monotonic() + arguments.seconds, Counter[str]()
    with running_place(folder) as place:
        todo = []
        for run in arguments.runs or RUNS:
            for case in [cases[name] for name in arguments.case or cases]:
                count, duration, expected = place.undisturbed(run, case)
                rng = random.Random(f"{run} {case.name} {arguments.seed}".rstrip())
                points: list[float] = (
                    [rng.uniform(0, duration) for _ in range(1000)] if case.signals else list(range(1, count + 1))
                )
                rng.shuffle(points)
                todo.append((run, case, points, expected))
                print(f"{run}, {case.name}: {count} operations in {duration:.2f} s", flush=True)
        for turn in itertools.count():
            if time.monotonic() > until or not any(points for _, _, points, _ in todo):
                break
            for run, case, points, expected in todo:
                # those of the long runs one time in ten
                if points and (turn % 10 == 0 or run not in ("measure", "bake")) and time.monotonic() < until:
                    point = points.pop()
                    try:
                        check(place, run, case, [point], expected)
                    except (AssertionError, ValueError) as error:
                        print(f"FAULT {run}, {case.name}, point {point}: {error!s:.3000}", flush=True)
                    done[f"{run}, {case.name}"] += 1
    for name, number in done.items():
        print(f"{name}: {number} points", flush=True)
    print(f"{sum(done.values())} points", flush=True)


if __name__ == "__main__":
    main()
