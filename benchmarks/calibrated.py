"""`make bench`, second part: AWQ, GPTQ and importance matrices, their time, and the memory of one layer.

Time: SmolLM2 on the 32 samples of 512 tokens that the peers get too (tests.peers.samples), in groups of 64. The peer is
GPTQModel in its environment (tests.peers.environments), in float32, which on a CPU is faster than its default. Its
time is that of loading, quantizing and saving, without the import of torch. quantkit's time is that of the whole
command, with verification. GPTQModel's AWQ takes half an hour: --peer-awq.

Cost: a layer of the shape of a 1.5B to q4_0 with the default number of samples (--cost-samples), by error feedback and
by --quality best over --calibrate alone, in seconds of the calibration.

Memory: the same width at three depths, and a mixture of 8 experts. Results go to the terminal and, as JSON, to
bench-output/calibrated.json.
"""

import argparse
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from benchmarks.lines import WORK, Lines, Target, figures, machine, print_machine
from benchmarks.process import Measured, measure, warm
from benchmarks.synthetic import DEPTHS, LAYER, MIXTURE, Shape, synthetic
from demo.smollm2 import smollm2_checkpoint
from tests.peers.environments import python_of, run_inside
from tests.peers.samples import calibration_samples

PARTS = ("time", "cost", "depth", "experts")
FILES = ("q4_0", "q2_k")
PEER = {"gptq": ("group_size=64",), "awq": ("group_size=64", "sym=false")}

# The outputs beside a checkpoint of two bytes a parameter, and hidden states.
_DISK = 4.0


class Bench(Lines):
    """The measurements of one run. `n_samples` of `length` tokens."""

    def __init__(self, threads: int, n_samples: int, length: int) -> None:
        super().__init__()
        self.threads, self.n_samples, self.length = threads, n_samples, length

    def ours(self, command: str, checkpoint: Path, *options: str | Path) -> tuple[Measured, dict[str, Any]]:
        """A command of quantkit over a checkpoint, and what it says; the outputs are in WORK/ours until the next."""
        shutil.rmtree(WORK / "ours", ignore_errors=True)
        words = [sys.executable, "-m", "quantkit", command, checkpoint, *options, "-o", WORK / "ours"]
        taken = measure([*words, "--device", "cpu", "--threads", str(self.threads), "--format", "json"])
        document = json.loads(taken.stdout)
        self.raw[f"{checkpoint.name} {command} {' '.join(map(str, options))}"] = figures(taken) | {
            "report": document["seconds"],
            "own_peak_memory": document["peak_memory_bytes"],
        }
        return taken, document

    def time(self, peers: tuple[str, ...]) -> None:
        """SmolLM2 to each format alone and to all at once, and GPTQModel's `peers` on the same samples."""
        checkpoint = smollm2_checkpoint()
        samples = self._samples()
        text = self._text(checkpoint, samples)
        warm(checkpoint)
        name = checkpoint.name
        size = ("--samples", str(self.n_samples), "--seq-len", str(self.length))
        options = ("--calibration", text, *size, "--group-size", "64")
        alone: dict[str, float] = {}
        for method in ("gptq", "awq"):
            taken, document = self.ours(method, checkpoint, *options)
            alone[method] = taken.seconds
            self._add_lines(f"quantkit {method}", name, taken, document)
        every = [word for kind in ("gptq", "awq", *FILES) for word in ("-t", kind)]
        taken, document = self.ours("convert", checkpoint, *every, *options)
        self._add_lines(f"quantkit convert, both and {' '.join(FILES)}", name, taken, document)
        slower = max(alone.values())
        self.add(Target("all at once / the slower one alone", name, taken.seconds / slower, "", at_most=1.3))
        for method in peers:
            peer = self._peer(method, checkpoint, samples)
            self.raw[f"{name} gptqmodel {method}"] = peer
            self.add(Target(f"GPTQModel {method}, load to save", name, peer["wall"], "s"))
            self.add(Target("  peak memory", name, peer["peak_bytes"] / 1e6, "MB"))
            ratio = alone[method] / peer["wall"]
            self.add(Target(f"wall time of {method}, quantkit / GPTQModel", name, ratio, "", at_most=0.25))

    def cost(self, n_samples: int) -> None:
        """What error feedback and --quality best take over --calibrate, of a layer with 8960 inputs in its widest."""
        size = ("--samples", str(n_samples), "--seq-len", str(self.length))
        with synthetic(LAYER, _DISK) as checkpoint:
            seconds: dict[str, float] = {}
            for words in (("--calibrate",), ("--solver", "feedback"), ("--quality", "best")) if checkpoint else ():
                taken, document = self.ours("gguf", checkpoint, "-t", "q4_0", *words, *size)
                seconds[words[-1]] = document["seconds"]["calibrate"]
                what = f"q4_0 {' '.join(words)}, {n_samples} samples: the calibration"
                self.add(Target(what, LAYER.name, seconds[words[-1]], "s"))
                self.add(Target("  peak memory", LAYER.name, taken.peak_memory / 1e6, "MB"))
            for name, at_most in (("feedback", 2.0), ("best", None)) if seconds else ():
                ratio = seconds[name] / seconds["--calibrate"]
                self.add(Target(f"calibration, {name} / --calibrate", LAYER.name, ratio, "", at_most=at_most))

    def depth(self) -> None:
        """Both formats at three depths of one width: the peaks lie within a tenth of each other."""
        peaks = []
        for shape in DEPTHS:
            with synthetic(shape, _DISK) as checkpoint:
                if checkpoint:
                    options = ("-t", "gptq", "-t", "awq", "--samples", "8", "--seq-len", "256", "--group-size", "64")
                    taken, document = self.ours("convert", checkpoint, *options)
                    self._add_lines("quantkit convert, awq and gptq", shape.name, taken, document, at_most=None)
                    peaks.append(taken.peak_memory)
        if peaks:
            self.add(Target("peak memory, largest / smallest", "Depth", max(peaks) / min(peaks), "", at_most=1.1))

    def experts(self, shape: Shape) -> None:
        """A mixture of 8 experts to AWQ, which sees one expert at a time."""
        with synthetic(shape, _DISK) as checkpoint:
            if checkpoint:
                taken, document = self.ours("awq", checkpoint, "--samples", "8", "--seq-len", "256")
                self._add_lines("quantkit awq", shape.name, taken, document, at_most=3000)

    def _add_lines(
        self, what: str, name: str, taken: Measured, document: dict[str, Any], at_most: float | None = 1000
    ) -> None:
        self.add(Target(f"{what}, whole command", name, taken.seconds, "s"))
        self.add(Target("  of it the calibration and rounding", name, document["seconds"]["calibrate"], "s"))
        self.add(Target("  of it the checks", name, document["seconds"]["verify"], "s"))
        self.add(Target("  peak memory", name, taken.peak_memory / 1e6, "MB", at_most=at_most))

    def _peer(self, method: str, checkpoint: Path, samples: Path) -> dict[str, Any]:
        python_of("gptqmodel")
        folder = WORK / "theirs"
        shutil.rmtree(folder, ignore_errors=True)
        arguments: list[str | Path] = [method, "float32", checkpoint, samples, folder, *PEER[method]]
        output = run_inside("gptqmodel", "quantize_gptqmodel.py", *arguments)
        shutil.rmtree(folder, ignore_errors=True)
        # libraries may print lines after it
        document: dict[str, Any] = json.loads([line for line in output.splitlines() if line.startswith("{")][-1])
        return document

    def _samples(self) -> Path:
        """The samples that both sides get, int32 (n_samples, length), as a file."""
        path = WORK / "samples.npy"
        np.save(path, np.load(calibration_samples())[: self.n_samples, : self.length])
        return path

    def _text(self, checkpoint: Path, samples: Path) -> Path:
        """The samples as the text they were cut from, of which the command cuts the same samples."""
        tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        ids = np.load(samples).reshape(-1).tolist()
        text = tokenizer.decode(ids, skip_special_tokens=False)
        if tokenizer.encode(text, add_special_tokens=False).ids != ids:
            raise RuntimeError(f"{self.n_samples} samples of {self.length} tokens are not what their text gives back")
        path = WORK / "samples.txt"
        path.write_text(text, encoding="utf-8")
        return path


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, default=min(2, len(os.sched_getaffinity(0))), help="for both sides")
    options.add_argument("--samples", type=int, default=32, help="of those the peers get; fewer for a trial")
    options.add_argument("--cost-samples", type=int, default=128, help="of the cost of error feedback")
    options.add_argument("--seq-len", type=int, default=512, help="tokens of a sample")
    options.add_argument("--part", choices=PARTS, action="append", help="of the benchmark; all without it")
    options.add_argument("--quick", action="store_true", help="two layers of the mixture only")
    options.add_argument("--no-peer", action="store_true", help="quantkit alone")
    options.add_argument("--peer-awq", action="store_true", help="GPTQModel's AWQ too (half an hour)")
    arguments = options.parse_args()
    # whoever is started here, the peer too, has as many cores
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    facts = machine()
    print_machine(facts)
    print(f"{arguments.samples} samples of {arguments.seq_len} tokens; {arguments.threads} threads on both sides")
    WORK.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.threads, arguments.samples, arguments.seq_len)
    parts = arguments.part or PARTS
    try:
        if "time" in parts:
            bench.time(() if arguments.no_peer else ("gptq", "awq") if arguments.peer_awq else ("gptq",))
        if "cost" in parts:
            bench.cost(arguments.cost_samples)
        if "depth" in parts:
            bench.depth()
        if "experts" in parts:
            bench.experts(replace(MIXTURE, name="Mixture-2-layers", layers=2) if arguments.quick else MIXTURE)
    finally:
        shutil.rmtree(WORK / "ours", ignore_errors=True)
        bench.save("calibrated", facts)


if __name__ == "__main__":
    main()
