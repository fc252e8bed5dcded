"""A calibration by llama.cpp: it runs the source's GGUF, or a temporary one, and gives the sums of squares."""

from dataclasses import replace
from pathlib import Path

from quantkit.conversion.gguf_pass import forget_lost, run_pass
from quantkit.files import partial_path
from quantkit.journal import Journal
from quantkit.llamacpp.squares import TensorSums, forget_damaged, input_squares
from quantkit.outputs.callback import CallbackPlan
from quantkit.outputs.gguf_files import GgufRequest, plan_gguf
from quantkit.outputs.plan import ConversionPlan
from quantkit.progress import Progress

_SUMS = "inputs.npz"
_SOURCE = "source"


def calibrate_by_llama(plan: ConversionPlan, callback: CallbackPlan, progress: Progress) -> dict[str, TensorSums]:
    """Sums of squares of the inputs of every weight, by GGUF tensor; kept in the work folder for a resumed run.

    Raises what `input_squares` and `run_pass` raise.
    """
    file = callback.file or _write_source(plan, callback, progress)
    sums = plan.work / _SUMS
    forget_damaged(sums)
    return input_squares(file, callback.samples.tokens, sums, threads=plan.threads, progress=progress)


def _write_source(plan: ConversionPlan, callback: CallbackPlan, progress: Progress) -> Path:
    """The model as a 16-bit GGUF in the work folder, which the end of the run removes."""
    folder = plan.work / _SOURCE
    max_ram = plan.gguf.request.max_ram if plan.gguf else None
    request = GgufRequest(
        (callback.file_type,), folder=folder, allow_requantize=True, threads=plan.threads, max_ram=max_ram
    )
    whole = plan_gguf(replace(callback.model, warnings=()), request)
    output = whole.outputs[0]
    path = folder / output.files[0].name
    if path.exists():
        return path
    folder.mkdir(exist_ok=True)
    journal = Journal(folder / "journal", plan.fingerprint, [path.name], force=True)
    try:
        forget_lost(whole, journal)
        run_pass(whole, journal, progress)
        partial_path(path).replace(path)
    finally:
        journal.close()
    return path
