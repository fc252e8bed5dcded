"""`make bench`: quantkit against llama.cpp's convert + quantize, in one run on one machine, as ratios.

The peer is llama.cpp's own converter and llama-quantize (tests.helpers.peer), once a type, as a user runs them;
quantkit is its whole command, verification included. Both run without and with an importance matrix. Every figure is a
separate process with its inputs in the file cache, and the same threads for both. Results go to the terminal and, as
JSON, to bench-output/bench.json.
"""

import argparse
import compileall
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import quantkit
from benchmarks.lines import WORK, Lines, Target, figures, machine, print_machine
from benchmarks.process import Measured, measure, warm
from benchmarks.synthetic import SHAPES, synthetic
from demo.smollm2 import NAME, smollm2_checkpoint
from quantkit.gguf.file_types import FILE_TYPES
from tests.conversion.test_bytes import a_random_imatrix
from tests.helpers.peer import Peer, peer_converter

TYPES = ("q4_0", "q2_k", "q4_k_m", "q8_0")

SMOLLM2 = NAME
# the bounds of the wall times' ratio without importances
AT_MOST = {SMOLLM2: 0.4, "Synthetic-0.8B": 0.2}

# Outputs of one side and the peer's intermediate, in bytes a parameter, with the checkpoint's own two.
_DISK_WITH_PEER, _DISK_ALONE = 7.5, 5.0


class Bench(Lines):
    """The measurements of one run and the lines they add up to."""

    def __init__(self, threads: int, repeats: int, *, importances: bool = True) -> None:
        super().__init__()
        self.threads, self.repeats, self.importances = threads, repeats, importances
        self.peaks: list[float] = []

    def ours(
        self, checkpoint: Path, *, threads: int = 0, options: tuple[str, ...] = ()
    ) -> tuple[Measured, dict[str, Any]]:
        """quantkit over all TYPES: what was measured, and its document. The outputs are removed."""
        shutil.rmtree(WORK / "ours", ignore_errors=True)
        type_options = [word for name in TYPES for word in ("-t", name)]
        count = ["--threads", str(threads or self.threads), *options]
        command = [
            sys.executable,
            "-m",
            "quantkit",
            "gguf",
            checkpoint,
            *type_options,
            "-o",
            WORK / "ours",
            "--format",
            "json",
        ]
        taken = measure([*command, *count])
        shutil.rmtree(WORK / "ours")
        return taken, json.loads(taken.stdout)

    def theirs(self, peer: Peer, checkpoint: Path, *, imatrix: Path | None = None) -> dict[str, Measured]:
        """llama.cpp's steps by name; the outputs stay under WORK/theirs."""
        folder = WORK / "theirs"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        whole = folder / "whole.gguf"
        taken = {"convert": measure(peer.convert_command(checkpoint, whole, "bf16"), env=peer.environment())}
        for name in TYPES:
            command = peer.quantize_command(
                whole, folder / f"{name}.gguf", FILE_TYPES[name].ftype, threads=self.threads, imatrix=imatrix
            )
            # the file stores the name of the matrix as it is given
            taken[name] = measure(command, folder=imatrix.parent if imatrix else None)
        return taken

    def side_by_side(self, peer: Peer, checkpoint: Path, *, repeats: int, at_most: float = 0.5) -> dict[str, Any]:
        """Both sides `repeats` times in turn; the best run of each. `at_most`: the bound of their wall times' ratio."""
        warm(checkpoint)
        compile_bytecode(peer)
        ours, theirs = [], []
        for _ in range(repeats):
            ours.append(self.ours(checkpoint))
            theirs.append(self.theirs(peer, checkpoint))
        mine, document = min(ours, key=lambda run: run[0].seconds)
        other = min(theirs, key=_total)
        name, same = checkpoint.name, _same_files(document)
        sizes = sum(out["bytes"] for out in document["outputs"])
        pass_seconds = document["seconds"]["pass"]
        self.add(Target("quantkit, whole command", name, mine.seconds, "s"))
        self.add(Target("  of it the pass", name, pass_seconds, "s"))
        self.add(Target("  of it the checks", name, document["seconds"]["verify"], "s"))
        self.add(Target("llama.cpp, convert and quantize four times", name, _total(other), "s"))
        self.add(Target("  of it the converter", name, other["convert"].seconds, "s"))
        self.add(Target("wall time, quantkit / llama.cpp", name, mine.seconds / _total(other), "", at_most=at_most))
        their_cpu = sum(step.cpu_seconds for step in other.values())
        self.add(Target("CPU time, quantkit / llama.cpp", name, mine.cpu_seconds / their_cpu, ""))
        self.add(Target("wall time, pass alone / llama.cpp", name, pass_seconds / _total(other), ""))
        self.add(Target("bytes written / outputs, quantkit", name, mine.written / sizes, "", at_most=1.01))
        self.add(Target("bytes written / outputs, llama.cpp", name, sum(m.written for m in other.values()) / sizes, ""))
        self.add(Target("files with the same bytes on both sides (1 = all)", name, float(same), "", at_least=1))
        self.memory(name, mine, document)
        importances = self.with_importances(peer, checkpoint, repeats=repeats) if self.importances else {}
        return importances | {
            "ours": [{**figures(run), "report": report["seconds"]} for run, report in ours],
            "theirs": [{step: figures(run) for step, run in steps.items()} for steps in theirs],
            "output_bytes": sizes,
        }

    def with_importances(self, peer: Peer, checkpoint: Path, *, repeats: int) -> dict[str, Any]:
        """The same with an importance matrix, which both sides get as a file; its values are random."""
        imatrix = WORK.resolve() / "importances.gguf"
        a_random_imatrix(imatrix, WORK / "theirs" / "whole.gguf")
        ours, theirs = [], []
        for _ in range(repeats):
            ours.append(self.ours(checkpoint, options=("--imatrix", str(imatrix))))
            theirs.append(self.theirs(peer, checkpoint, imatrix=imatrix))
        mine, document = min(ours, key=lambda run: run[0].seconds)
        other = min(theirs, key=_total)
        name = checkpoint.name
        self.add(Target("with importances: quantkit, whole command", name, mine.seconds, "s"))
        self.add(Target("  of it the pass", name, document["seconds"]["pass"], "s"))
        self.add(Target("  of it the checks", name, document["seconds"]["verify"], "s"))
        self.add(Target("  llama.cpp, convert and quantize four times", name, _total(other), "s"))
        self.add(Target("  wall time, quantkit / llama.cpp", name, mine.seconds / _total(other), "", at_most=0.25))
        same = float(_same_files(document))
        self.add(Target("  files with the same bytes on both sides (1 = all)", name, same, "", at_least=1))
        return {
            "ours with importances": [{**figures(run), "report": report["seconds"]} for run, report in ours],
            "theirs with importances": [{step: figures(run) for step, run in steps.items()} for steps in theirs],
        }

    def scaling(self, checkpoint: Path) -> None:
        one, two = (self.ours(checkpoint, threads=n, options=("--no-logits",))[1]["seconds"]["pass"] for n in (1, 2))
        self.add(Target("speed of the pass, 2 threads / 1", checkpoint.name, one / two, ""))

    def flatness(self) -> None:
        """Peaks of the synthetic models, whose number of layers grows; SmolLM2's is the first and left out."""
        sizes = self.peaks[1:]
        if len(sizes) > 1:
            self.add(
                Target("peak memory, largest / smallest model", "Synthetic", sizes[-1] / sizes[0], "", at_most=1.25)
            )

    def one(self, peer: Peer, name: str) -> None:
        """SmolLM2 or the synthetic model of this name, side by side."""
        if name == SMOLLM2:
            self.raw[name] = self.side_by_side(peer, smollm2_checkpoint(), repeats=self.repeats, at_most=AT_MOST[name])
            return
        shape = next(shape for shape in SHAPES if shape.name == name)
        with synthetic(shape, _DISK_WITH_PEER) as checkpoint:
            if checkpoint:
                at_most = AT_MOST.get(name, 0.5)
                self.raw[name] = self.side_by_side(peer, checkpoint, repeats=self.repeats, at_most=at_most)

    def all(self, peer: Peer, *, quick: bool) -> None:
        """Every model; with `quick` SmolLM2 and the smallest synthetic one."""
        smollm2 = smollm2_checkpoint()
        self.one(peer, SMOLLM2)
        self.efficiency(smollm2, repeats=self.repeats)
        small, middle, large = SHAPES
        with synthetic(small, _DISK_WITH_PEER) as checkpoint:
            if checkpoint:
                self.raw[small.name] = self.side_by_side(peer, checkpoint, repeats=self.repeats)
                self.scaling(checkpoint)
        if quick:
            return
        with synthetic(middle, _DISK_WITH_PEER) as checkpoint:
            if checkpoint:
                self.raw[middle.name] = self.side_by_side(peer, checkpoint, repeats=1, at_most=AT_MOST[middle.name])
                self.efficiency(checkpoint, repeats=1)
        with synthetic(large, _DISK_ALONE) as checkpoint:
            if checkpoint:
                run, document = self.ours(checkpoint)
                self.raw[large.name] = {"ours": [{**figures(run), "report": document["seconds"]}]}
                self.memory(large.name, run, document)

    def efficiency(self, checkpoint: Path, *, repeats: int) -> None:
        """The pass against its kernels alone and against kernels that also read and write, the best of each in turn.

        quantkit's kernels take as long as reading and writing, so the second figure has the bound.
        """
        alone, copied, passes = [], [], []
        for _ in range(repeats):
            command = [sys.executable, "-m", "benchmarks.kernels", checkpoint, WORK, str(self.threads), *TYPES]
            kernels, with_copy = map(float, measure(command).stdout.split())
            alone.append(kernels)
            copied.append(with_copy)
            passes.append(self.ours(checkpoint, options=("--no-logits",))[1]["seconds"]["pass"])
        name, taken = checkpoint.name, min(passes)
        self.add(Target("throughput, pass / kernels alone", name, min(alone) / taken, ""))
        self.add(Target("throughput, pass / kernels with a copy", name, min(copied) / taken, "", at_least=0.8))

    def memory(self, name: str, run: Measured, document: dict[str, Any]) -> None:
        """The whole command's peak; the check of logits lets llama.cpp map each output in a child process."""
        self.peaks.append(document["peak_memory_bytes"] / 1e6)
        self.add(Target("peak memory of quantkit", name, self.peaks[-1], "MB", at_most=700))
        self.add(Target("  of it or of llama.cpp running an output", name, run.peak_memory / 1e6, "MB"))


def compile_bytecode(peer: Peer) -> None:
    """Compile both sides' Python sources, as pip does when it installs a package."""
    for folder in (Path(quantkit.__file__).parent, peer.source / "conversion", peer.source / "gguf-py"):
        compileall.compile_dir(folder, quiet=2)


def _same_files(document: dict[str, Any]) -> bool:
    """Whether quantkit's outputs of this conversion equal those of llama.cpp under WORK/theirs."""
    digests = [out["files"][0]["sha256"] for out in document["outputs"]]
    return all(digest == _sha256(WORK / "theirs" / f"{kind}.gguf") for digest, kind in zip(digests, TYPES, strict=True))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _total(steps: dict[str, Measured]) -> float:
    return sum(step.seconds for step in steps.values())


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, default=min(2, len(os.sched_getaffinity(0))), help="for both sides")
    options.add_argument("--repeats", type=int, default=2, help="runs of each small measurement; the best counts")
    options.add_argument("--quick", action="store_true", help="SmolLM2 and the smallest synthetic model only")
    options.add_argument(
        "--model", choices=[SMOLLM2, *(shape.name for shape in SHAPES)], help="this model alone, side by side"
    )
    options.add_argument("--plain", action="store_true", help="without an importance matrix only")
    arguments = options.parse_args()
    bench = Bench(arguments.threads, arguments.repeats, importances=not arguments.plain)
    facts = machine()
    print_machine(facts)
    print(
        f"types {' '.join(TYPES)}; {bench.threads} threads on both sides; best of {bench.repeats} for the small models"
    )
    peer = peer_converter()
    WORK.mkdir(parents=True, exist_ok=True)
    if arguments.model:
        bench.one(peer, arguments.model)
    else:
        bench.all(peer, quick=arguments.quick)
    bench.flatness()
    bench.save("bench", facts)


if __name__ == "__main__":
    main()
