"""Estimates of generation speed beside measurements, and the plan's placement beside every number of whole layers.

A server of llama.cpp's RPC backend on this machine is the device. First part: SmolLM2, a model of Qwen2.5-1.5B's shape
(random weights) and a mixture of real weights, by numbers of layers on the device; the ratio is estimate / measurement.
The device has one half of the cores and the CPU the other half: a device does not compute with the cores of the CPU,
and threads of both on one core would wait for each other. --threads has both on all cores instead.

Second part: the mixture on a device that holds a part of it. This device has a spinning thread on each core, and the
CPU has one thread, so that the device is faster. The plan's placement is measured beside each -ngl that fits.

The fastest run of each counts; placements take turns. The last lines count the placements whose estimate is within
25 %. Results go to the terminal and, as JSON, to bench-output/placement.json.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from gguf import GGMLQuantizationType

from benchmarks.lines import WORK, Lines, Target, machine, print_machine
from demo.smollm2 import smollm2_checkpoint
from quantkit.gguf.reader import read_header
from quantkit.llamacpp.session import LlamaSession
from quantkit.measurement.load_options import LoadOptions
from quantkit.measurement.memory import gpu_devices
from quantkit.measurement.probe_weights import Weights, random_weights
from quantkit.measurement.speed_rows import Estimator, estimator_of
from quantkit.planning.budget import Budget
from quantkit.planning.context import Context
from quantkit.planning.memory import GPU_OVERHEAD, plan_memory
from quantkit.planning.placement import fastest_fit
from quantkit.planning.sizes import as_it_is
from quantkit.planning.sources import open_source
from tests.helpers.moe import smollm2_moe
from tests.helpers.rpc_server import rpc
from tests.planning.models import write_model

QWEN_15 = {"n_layer": 28, "n_embd": 1536, "n_ff": 8960, "n_head": 12, "n_head_kv": 2, "n_vocab": 151936}
_FOLDER = WORK / "placement"
_TOKENS, _RUNS = 4, 8
_LARGE_SPREAD = 7
_N_CTX = 256
_ALLOWED = 0.25
_SHARE = 0.6
"""Part of the model that fits on the device in the second part, besides what a plan assumes of a CUDA context."""


@contextmanager
def device(threads: int | None) -> Iterator[LoadOptions]:
    """An RPC server on one half of the cores, with this process on the other half.

    `threads`: of both, on all cores; None for one on each core of a half.
    """
    cores = os.sched_getaffinity(0)
    half = set(sorted(cores)[: len(cores) // 2])
    if threads is not None or not half:
        of_device = of_cpu = threads or 1
        half = rest = cores
    else:
        rest = cores - half
        of_device, of_cpu = len(rest), len(half)
    try:
        os.sched_setaffinity(0, rest)  # the server inherits it
        with rpc().serving(of_device) as endpoint:
            os.sched_setaffinity(0, half)
            print(f"threads of the device {of_device}, of the CPU {of_cpu}; cores {sorted(rest)} and {sorted(half)}")
            yield LoadOptions(rpc=[endpoint], n_threads=of_cpu)
    finally:
        os.sched_setaffinity(0, cores)


def with_weights(model: Path) -> Path:
    """Random weights in place of the hole of a sparse file."""
    weights: dict[GGMLQuantizationType, Weights] = {}
    with model.open("r+b") as file:
        for slot in read_header(model).tensors:
            file.seek(slot.offset)
            file.write(weights.setdefault(slot.type, random_weights(slot.type)).take(slot.nbytes))
    return model


def converted(checkpoint: Path, kind: str) -> Path:
    """A checkpoint as a GGUF of a type."""
    words = ["gguf", str(checkpoint), "-t", kind, "--no-logits", "-o", str(_FOLDER / checkpoint.name)]
    subprocess.run([sys.executable, "-m", "quantkit", *words, "--format", "quiet"], check=True)
    (path,) = (_FOLDER / checkpoint.name).rglob(f"*-{kind.upper()}.gguf")
    return path


class Bench(Lines):
    """The measurements of one run: the fastest of `runs` rounds over all placements of a model."""

    def __init__(self, rounds: int) -> None:
        super().__init__()
        self.rounds = rounds
        self.verdicts: list[str] = []
        """A sentence for each model."""

    def seconds(self, model: Path, placements: Sequence[LoadOptions]) -> list[float]:
        """Seconds of a token with each placement."""
        fastest = [float("inf")] * len(placements)
        with LlamaSession(model) as session:
            for _ in range(self.rounds):
                for number, options in enumerate(placements):
                    session.ask({"task": "bench_open", **options.request(model)})
                    session.ask({"task": "bench_begin", "prompt": False, "tokens": _TOKENS})
                    runs = [session.ask({"task": "bench_run"}) for _ in range(_RUNS)]
                    fastest[number] = min(fastest[number], *(run / _TOKENS for run in runs))
        return fastest

    def estimates(self, name: str, model: Path, options: LoadOptions, *, spread: int) -> None:
        """Estimate / measurement for numbers of layers from none to all, and with all experts on the CPU."""
        estimator = estimator_of(model, options, gpu_devices(model, rpc=options.rpc))
        self._show_devices(name, estimator)
        layers = estimator.shape.n_layer
        counts = sorted({0, 1, layers, layers + 1, *range(0, layers + 1, max(layers // spread, 1))})
        placements = [replace(options, gpu_layers=count) for count in counts]
        if estimator.shape.has_experts:
            placements += [replace(options, gpu_layers=layers + 1, cpu_moe=moe) for moe in (layers // 2, layers)]
        ratios = []
        for placed, seconds in zip(placements, self.seconds(model, placements), strict=True):
            estimate = estimator.tokens_per_second(placed, _TOKENS)
            label = f"-ngl {placed.gpu_layers}" + (f" --n-cpu-moe {placed.cpu_moe}" if placed.cpu_moe else "")
            self.add(Target(f"{label}: measured", name, 1 / seconds, "tokens/s"))
            ratio = estimate * seconds
            self.add(Target("  estimate / measurement", name, ratio, "", at_most=1 + _ALLOWED, at_least=1 - _ALLOWED))
            ratios.append(ratio)
        within = sum(abs(ratio - 1) <= _ALLOWED for ratio in ratios)
        self.verdicts.append(
            f"{name}: {within} of {len(ratios)} placements within {_ALLOWED:.0%}, ratios {min(ratios):.2f}"
            f" to {max(ratios):.2f}"
        )

    def best_placement(self, name: str, model: Path, options: LoadOptions) -> None:
        """The plan's placement in a part of the model's memory, against each number of layers that fits there."""
        estimator = estimator_of(model, options, gpu_devices(model, rpc=options.rpc))
        self._show_devices(f"{name}, CPU with {options.n_threads} threads", estimator)
        source = open_source(str(model))
        shape, offer, context = source.shape, as_it_is(source), Context(_N_CTX, op_offload=False)

        def memory(layers: int) -> int:
            placed = plan_memory(shape, offer.tensors, replace(context, gpu_layers=layers), has_gpu=True)
            return placed.gpus[0].total

        room = GPU_OVERHEAD + int(_SHARE * (memory(shape.n_layer + 1) - GPU_OVERHEAD))
        counts = [count for count in range(shape.n_layer + 2) if memory(count) <= room]
        fit = fastest_fit(shape, offer, context, Budget(1 << 62, room), estimator.speeds).fit
        chosen = replace(
            options,
            gpu_layers=fit.gpu_layers,
            cpu_moe=fit.cpu_moe,
            kv_on_gpu=fit.memory.context.kv_on_gpu,
        )
        whole = [replace(options, gpu_layers=count) for count in counts]
        # a placement that is measured twice differs from itself by several per cent
        others = self.seconds(model, whole if chosen in whole else [*whole, chosen])
        ours = others[whole.index(chosen)] if chosen in whole else others.pop()
        best = min(others)
        self.raw[f"{name} -ngl"] = {str(count): 1 / seconds for count, seconds in zip(counts, others, strict=True)}
        label = f"-ngl {fit.gpu_layers}" + (f" --n-cpu-moe {fit.cpu_moe}" if fit.cpu_moe else "")
        label += "" if chosen.kv_on_gpu else " --no-kv-offload"
        self.add(Target(f"the plan's placement, {label}", name, 1 / ours, "tokens/s"))
        self.add(
            Target(f"the best -ngl of 0 to {counts[-1]}: {counts[others.index(best)]}", name, 1 / best, "tokens/s")
        )
        self.add(Target("  speed, plan / best -ngl", name, best / ours, "", at_least=0.97))

    def _show_devices(self, name: str, estimator: Estimator) -> None:
        self.raw[f"{name} devices"] = estimator.document()
        for entry in estimator.document():
            rates = ", ".join(
                f"{rate['bandwidth'] / 1e9:.2f} GB/s ({rate['type'].lower()})" for rate in entry["by_type"]
            )
            overheads = ", ".join(
                f"{kind} {entry[kind] * 1e6:.2g} us" for kind in ("operation", "transfer", "description", "token")
            )
            print(f"  {name}: {entry['name']} {rates}; {overheads}", flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--threads", type=int, help="of the device and of the CPU, on all cores; without it each has half of the cores"
    )
    options.add_argument("--rounds", type=int, default=3, help="rounds over all placements; the fastest run counts")
    options.add_argument(
        "--spread",
        type=int,
        default=15,
        help=f"steps between no layer and all layers; of the 1.5B at most {_LARGE_SPREAD}",
    )
    options.add_argument(
        "--model", choices=("smollm2", "1.5b", "mixture", "best"), action="append", help="default: all"
    )
    arguments = options.parse_args()
    wanted = arguments.model or ["smollm2", "1.5b", "mixture", "best"]
    facts = machine()
    print_machine(facts)
    print(f"load average {os.getloadavg()[0]:.1f}; the fastest of {arguments.rounds} rounds")
    shutil.rmtree(_FOLDER, ignore_errors=True)
    _FOLDER.mkdir(parents=True)
    bench = Bench(arguments.rounds)
    try:
        os.environ["GGML_BACKEND_PATH"] = str(rpc().backend)
        with device(arguments.threads) as usual:
            if "smollm2" in wanted:
                smollm2 = converted(smollm2_checkpoint(), "q4_0")
                bench.estimates("SmolLM2-135M q4_0", smollm2, usual, spread=arguments.spread)
            if "1.5b" in wanted:
                large = with_weights(write_model(_FOLDER / "qwen.gguf", QWEN_15, GGMLQuantizationType.Q4_0))
                bench.estimates("Qwen2.5-1.5B's shape q4_0", large, usual, spread=min(arguments.spread, _LARGE_SPREAD))
                large.unlink()
            if "mixture" in wanted:
                mixture = converted(smollm2_moe(), "q4_0")
                bench.estimates("SmolLM2 4x135M q4_0", mixture, usual, spread=arguments.spread)
        if "best" in wanted:
            # of a type that computing limits: one thread reads q8_0 as fast as two, and every placement is alike
            mixture = converted(smollm2_moe(), "q5_1")
            with rpc().serving(len(os.sched_getaffinity(0)), spinning=True) as endpoint:
                bench.best_placement("SmolLM2 4x135M q5_1", mixture, LoadOptions(rpc=[endpoint], n_threads=1))
    finally:
        shutil.rmtree(_FOLDER, ignore_errors=True)
        print("\n".join(bench.verdicts))
        print(f"load average {os.getloadavg()[0]:.1f} at the end")
        bench.save("placement", facts)


if __name__ == "__main__":
    main()
