"""Written outputs, reloaded and checked against the source before they get their final names.

Each check is as independent as possible of the code that wrote the file. The header is parsed again. Tensors are read
back and dequantized by ggml. Token ids and logits come from llama.cpp (extra `run`). The source's logits come from a
plain numpy forward over the original weights.
"""

from concurrent.futures import ThreadPoolExecutor

from quantkit.llamacpp.session import children_reused
from quantkit.outputs.gguf_files import GgufOutput, GgufPlan
from quantkit.progress import SILENT, Progress
from quantkit.verify.check import Check, Verified
from quantkit.verify.files import check_error, check_files
from quantkit.verify.running import check_logits, check_tokens
from quantkit.verify.source_logits import SourceLogits
from quantkit.verify.transformers_logits import TransformersLogits, check_transformers

__all__ = ["Check", "Verified", "verify_gguf"]


def verify_gguf(
    plan: GgufPlan,
    *,
    logits: bool | None = None,
    source: SourceLogits | None = None,
    reference: TransformersLogits | None = None,
    progress: Progress = SILENT,
) -> list[Verified]:
    """Check every GGUF file of a finished pass, still under its partial name.

    `logits`: compare with the source's logits; None decides by the model's size and the memory. `source` shares the
    source's logits with the checks of other outputs. `reference`: compare the logits with transformers', too.
    """
    if source is None and plan.model.checkpoint is not None:
        source = SourceLogits(plan.model.checkpoint)
    with children_reused(), ThreadPoolExecutor(plan.checked_at_once) as pool:
        tokens = pool.submit(check_tokens, plan, source)

        def check(output: GgufOutput) -> Verified:
            checks, hashes = check_files(output)
            errors: dict[str, float] = {}
            correlation = None
            if checks[-1].status == "passed":
                error_check, errors = check_error(plan, output)
                checks += [error_check, tokens.result()]
                if all(check.status != "failed" for check in checks):
                    logit_check, correlation = check_logits(plan, output, source, logits)
                    checks.append(logit_check)
                    if reference is not None:
                        checks.append(check_transformers(output, reference))
            progress.advance(1, output.label)
            return Verified(output, tuple(checks), hashes, errors, correlation)

        return list(pool.map(check, plan.outputs))
