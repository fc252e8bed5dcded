"""A calibration by llama.cpp: it runs the source's GGUF, or a temporary one, and gives statistics of the inputs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from quantkit.conversion.gguf_layers import FeedbackRounder
from quantkit.conversion.gguf_pass import forget_lost, has_all_files, run_pass
from quantkit.files import partial_path
from quantkit.journal import Journal
from quantkit.llamacpp.grams import batches, distinct_inputs, input_grams
from quantkit.llamacpp.squares import TensorSums, forget_damaged, input_squares
from quantkit.outputs.callback import CallbackPlan
from quantkit.outputs.gguf_files import GgufRequest, plan_gguf
from quantkit.outputs.plan import ConversionPlan
from quantkit.progress import Progress
from quantkit.scratch import scratch_folder
from quantkit.workers import Workers

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


def round_by_llama(
    plan: ConversionPlan, callback: CallbackPlan, journal: Journal, progress: Progress
) -> dict[str, list[str]]:
    """Round with error feedback; needs `callback.sums`. Inputs are taken in batches whose Gram matrices fit in memory.

    Every batch evaluates the whole text again. Returns the rounded tensors as `Calibration.rounded` has them.

    Raises what `input_grams` and `FeedbackRounder` raise.
    """
    gguf, sums = plan.gguf, callback.sums
    assert gguf is not None and sums is not None
    if not has_all_files(gguf):
        journal.forget()
    file = callback.file or _write_source(plan, callback, progress)
    rows = {tensor.name: tensor.n_rows // tensor.matrix_rows for tensor in gguf.model.tensors}
    sources = {
        name: [(name, number) for number in range(len(entry.sums))]
        for name, entry in sums.items()
        if rows.get(name) == len(entry.sums)
    }
    with (
        threadpool_limits(1, "blas"),
        Workers(plan.threads) as workers,
        FeedbackRounder(gguf, sources, {}, workers, keep=journal.resumed) as rounder,
    ):
        tensors = [name for name in sources if name in rounder.covered and name not in journal.records]
        parts = batches(distinct_inputs(sums, tensors), callback.gram_memory)
        remaining = {name: len(sums[name].sums) for name in tensors}
        windows = callback.samples.tokens
        progress.start("measuring products of inputs", len(parts) * len(windows))
        for inputs in parts:
            with scratch_folder(str(plan.work)) as folder:
                grams = input_grams(file, windows, inputs, folder, threads=plan.threads, progress=progress)
                for entry, stored in zip(inputs, grams, strict=True):
                    first = sums[entry.tensors[0]]
                    counts = np.broadcast_to(first.counts, len(first.sums))
                    statistics = stored.load(first.sums[entry.number], int(counts[entry.number]))
                    rounder.quantize_input([(name, entry.number) for name in entry.tensors], statistics)
                    for name in entry.tensors:
                        remaining[name] -= 1
                        if not remaining[name]:
                            journal.finished(name, rounder.rounded.pop(name))
        return {name: journal.records[name] for name in sorted(rounder.covered)}


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
