"""`make bench-quality`: what a file of each type and size costs the model, ours beside llama.cpp's and AutoRound's.

All makers calibrate each model on the same samples: llama-imatrix and llama-quantize make their files from its bf16
GGUF, quantkit makes its own with `--solver feedback`, and `--target-size` one of the size of each standard mix that is
asked for. `quantkit measure` then judges all files on texts that none was calibrated on: WikiText-2's test split, a
Chinese one, and code. Results go to the terminal, to bench-output/quality-MODEL.json, as a table to
bench-output/quality-MODEL.md, and as a plot to bench-output/quality-MODEL.svg.

The files stay in .cache/bench/quality/MODEL-SAMPLES, with the names of --calibration texts and another --seq-len at its
end; quantkit's of other options than --solver feedback are in a folder of these options below. A later run makes only
what is missing there, and a killed run continues; --fresh starts over. AutoRound takes part where --auto-round names a
Python that has it (pip install auto-round, PyPI).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.lines import REPOSITORY, WORK, Lines, Target, machine, print_machine
from benchmarks.pareto import Point, pareto_svg
from benchmarks.quality_files import (
    AUTO_ROUND,
    CALIBRATION_HELP,
    FEEDBACK,
    IMATRIX,
    SIZED,
    Files,
    Options,
    calibration_texts,
    folder_suffix,
)
from benchmarks.qwen_coder import LARGE, qwen_coder_checkpoint
from benchmarks.stories import CONTEXT, stories_checkpoint, story_texts
from demo.smollm2 import smollm2_checkpoint
from demo.wikitext import wikitext2_test
from quantkit.texts.mixed import DEFAULT

# KL of ours over KL of llama-imatrix + llama-quantize, at most.
BOUNDS = {
    "q2_k": 0.65, "q3_k_m": 0.65, "q4_0": 0.60, "iq4_xs": 0.80, "q4_1": 0.60, "q4_k_m": 0.75, "q5_0": 0.60,
    "q5_k_m": 0.75, "q6_k": 0.75,
}  # fmt: skip
SIZED_BOUND = 0.55
_CODE_CHARACTERS = 30_000

MODELS: dict[str, Callable[[], Path]] = {
    "smollm2": smollm2_checkpoint,
    "qwen-coder": qwen_coder_checkpoint,
    "qwen-coder-1.5b": partial(qwen_coder_checkpoint, LARGE),
    "stories": stories_checkpoint,
    "stories-mixture": partial(stories_checkpoint, mixture=True),
}
STORIES = ("stories", "stories-mixture")
"""Models that know nothing but stories: they are calibrated and judged on stories that stories15M wrote."""

Figures = dict[str, float]


def texts(folder: Path) -> list[Path]:
    """WikiText-2's test split, our Chinese README, and a module of Python's library, as files of `folder`."""
    contents = {
        "wiki.test.raw": wikitext2_test(),
        "chinese.txt": (REPOSITORY / "README.zh-CN.md").read_text("utf-8"),
        "code.txt": Path(argparse.__file__).read_text("utf-8")[:_CODE_CHARACTERS],
    }
    for name, content in contents.items():
        # kept as it is by a later run, for which the figures of a changed text would not be comparable
        if not (folder / name).exists():
            (folder / name).write_text(content, encoding="utf-8")
    return [folder / name for name in contents]


def judge(files: Files, made: Mapping[str, Sequence[Path]], judged: Sequence[Path], chunks: int) -> dict[str, Any]:
    """The report of `quantkit measure` over all files; a killed run continues."""
    out = files.folder / "report"
    paths = [str(path) for some in made.values() for path in some]
    words = [word for text in judged for word in ("--text", str(text))]
    command = [sys.executable, "-m", "quantkit", "measure", str(files.model), *paths, *words]
    command += [
        "--chunks",
        str(chunks),
        "--ctx",
        str(files.options.length),
        "--gpu-layers",
        "none",
        "--threads",
        str(files.options.threads),
    ]
    subprocess.run([*command, "-o", str(out), "--force", "--format", "quiet"], check=True, cwd=REPOSITORY)
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def figures(report: Mapping[str, Any], made: Mapping[str, Sequence[Path]]) -> dict[str, dict[str, dict[str, Figures]]]:
    """The figures of each file on each text, by maker, kind of file and text."""
    models = {Path(model["path"]).name: model for model in report["models"]}
    return {
        maker: {
            kind_of(path): {
                quality["text"]: {
                    "bytes": float(models[path.name]["bytes"]),
                    "kl": quality["kl"]["mean"],
                    "kl_error": quality["kl"]["error"],
                    "perplexity_change": quality["perplexity_ratio"]["value"] - 1,
                    "perplexity_error": quality["perplexity_ratio"]["error"],
                    "same_top": quality["top1"]["value"],
                }
                for quality in models[path.name]["quality"]
            }
            for path in paths
        }
        for maker, paths in made.items()
    }


def kind_of(path: Path) -> str:
    """What a file is compared as: its type, or the type whose size it has."""
    return path.stem.partition("-")[2] if path.stem.startswith("sized") else path.stem.rpartition("-")[2]


def table(found: Mapping[str, Mapping[str, Mapping[str, Figures]]], text: str) -> str:
    """The figures on one text, as a table of Markdown: quantkit beside llama-imatrix, and the ratio of the KLs."""
    lines = [
        "| type | size | llama-imatrix + llama-quantize | quantkit | KL ratio |",
        "|---|---|---|---|---|",
    ]
    for maker, name in ((FEEDBACK, "{}"), (SIZED, "size of {}"), (AUTO_ROUND, "{}, AutoRound")):
        for kind, by_text in found.get(maker, {}).items():
            ours, theirs = by_text[text], found[IMATRIX][kind][text]
            cells = [name.format(kind), f"{ours['bytes'] / 1e6:.1f} MB", _cell(theirs), _cell(ours)]
            lines.append(f"| {' | '.join(cells)} | {ours['kl'] / theirs['kl']:.2f} |")
    return "\n".join(lines) + "\n"


def _cell(one: Figures) -> str:
    change, error = 100 * one["perplexity_change"], 100 * one["perplexity_error"]
    return f"KL {one['kl']:.4f}, same top {one['same_top']:.1%}, perplexity {change:+.1f} ± {error:.1f} %"


class Bench(Lines):
    """The lines of one model."""

    def compare(self, found: Mapping[str, Mapping[str, Mapping[str, Figures]]], judged: Sequence[str]) -> None:
        """KL of ours over llama.cpp's on each text, held against the bounds on the first one."""
        for number, text in enumerate(judged):
            for maker, bounds in ((FEEDBACK, BOUNDS), (SIZED, dict.fromkeys(BOUNDS, SIZED_BOUND))):
                for kind, by_text in found.get(maker, {}).items():
                    ratio = by_text[text]["kl"] / found[IMATRIX][kind][text]["kl"]
                    bound = bounds.get(kind) if number == 0 else 1.0
                    self.add(Target(f"KL / llama-imatrix's, {maker}, {text}", kind, ratio, "", at_most=bound))

    def publish(self, name: str, found: dict[str, dict[str, dict[str, Figures]]], judged: Sequence[str]) -> None:
        """Write the table and the plot."""
        out = Path("bench-output")
        out.mkdir(exist_ok=True)
        tables = [f"{text}\n\n{table(found, text)}" for text in judged]
        (out / f"quality-{name}.md").write_text("\n".join(tables), encoding="utf-8")
        first = judged[0]
        series = {
            maker: [Point(by_text[first]["bytes"] / 1e6, by_text[first]["kl"], kind) for kind, by_text in some.items()]
            for maker, some in found.items()
        }
        (out / f"quality-{name}.svg").write_text(pareto_svg(series, f"{name}, {first}"), encoding="utf-8")


def _arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--model", action="append", help=f"a folder, or {', '.join(MODELS)} (default: smollm2); repeat"
    )
    options.add_argument("--types", nargs="+", default=list(BOUNDS))
    options.add_argument("--sized", nargs="*", default=["q4_k_m", "q2_k"], help="sizes that --target-size gets")
    options.add_argument("--samples", type=int, default=32)
    options.add_argument("--seq-len", type=int, help="tokens of a sample and of a window (512; stories: 256)")
    options.add_argument("--chunks", type=int, default=20, help="windows of each text")
    options.add_argument("--text", type=Path, action="append", help="what the files are judged on instead; repeat")
    options.add_argument("--calibration", action="append", help=CALIBRATION_HELP)
    options.add_argument("--threads", type=int, default=min(2, len(os.sched_getaffinity(0))))
    options.add_argument("--plain", action="store_true", help="also llama-quantize without an importance matrix")
    options.add_argument("--solver", choices=["llama.cpp", "feedback"], default="feedback", help="of quantkit's files")
    options.add_argument("--quality", choices=["high", "best"], help="of quantkit's files, in place of --solver")
    options.add_argument("--reorder-neurons", action="store_true", help="in quantkit's files")
    options.add_argument("--auto-round", type=Path, help="a Python with auto-round")
    options.add_argument("--auto-round-iterations", type=int, default=200, help="0: its opt-RTN")
    options.add_argument("--fresh", action="store_true", help="make every file anew")
    return options.parse_args()


def _options(given: argparse.Namespace, model: str) -> Options:
    calibration, length = calibration_texts(given.calibration or []), given.seq_len or usual_length(model)
    if model in STORIES:
        calibration = calibration or [str(story_texts(WORK / "quality" / "stories")[0])]
    return Options(
        given.types, given.sized, given.samples, length, calibration, given.threads, given.plain,
        _solver(given), given.auto_round, given.auto_round_iterations,
    )  # fmt: skip


def usual_length(model: str) -> int:
    """Tokens of a sample where no --seq-len is given."""
    return CONTEXT if model in STORIES else 512


def suffix(given: argparse.Namespace, model: str) -> str:
    """The end of the name of a model's folder: the --calibration and --seq-len that are not the usual ones."""
    usual = given.calibration == [DEFAULT] and model not in STORIES
    length = None if given.seq_len == usual_length(model) else given.seq_len
    return folder_suffix([] if usual else given.calibration or [], length)


def _solver(given: argparse.Namespace) -> list[str]:
    """The options of convert for quantkit's own files."""
    words = ["--quality", given.quality] if given.quality else ["--solver", given.solver]
    return [*words, *(["--reorder-neurons"] if given.reorder_neurons else [])]


def main() -> None:
    given = _arguments()
    facts = machine()
    print_machine(facts)
    for name in given.model or ["smollm2"]:
        model = MODELS[name]() if name in MODELS else Path(name)
        options = _options(given, name)
        folder = WORK / "quality" / f"{model.name}-{given.samples}{suffix(given, name)}"
        if given.fresh:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        judged = given.text or texts(folder)
        if name in STORIES and not given.text:
            judged = [story_texts(WORK / "quality" / "stories")[1], judged[0]]
        print(f"{model.name}: {given.samples} samples of {options.length} tokens, {given.chunks} windows of each text")
        files, bench = Files(model, options, folder), Bench()
        try:
            made = files.make()
            found = figures(judge(files, made, judged, given.chunks), made)
            bench.raw |= {"figures": found, "seconds": files.seconds}
            names = list(next(iter(next(iter(found.values())).values())))
            bench.compare(found, names)
            bench.publish(model.name, found, names)
        finally:
            bench.save(f"quality-{model.name}", facts)


if __name__ == "__main__":
    main()
