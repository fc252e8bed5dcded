"""`make bench`, further part: a checkpoint to FP8, beside a copy of it on the same disk.

FP8 needs no calibration, so its time should be that of reading and writing. The copy reads every byte of the checkpoint
and writes it again, flushed to the disk; the conversion reads as much, writes half, and reads that again to check it.
Both are measured in turn, the source is read once before. Results go to the terminal and, as JSON, to
bench-output/folders.json.
"""

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

from benchmarks.lines import WORK, Lines, Target, figures, machine, print_machine
from benchmarks.process import measure, warm
from benchmarks.synthetic import SHAPES, Shape, synthetic

# The checkpoint in bf16, its copy and one output, in bytes a parameter.
_DISK = 5.5
_PIECE = 8 << 20


class Bench(Lines):
    """The measurements of one run."""

    def __init__(self, threads: int, types: tuple[str, ...]) -> None:
        super().__init__()
        self.threads, self.types = threads, types

    def compare(self, shape: Shape) -> None:
        """One checkpoint to each type, and its copy before each."""
        with synthetic(shape, _DISK) as checkpoint:
            if checkpoint is None:
                return
            warm(checkpoint)
            for name in self.types:
                copied = self._copy(checkpoint)
                folder = WORK / "ours"
                shutil.rmtree(folder, ignore_errors=True)
                words = [sys.executable, "-m", "quantkit", "convert", checkpoint, "-t", name, "--no-logits"]
                taken = measure([*words, "-o", folder, "--threads", str(self.threads), "--format", "json"])
                document = json.loads(taken.stdout)
                self.raw[f"{shape.name} {name}"] = figures(taken) | {"copy": copied, "report": document["seconds"]}
                self.add(Target("copy of the checkpoint", shape.name, copied, "s"))
                self.add(Target(f"quantkit convert -t {name}, whole command", shape.name, taken.seconds, "s"))
                for stage, seconds in document["seconds"].items():
                    self.add(Target(f"  of it {stage}", shape.name, seconds, "s"))
                self.add(Target("  CPU", shape.name, taken.cpu_seconds, "s"))
                self.add(Target("  peak memory", shape.name, taken.peak_memory / 1e6, "MB", at_most=500))
                self.add(Target("quantkit / copy", shape.name, taken.seconds / copied, "", at_most=1.5))
                shutil.rmtree(folder)

    def _copy(self, checkpoint: Path) -> float:
        """Seconds to copy the weights and flush them to the disk."""
        target = WORK / "copy"
        started = time.monotonic()
        for path in sorted(checkpoint.glob("*.safetensors")):
            with path.open("rb", buffering=0) as source, target.open("wb", buffering=0) as copy:
                while data := source.read(_PIECE):
                    copy.write(data)
                os.fsync(copy.fileno())
        seconds = time.monotonic() - started
        target.unlink()
        return seconds


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, default=min(2, len(os.sched_getaffinity(0))))
    options.add_argument("--model", choices=[shape.name for shape in SHAPES], action="append", help="all without it")
    options.add_argument("--type", action="append", help="a folder that needs no calibration; fp8 without it")
    arguments = options.parse_args()
    facts = machine()
    print_machine(facts)
    WORK.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.threads, tuple(arguments.type or ("fp8",)))
    try:
        for shape in SHAPES:
            if arguments.model is None or shape.name in arguments.model:
                bench.compare(shape)
    finally:
        bench.save("folders", facts)


if __name__ == "__main__":
    main()
