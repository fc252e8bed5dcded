"""Speed of a GGUF file in llama.cpp, by llama-bench's definition (tools/llama-bench/llama-bench.cpp)."""

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from quantkit.gguf.reader import read_header
from quantkit.llamacpp.session import LlamaSession
from quantkit.machine import cores
from quantkit.measurement.load_options import LoadOptions
from quantkit.measurement.memory import all_layers


@dataclass(frozen=True)
class Rate:
    """Tokens per second: the mean of the repetitions, and their standard deviation (None for one repetition)."""

    value: float
    error: float | None

    def document(self) -> dict[str, float]:
        """A value of report.json; without the key "error" for one repetition."""
        return {"value": self.value} | ({"error": self.error} if self.error is not None else {})


@dataclass(frozen=True)
class Speed:
    """Speed of a model.

    Attributes:
        gpu_layers: the number of offloaded layers; cpu_moe: of these the first ones with their experts on the CPU.
        prompt: rate of reading `prompt_tokens` tokens in batches.
        generation: rate of generating `generated_tokens` tokens one by one, in an empty context.
        estimate: the plan's estimate of `generation`; None if there is none.
    """

    gpu_layers: int
    threads: int
    repetitions: int
    prompt_tokens: int
    prompt: Rate
    generated_tokens: int
    generation: Rate
    estimate: float | None = None
    cpu_moe: int = 0

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
            **({"cpu_moe": self.cpu_moe} if self.cpu_moe else {}),
            **({"estimate": self.estimate} if self.estimate is not None else {}),
        }


@dataclass(frozen=True)
class SpeedTests:
    """llama-bench's tests: a prompt of `n_prompt` tokens (pp) and `n_generate` generated tokens (tg), repeated."""

    n_prompt: int = 512
    n_generate: int = 128
    repetitions: int = 5


def measure_speed(
    model: Path,
    options: LoadOptions = LoadOptions(),
    tests: SpeedTests = SpeedTests(),
    *,
    timeout: float | None = None,
) -> Speed:
    """The rates of llama-bench's pp and tg tests.

    The model is loaded once. Each test has a new context and a warm-up run. Unless OMP_WAIT_POLICY is set, waiting
    threads of OpenMP sleep; llama-bench leaves this to the environment. Threads that spin lose most of the speed on a
    machine with other work.

    Args:
        timeout: seconds for each run of a test; None for no limit.

    Raises:
        QuantkitError: llama.cpp rejects the file, runs out of memory, crashes or exceeds the timeout.
    """
    of_layers = all_layers(read_header(model))
    options = replace(options, n_threads=options.n_threads or cores())
    with LlamaSession(model) as session:
        devices = session.ask({"task": "bench_open", **options.request(model)}, timeout=timeout)
        rates = []
        for prompt, tokens in ((True, tests.n_prompt), (False, tests.n_generate)):
            session.ask({"task": "bench_begin", "prompt": prompt, "tokens": tokens}, timeout=timeout)
            speeds = [tokens / session.ask({"task": "bench_run"}, timeout=timeout) for _ in range(tests.repetitions)]
            rates.append(Rate(mean(speeds), stdev(speeds) if tests.repetitions > 1 else None))
    return Speed(
        gpu_layers=_offloaded(options.gpu_layers, of_layers) if devices else 0,
        threads=options.n_threads or cores(),
        repetitions=tests.repetitions,
        prompt_tokens=tests.n_prompt,
        prompt=rates[0],
        generated_tokens=tests.n_generate,
        generation=rates[1],
        cpu_moe=options.cpu_moe if devices else 0,
    )


def _offloaded(gpu_layers: int | None, of_layers: int) -> int:
    return of_layers if gpu_layers is None else min(gpu_layers, of_layers)
