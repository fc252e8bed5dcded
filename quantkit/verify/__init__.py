"""Written outputs, reloaded and checked against the source before they get their final names.

Each check is as independent as possible of the code that wrote the file. The header is parsed again. Tensors are read
back and dequantized by ggml. Token ids and logits come from llama.cpp (extra `run`). The source's logits come from a
plain numpy forward over the original weights.
"""

import contextlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import MappingProxyType

from quantkit.errors import MissingExtraError
from quantkit.llamacpp.session import children_reused, require_llama_cpp
from quantkit.outputs.gguf_files import GgufOutput, GgufPlan
from quantkit.progress import SILENT, Progress
from quantkit.quant.neurons import Moved
from quantkit.verify.check import Check, Verified
from quantkit.verify.files import check_errors, check_files
from quantkit.verify.running import check_logits, check_tokens
from quantkit.verify.source_logits import SourceLogits, skipped_logits
from quantkit.verify.transformers_logits import TransformersLogits, check_transformers

__all__ = ["Check", "Verified", "verify_gguf"]


def verify_gguf(
    plan: GgufPlan,
    *,
    logits: bool | None = None,
    source: SourceLogits | None = None,
    reference: TransformersLogits | None = None,
    moved: Mapping[str, Moved] = MappingProxyType({}),
    progress: Progress = SILENT,
) -> list[Verified]:
    """Check every GGUF file of a finished pass, still under its partial name.

    `logits`: compare with the source's logits; None decides by the model's size and the memory. `source` shares the
    source's logits with the checks of other outputs. `reference`: compare the logits with transformers', too. `moved`:
    matrices whose neurons have another order than in the source, by `quant.neurons.matrix_key`.
    """
    if source is None and plan.model.checkpoint is not None:
        source = SourceLogits(plan.model.checkpoint, plan.model.probe_ids)
    with children_reused(), ThreadPoolExecutor(plan.checked_at_once) as pool:
        try:
            return _Checks(plan, pool, logits, source, reference, moved).results(progress)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Checks:
    """The checks of a pass's files as tasks of a pool; a task waits only for tasks that were submitted before it."""

    def __init__(
        self,
        plan: GgufPlan,
        pool: ThreadPoolExecutor,
        logits: bool | None,
        source: SourceLogits | None,
        reference: TransformersLogits | None,
        moved: Mapping[str, Moved],
    ) -> None:
        self._moved = moved
        self._plan, self._logits, self._source, self._reference = plan, logits, source, reference
        skipped = (skipped_logits(logits, output.size, plan.request.max_ram) for output in plan.outputs)
        if source is not None and not plan.model.draft_only and not all(skipped):
            with contextlib.suppress(MissingExtraError):
                require_llama_cpp()
                pool.submit(source.get)
        self._tokens = pool.submit(check_tokens, plan, source)
        self._files: dict[str, Future[tuple[list[Check], dict[str, str]]]] = {}
        self._running: dict[str, Future[tuple[list[Check], float | None]]] = {}
        # with one file at a time llama.cpp runs a file while the system still holds it
        one = plan.checked_at_once == 1
        for output in plan.outputs:
            self._files[output.label] = pool.submit(check_files, output)
            if one:
                self._running[output.label] = pool.submit(self._run, output)
        self._errors = pool.submit(self._compare)
        for output in () if one else plan.outputs:
            self._running[output.label] = pool.submit(self._run, output)

    def _is_sound(self, output: GgufOutput) -> bool:
        checks, _ = self._files[output.label].result()
        return checks[-1].status == "passed"

    def _compare(self) -> dict[str, tuple[Check, dict[str, float]]]:
        """The check of errors, and the errors by tensor, of each sound file."""
        outputs = [output for output in self._plan.outputs if self._is_sound(output)]
        labels = [output.label for output in outputs]
        return dict(zip(labels, check_errors(self._plan, outputs, self._moved), strict=True))

    def _run(self, output: GgufOutput) -> tuple[list[Check], float | None]:
        """The checks by running a sound file."""
        if not self._is_sound(output) or self._tokens.result().status == "failed":
            return [], None
        check, correlation = check_logits(self._plan, output, self._source, self._logits)
        more = [] if self._reference is None else [check_transformers(output, self._reference)]
        return [check, *more], correlation

    def results(self, progress: Progress) -> list[Verified]:
        """Wait for the checks of each output."""
        verified = []
        for output in self._plan.outputs:
            checks, hashes = self._files[output.label].result()
            errors: dict[str, float] = {}
            correlation = None
            if self._is_sound(output):
                running, correlation = self._running[output.label].result()
                error_check, errors = self._errors.result()[output.label]
                checks = [*checks, error_check, self._tokens.result()]
                if error_check.status == "failed":
                    correlation = None
                else:
                    checks += running
            progress.advance(1, output.label)
            verified.append(Verified(output, tuple(checks), hashes, errors, correlation))
        return verified
