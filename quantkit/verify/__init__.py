"""Reload what was written and check it against the source, before it gets its final name.

Each check is independent of the code that wrote the file as far as that goes: the header is parsed again, tensors are
read back and dequantized by ggml, token ids and logits come from llama.cpp itself (extra `run`), the source's logits
from a plain numpy forward over the original weights.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from quantkit.outputs.gguf_files import Output, Plan
from quantkit.verify.check import Check
from quantkit.verify.files import check_error, check_files
from quantkit.verify.running import MEMORY, LogitProbe, check_tokens

__all__ = ["Check", "Verified", "verify_plan"]


@dataclass(frozen=True)
class Verified:
    """What is known of an output after its checks. `errors` holds each tensor's relative RMS error."""

    output: Output
    checks: tuple[Check, ...]
    sha256: dict[str, str]
    errors: dict[str, float] = field(default_factory=dict)
    logit_correlation: float | None = None

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.status == "failed")


def verify_plan(
    plan: Plan, *, logits: bool | None = None, progress: Callable[[str], None] = lambda _: None
) -> list[Verified]:
    """Check every output of a finished pass, still under its partial name.

    `logits`: compare with the source's logits; None decides by the model's size and this machine's memory.
    """
    probe = LogitProbe(plan, logits)
    with ThreadPoolExecutor(_workers(plan)) as pool:
        tokens = pool.submit(check_tokens, plan)

        def check(output: Output) -> Verified:
            progress(f"checking {output.type.label}")
            checks, hashes = check_files(plan, output)
            errors: dict[str, float] = {}
            if checks[-1].status == "passed":
                error_check, errors = check_error(plan, output)
                checks += [error_check, tokens.result()]
                if all(check.status != "failed" for check in checks):
                    checks.append(probe.check(output))
            return Verified(output, tuple(checks), hashes, errors, probe.correlations.get(output.type.label))

        return list(pool.map(check, plan.outputs))


def _workers(plan: Plan) -> int:
    """Outputs checked side by side: as many as threads, while all of them together are small against the memory."""
    return plan.threads if plan.disk < min(plan.request.max_ram or MEMORY, MEMORY) // 4 else 1
