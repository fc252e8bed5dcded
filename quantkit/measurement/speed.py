"""Speed of a GGUF file in llama.cpp, by llama-bench's definition (tools/llama-bench/llama-bench.cpp)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from quantkit.gguf.reader import read_header
from quantkit.llamacpp.session import LlamaSession
from quantkit.machine import cores
from quantkit.measurement.memory import all_layers, load_request

N_BATCH, N_UBATCH = 2048, 512


@dataclass(frozen=True)
class Rate:
    """Tokens a second: the mean over the repetitions, and their standard deviation (None of a single one)."""

    value: float
    error: float | None

    def document(self) -> dict[str, float]:
        return {"value": self.value} | ({"error": self.error} if self.error is not None else {})


@dataclass(frozen=True)
class Speed:
    """`prompt`: of prompt_tokens at once, in batches; `generation`: of generated_tokens one by one, from nothing."""

    gpu_layers: int
    threads: int
    repetitions: int
    prompt_tokens: int
    prompt: Rate
    generated_tokens: int
    generation: Rate

    def document(self) -> dict[str, Any]:
        """A row of report.json's "speed"."""
        return {
            "gpu_layers": self.gpu_layers,
            "threads": self.threads,
            "repetitions": self.repetitions,
            "prompt_tokens": self.prompt_tokens,
            "prompt": self.prompt.document(),
            "generated_tokens": self.generated_tokens,
            "generation": self.generation.document(),
        }


def measure_speed(
    model: Path,
    *,
    gpu_layers: int | None = None,
    n_threads: int | None = None,
    n_prompt: int = 512,
    n_generate: int = 128,
    repetitions: int = 5,
    rpc: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
    timeout: float | None = None,
) -> Speed:
    """llama-bench's pp and tg tests: the model loaded once, each test in a context of its own, after a warm-up.

    OpenMP's threads sleep while they wait unless OMP_WAIT_POLICY says otherwise, which llama-bench leaves to the
    environment: on a machine with other work to do, spinning costs either of them most of its speed.

    `gpu_layers` None offloads all; without a device, 0 it is. `n_threads` None: as many as this process may use.
    `timeout`: seconds for each run of a test. Raises as `loaded_memory` does.
    """
    of_layers = all_layers(read_header(model))
    threads = n_threads or cores()
    request = load_request(model, gpu_layers, "f16", None, N_BATCH, N_UBATCH, threads, rpc)
    with LlamaSession(model) as session:
        devices = session.ask({"task": "bench_open", **request}, timeout=timeout)
        rates = []
        for test, (prompt, tokens) in enumerate([(True, n_prompt), (False, n_generate)]):
            session.ask({"task": "bench_begin", "prompt": prompt, "tokens": tokens}, timeout=timeout)
            speeds = []
            for repetition in range(repetitions):
                speeds.append(tokens / session.ask({"task": "bench_run"}, timeout=timeout))
                if progress is not None:
                    progress(test * repetitions + repetition + 1, 2 * repetitions)
            rates.append(Rate(mean(speeds), stdev(speeds) if repetitions > 1 else None))
    return Speed(
        gpu_layers=(of_layers if gpu_layers is None else min(gpu_layers, of_layers)) if devices else 0,
        threads=threads,
        repetitions=repetitions,
        prompt_tokens=n_prompt,
        prompt=rates[0],
        generated_tokens=n_generate,
        generation=rates[1],
    )
