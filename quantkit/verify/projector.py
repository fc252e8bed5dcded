"""Projectors, reloaded and checked against the checkpoint before they get their final names."""

from quantkit.outputs.gguf_files import GgufPlan
from quantkit.progress import SILENT, Progress
from quantkit.verify.check import Verified
from quantkit.verify.files import check_error, check_files


def verify_projectors(plan: GgufPlan, *, progress: Progress = SILENT) -> list[Verified]:
    """Check every projector, still under its partial name: header, finite blocks, sampled rows against the source."""
    verified = []
    for output in plan.outputs:
        checks, hashes = check_files(output)
        errors: dict[str, float] = {}
        if checks[-1].status == "passed":
            check, errors = check_error(plan, output)
            checks.append(check)
        progress.advance(1, output.label)
        verified.append(Verified(output, tuple(checks), hashes, errors))
    return verified
