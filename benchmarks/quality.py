"""`make bench-quality`: what a file of each type and size costs the model, ours beside llama.cpp's and AutoRound's.

Each model is calibrated on the same samples by all: llama-imatrix and llama-quantize make their files from its bf16
GGUF, quantkit makes its own with `--solver feedback`, and `--target-size` one of the size of each standard mix that is
asked for. `quantkit measure` then judges all files on a text that none was calibrated on. Results go to the terminal,
to bench-output/quality-MODEL.json and, as a plot, to bench-output/quality-MODEL.svg.

AutoRound takes part where --auto-round names a Python that has it (pip install auto-round, PyPI).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lines import WORK, Lines, Target, machine, print_machine
from benchmarks.pareto import Point, pareto_svg
from demo.smollm2 import smollm2_checkpoint
from demo.wikitext import wikitext2_test
from quantkit.checkpoint import open_checkpoint
from quantkit.gguf.file_types import file_type
from quantkit.texts.samples import load_samples
from tests.helpers.imatrix_peer import llama_imatrix
from tests.helpers.oracle import llama_quantize

PLAIN, IMATRIX, FEEDBACK, SIZED = "llama-quantize", "llama-imatrix + llama-quantize", "quantkit", "quantkit, by size"
AUTO_ROUND = "AutoRound"
# KL of ours over KL of llama-imatrix + llama-quantize, at most.
BOUNDS = {
    "q4_0": 0.60, "q4_1": 0.60, "q5_0": 0.60, "q4_k_m": 0.75, "q5_k_m": 0.75, "q6_k": 0.75,
    "q2_k": 0.65, "q3_k_m": 0.65, "iq4_xs": 0.80,
}  # fmt: skip
SIZED_BOUND = 0.55


@dataclass(frozen=True)
class Options:
    """What a run makes. `sized`: the types whose sizes --target-size gets. `text`: what the files are judged on."""

    types: Sequence[str]
    sized: Sequence[str]
    n_samples: int
    chunks: int
    text: Path
    calibration: Path | None
    threads: int
    auto_round: Path | None


class Bench(Lines):
    """The files of one model and their figures. `seconds`: what the files of each maker took."""

    def __init__(self, model: Path, options: Options, folder: Path) -> None:
        super().__init__()
        self.model, self.options, self.folder = model, options, folder
        self.seconds: dict[str, float] = {}

    def quantkit(self, maker: str, *words: str | Path) -> str:
        calibration = ["--calibration", str(self.options.calibration)] if self.options.calibration else []
        samples = ["--samples", str(self.options.n_samples), *calibration] if "convert" in words else []
        command = [sys.executable, "-m", "quantkit", *map(str, words), *samples]
        start = time.monotonic()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        self.seconds[maker] = self.seconds.get(maker, 0.0) + time.monotonic() - start
        return done.stdout

    def make(self) -> dict[str, list[Path]]:
        """All files, by maker."""
        options, threads = self.options, ["--threads", str(self.options.threads), "--no-logits"]
        self.quantkit("source", "convert", self.model, "-t", "bf16", "-o", self.folder / "source", *threads)
        source = next((self.folder / "source").rglob("*.gguf"))
        types = [word for kind in options.types for word in ("-t", kind)]
        ours = self.folder / "ours"
        self.quantkit(FEEDBACK, "convert", self.model, *types, "--solver", "feedback", "-o", ours, *threads)
        files = {FEEDBACK: sorted(ours.rglob("*.gguf")), **self._llama(source), SIZED: []}
        for kind in options.sized:
            size = next(path for path in files[IMATRIX] if path.stem.endswith(kind)).stat().st_size
            out = self.folder / f"sized-{kind}"
            self.quantkit(
                SIZED, "convert", self.model, "--target-size", str(size), "--solver", "feedback", "-o", out, *threads
            )
            files[SIZED] += [_named(path, f"sized-{kind}") for path in out.rglob("*.gguf")]
        if options.auto_round is not None:
            files[AUTO_ROUND] = self._auto_round(options.auto_round)
        return files

    def _llama(self, source: Path) -> dict[str, list[Path]]:
        files: dict[str, list[Path]] = {PLAIN: [], IMATRIX: []}
        out = self.folder / "llama"
        out.mkdir()
        with open_checkpoint(str(self.model)) as checkpoint:
            calibration = None if self.options.calibration is None else str(self.options.calibration)
            samples = load_samples(checkpoint, source=calibration, n_samples=self.options.n_samples, seq_len=512)
        start = time.monotonic()
        entries = llama_imatrix(source, samples.tokens, out)
        matrix = {
            name: np.concatenate(
                [
                    part / max(float(n), 1.0)
                    for part, n in zip(_split(entry.sums, entry.counts), entry.counts, strict=True)
                ]
            )
            for name, entry in entries.items()
        }
        self.seconds[IMATRIX] = time.monotonic() - start
        for kind in self.options.types:
            for maker, used in ((PLAIN, None), (IMATRIX, matrix)):
                if used is None and kind.startswith("iq"):
                    continue
                path = out / f"llama-{'imatrix-' if used else ''}{kind}.gguf"
                start = time.monotonic()
                llama_quantize(source, path, file_type(kind).ftype, imatrix=used, n_threads=self.options.threads)
                self.seconds[maker] = self.seconds.get(maker, 0.0) + time.monotonic() - start
                files[maker].append(path)
        return files

    def _auto_round(self, python: Path) -> list[Path]:
        """AutoRound's tuned export of Q4_0 from the same number of samples; its own calibration text."""
        out = self.folder / "auto-round"
        code = (
            "import sys; from auto_round import AutoRound; "
            "AutoRound(sys.argv[1], scheme='GGUF:Q4_0', nsamples=int(sys.argv[3]), seqlen=512, device_map='cpu')"
            ".quantize_and_save(sys.argv[2], format='gguf:q4_0')"
        )
        start = time.monotonic()
        command = [str(python), "-c", code, str(self.model), str(out), str(self.options.n_samples)]
        done = subprocess.run(command, stdout=sys.stderr, check=False)
        self.seconds[AUTO_ROUND] = time.monotonic() - start
        if done.returncode:
            print("AutoRound failed; its lines are left out", file=sys.stderr)
            return []
        return [_named(path, "autoround-q4_0") for path in out.rglob("*.gguf")]

    def judge(self, files: dict[str, list[Path]]) -> None:
        """The figures of every file, and ours over llama.cpp's."""
        out = self.folder / "report"
        paths = [path for some in files.values() for path in some]
        words = ["--text", self.options.text, "--chunks", str(self.options.chunks), "-o", out, "--format", "json"]
        self.quantkit("measure", "measure", self.model, *paths, *words)
        report = json.loads(next(out.rglob("*.json")).read_text())
        by_path = {Path(model["path"]).name: model for model in report["models"]}
        series: dict[str, list[Point]] = {}
        for maker, some in files.items():
            for path in some:
                model = by_path[path.name]
                quality, kind = model["quality"][0], _kind(path)
                divergence = quality["kl"]["mean"]
                series.setdefault(maker, []).append(Point(model["bytes"] / 1e6, divergence, kind))
                self.raw[f"{maker} {kind}"] = _figures(model)
                change, error = quality["perplexity_ratio"]["value"] - 1, quality["perplexity_ratio"]["error"]
                print(
                    f"  {maker:<32} {kind:<14} {model['bytes'] / 1e6:7.1f} MB  KL {divergence:.4f}"
                    f"  perplexity {change:+.1%} ± {error:.1%}  same top {quality['top1']['value']:.1%}",
                    flush=True,
                )
        self._compare()
        plot = pareto_svg({maker: some for maker, some in series.items() if some}, self.model.name)
        (Path("bench-output") / f"quality-{self.model.name}.svg").write_text(plot)
        self.raw["seconds"] = self.seconds

    def _compare(self) -> None:
        for kind in self.options.types:
            theirs, ours = self.raw[f"{IMATRIX} {kind}"], self.raw[f"{FEEDBACK} {kind}"]
            ratio = ours["kl"] / theirs["kl"]
            self.add(Target("KL, quantkit / llama-imatrix + quantize", kind, ratio, "", at_most=BOUNDS.get(kind)))
        for kind in self.options.sized:
            theirs, ours = self.raw[f"{IMATRIX} {kind}"], self.raw[f"{SIZED} sized-{kind}"]
            ratio = ours["kl"] / theirs["kl"]
            self.add(Target("KL at that size / llama-imatrix + quantize", kind, ratio, "", at_most=SIZED_BOUND))
        for maker, seconds in self.seconds.items():
            self.add(Target(f"seconds, {maker}", self.model.name[:15], seconds, "s"))


def _split(sums: Any, counts: Any) -> Sequence[Any]:
    return np.split(sums, len(counts))


def _named(path: Path, name: str) -> Path:
    return path.rename(path.with_name(f"{name}.gguf"))


def _kind(path: Path) -> str:
    name = path.stem.removeprefix("llama-imatrix-").removeprefix("llama-").removeprefix("autoround-")
    return name if name.startswith("sized") else name.rpartition("-")[2].lower()


def _figures(model: dict[str, Any]) -> dict[str, Any]:
    quality = model["quality"][0]
    return {
        "bytes": model["bytes"],
        "kl": quality["kl"]["mean"],
        "kl_error": quality["kl"]["error"],
        "perplexity_ratio": quality["perplexity_ratio"]["value"],
        "perplexity_ratio_error": quality["perplexity_ratio"]["error"],
        "same_top": quality["top1"]["value"],
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", type=Path, action="append", help="a checkpoint folder (default: SmolLM2-135M)")
    options.add_argument("--types", nargs="+", default=list(BOUNDS))
    options.add_argument("--sized", nargs="*", default=["q4_k_m", "q2_k"], help="sizes that --target-size gets")
    options.add_argument("--samples", type=int, default=128)
    options.add_argument("--chunks", type=int, default=40, help="windows of 512 tokens")
    options.add_argument("--text", type=Path, help="what the files are judged on (default: WikiText-2's test split)")
    options.add_argument("--calibration", type=Path, help="default: quantkit's own text")
    options.add_argument("--threads", type=int, default=min(2, len(os.sched_getaffinity(0))))
    options.add_argument("--auto-round", type=Path, help="a Python with auto-round")
    given = options.parse_args()
    facts = machine()
    print_machine(facts)
    for model in given.model or [smollm2_checkpoint()]:
        folder = WORK / "quality" / model.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        text = given.text
        if text is None:
            text = folder / "wiki.test.raw"
            text.write_text(wikitext2_test(), encoding="utf-8")
        print(f"{model.name}: {given.samples} samples of 512 tokens, {given.chunks} windows of {text.name}")
        bench = Bench(
            model,
            Options(
                given.types, given.sized, given.samples, given.chunks, text, given.calibration, given.threads,
                given.auto_round,
            ),
            folder,
        )  # fmt: skip
        try:
            Path("bench-output").mkdir(exist_ok=True)
            bench.judge(bench.make())
        finally:
            bench.save(f"quality-{model.name}", facts)


if __name__ == "__main__":
    main()
