"""What a folder of AWQ or GPTQ costs the model: quantkit's beside GPTQModel's, AutoAWQ's and AutoRound's.

All get the same samples; `quantkit measure` judges all on one text that none was calibrated on. The peers run in
environments of their own (tests.peers.environments). Results go to the terminal, to
bench-output/folders-MODEL-GROUP.json and as a table to bench-output/folders-MODEL-GROUP.md. Folders stay in
.cache/bench/folders/MODEL-GROUP, with what is not usual of --samples, --calibration and --seq-len at its end; a later
run makes only what is missing.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lines import REPOSITORY, WORK, Lines, Target, machine, print_machine
from benchmarks.quality import MODELS, STORIES, suffix, texts, usual_length
from benchmarks.quality_files import CALIBRATION_HELP, calibration_texts, sample_request, text_words
from benchmarks.stories import story_texts
from quantkit.checkpoint import open_checkpoint
from quantkit.texts.samples import load_samples
from tests.peers.environments import run_inside

OURS, QUALITIES = ("awq", "gptq"), ("standard", "best")
PEERS = {
    "gptqmodel-gptq": ("gptqmodel", "quantize_gptqmodel.py"),
    "gptqmodel-awq": ("gptqmodel", "quantize_gptqmodel.py"),
    "autoawq": ("autoawq", "quantize_autoawq.py"),
    "autoround-rtn-gptq": ("bitsandbytes", "quantize_autoround.py"),
    "autoround-rtn-awq": ("bitsandbytes", "quantize_autoround.py"),
    "autoround-gptq": ("bitsandbytes", "quantize_autoround.py"),
    "autoround-awq": ("bitsandbytes", "quantize_autoround.py"),
}
"""The environment of each peer, and the script that runs in it."""
_SAMPLES = 32
_TUNED = 200  # iterations of AutoRound's tuning, its default


class Bench(Lines):
    """The folders of one model in `folder`, calibrated on `samples`, int32 (n_samples, length)."""

    def __init__(self, model: Path, folder: Path, samples: Path, group: int) -> None:
        super().__init__()
        self.model, self.folder, self.samples, self.group = model, folder, samples, group

    def ours(self, calibration: Sequence[str], threads: int, quality: str) -> list[Path]:
        """Both of quantkit's folders of a --quality, of one conversion."""
        suffix = "" if quality == "standard" else f"-{quality}"
        paths = [self.folder / f"quantkit-{kind}{suffix}" for kind in OURS]
        if not all(path.exists() for path in paths):
            made, shape = self.folder / "ours", np.load(self.samples).shape
            words = [word for kind in OURS for word in ("-t", kind)] + ["--group-size", str(self.group)]
            words += ["--samples", str(shape[0]), "--seq-len", str(shape[1]), "--threads", str(threads)]
            words += ["--quality", quality, *text_words(calibration)]
            start = time.monotonic()
            _quantkit("convert", self.model, *words, "--no-logits", "-o", made, "--format", "quiet")
            self.raw[f"quantkit{suffix}, both"] = {"wall": round(time.monotonic() - start, 1)}
            for kind, path in zip(OURS, paths, strict=True):
                next(made.glob(f"*-{kind.upper()}")).rename(path)
            shutil.rmtree(made)
        return paths

    def peer(self, name: str) -> Path:
        """A peer's folder. Raises AssertionError with its words if it fails."""
        path = self.folder / name
        if not path.exists():
            partial = path.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            environment, script = PEERS[name]
            output = run_inside(environment, script, *self._arguments(name, partial))
            # AutoRound writes into a folder of its own in it
            made = next(partial.rglob("config.json")).parent
            made.rename(path)
            shutil.rmtree(partial, ignore_errors=True)
            # libraries may print lines after it
            self.raw[name] = json.loads([line for line in output.splitlines() if line.startswith("{")][-1])
        return path

    def _arguments(self, name: str, out: Path) -> list[str | Path]:
        files: list[str | Path] = [self.model, self.samples, out]
        method = name.rpartition("-")[2]
        if name.startswith("autoround"):
            return [f"auto_{method}", *files, str(self.group), "0" if "rtn" in name else str(_TUNED)]
        if name == "autoawq":
            return ["float32", *files, str(self.group)]
        fields = [f"group_size={self.group}", *(["sym=false"] if method == "awq" else [])]
        return [method, "float32", *files, *fields]

    def judge(self, paths: Sequence[Path], text: Path, chunks: int, threads: int) -> str:
        """The lines of all folders, and their table."""
        out = self.folder / "report"
        length = str(np.load(self.samples).shape[1])
        words = ["--text", text, "--chunks", str(chunks), "--ctx", length, "--threads", str(threads)]
        _quantkit("measure", self.model, *paths, *words, "-o", out, "--force", "--format", "quiet")
        report: dict[str, Any] = json.loads((out / "report.json").read_text())
        rows = ["| folder | perplexity | mean KL | same top token |", "|---|---|---|---|"]
        for model in report["models"]:
            name = Path(model["path"]).name
            if name not in {path.name for path in paths}:
                continue
            (quality,) = model["quality"]
            self.raw.setdefault("figures", {})[name] = quality
            ratio, top = quality["perplexity_ratio"], quality["top1"]["value"]
            self.add(Target("mean KL", name, quality["kl"]["mean"], ""))
            change = f"{100 * (ratio['value'] - 1):+.1f} ± {100 * ratio['error']:.1f} %"
            rows.append(f"| {name} | {change} | {quality['kl']['mean']:.4f} | {top:.1%} |")
        return "\n".join(rows) + "\n"


def _quantkit(*words: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "quantkit", *map(str, words)], check=True, cwd=REPOSITORY)


def _samples(model: Path, calibration: Sequence[str], n_samples: int, length: int, path: Path) -> Path:
    """The samples that quantkit makes of the text, as a file."""
    with open_checkpoint(str(model)) as checkpoint:
        samples = load_samples(checkpoint, sample_request(calibration, n_samples, length))
    np.save(path, samples.tokens.astype(np.int32))
    return path


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="smollm2", help=f"a folder, or {', '.join(MODELS)}")
    options.add_argument("--group-size", type=int, default=64)
    options.add_argument("--samples", type=int, default=_SAMPLES)
    options.add_argument("--seq-len", type=int, help="tokens of a sample and of a window (512; stories: 256)")
    options.add_argument("--calibration", action="append", help=CALIBRATION_HELP)
    options.add_argument("--text", type=Path, help="default: WikiText-2's test split, or stories")
    options.add_argument("--chunks", type=int, default=16, help="windows of the text")
    options.add_argument("--peers", nargs="*", choices=PEERS, default=["gptqmodel-gptq", "autoround-rtn-gptq"])
    options.add_argument("--quality", nargs="*", choices=QUALITIES, default=QUALITIES, help="of quantkit's folders")
    options.add_argument("--threads", type=int, default=1)
    given = options.parse_args()
    facts = machine()
    print_machine(facts)
    model = MODELS[given.model]() if given.model in MODELS else Path(given.model)
    samples_suffix = "" if given.samples == _SAMPLES else f"-samples-{given.samples}"
    folder = WORK / "folders" / f"{model.name}-{given.group_size}{samples_suffix}{suffix(given, given.model)}"
    folder.mkdir(parents=True, exist_ok=True)
    calibration, text = calibration_texts(given.calibration or []), given.text or texts(folder)[0]
    if given.model in STORIES:
        stories = story_texts(WORK / "quality" / "stories")
        calibration, text = calibration or [str(stories[0])], given.text or stories[1]
    length = given.seq_len or usual_length(given.model)
    samples = _samples(model, calibration, given.samples, length, folder / "samples.npy")
    bench = Bench(model, folder, samples, given.group_size)
    name = f"folders-{model.name}-{given.group_size}"
    try:
        ours = [path for quality in given.quality for path in bench.ours(calibration, given.threads, quality)]
        paths = [*ours, *map(bench.peer, given.peers)]
        table = bench.judge(paths, text, given.chunks, given.threads)
        (REPOSITORY / "bench-output").mkdir(exist_ok=True)
        (REPOSITORY / "bench-output" / f"{name}.md").write_text(table, encoding="utf-8")
        print(table)
    finally:
        bench.save(name, facts)


if __name__ == "__main__":
    main()
