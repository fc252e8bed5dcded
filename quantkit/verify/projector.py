"""Projectors, reloaded and checked against the checkpoint before they get their final names."""

import re

from quantkit.errors import QuantkitError
from quantkit.files import partial_path
from quantkit.outputs.gguf_files import GgufOutput, GgufPlan
from quantkit.progress import SILENT, Progress
from quantkit.scratch import scratch_folder
from quantkit.verify.check import Check, Verified, guard
from quantkit.verify.files import check_errors, check_files
from quantkit.verify.running import loadable
from quantkit.verify.source_logits import skipped_logits

_UNKNOWN = re.compile("unknown (model architecture|projector type)|unknown pre-tokenizer", re.IGNORECASE)


class _Unknown(Exception):
    """The installed llama.cpp is older than the model."""


def verify_projectors(
    plan: GgufPlan, text: GgufPlan, *, logits: bool | None = None, progress: Progress = SILENT
) -> list[Verified]:
    """Check every projector, still under its partial name.

    Header, finite blocks, sampled rows against the source; and llama.cpp loads it beside the smallest text model of the
    plan `text`. `logits`: whether llama.cpp runs at all; None decides by the size and the memory.
    """
    model = min(text.outputs, key=lambda output: output.size) if text.outputs else None
    verified = []
    for output in plan.outputs:
        checks, hashes = check_files(output)
        errors: dict[str, float] = {}
        if checks[-1].status == "passed":
            ((check, errors),) = check_errors(plan, [output])
            checks.append(check)
            if model is not None and check.status != "failed":
                checks.append(_check_load(output, model, logits, text.request.max_ram))
        progress.advance(1, output.label)
        verified.append(Verified(output, tuple(checks), hashes, errors))
    return verified


def _check_load(output: GgufOutput, model: GgufOutput, requested: bool | None, max_ram: int | None) -> Check:
    """Whether libmtmd loads the projector for the text model: it finds every tensor, and the widths fit."""
    skipped = skipped_logits(requested, output.size + model.size, max_ram)
    if skipped is not None:
        return Check("load", "skipped", skipped.detail)

    def load() -> str:
        from quantkit.llamacpp.projector_session import load_projector

        with loadable(model) as path, scratch_folder() as folder:
            link = folder / output.files[0].name
            link.symlink_to(partial_path(output.folder / output.files[0].name).resolve())
            try:
                load_projector(path, link)
            except QuantkitError as error:
                if _UNKNOWN.search(str(error)):
                    raise _Unknown("the installed llama.cpp does not know this model") from error
                raise
        return f"llama.cpp loads it beside {model.label}"

    try:
        return guard("load", load)
    except _Unknown as error:
        return Check("load", "skipped", str(error))
