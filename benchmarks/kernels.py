"""The kernels alone: every chunk of a plan quantized from memory, nothing read, checked or written.

The reference for the pass, which does the same work on the same chunks with the same threads and has to feed it.
Run as a separate process: `python -m benchmarks.kernels CHECKPOINT THREADS TYPE...` prints wall seconds.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from quantkit.checkpoint import open_checkpoint
from quantkit.gguf.file_types import file_type
from quantkit.gguf.kernels import quantize_rows
from quantkit.outputs.gguf_files import GgufPlan, GgufRequest, plan_gguf
from quantkit.outputs.model import model_from_checkpoint, widen

Work = tuple[GGMLQuantizationType, NDArray[np.float32]]


def kernel_seconds(plan: GgufPlan) -> float:
    """Wall seconds to quantize every tensor to every type the plan's outputs ask of it, once a type."""
    work = _resident(plan)
    with ThreadPoolExecutor(plan.threads) as pool:
        started = monotonic()
        for _ in pool.map(lambda item: quantize_rows(item[0], item[1]), work):
            pass
        return monotonic() - started


def _resident(plan: GgufPlan) -> list[Work]:
    """Chunks of the plan's own size, widened to float32, in the order of the pass."""
    work: list[Work] = []
    for index, tensor in enumerate(plan.model.tensors):
        kinds = {output.choices[index].type for output in plan.outputs} - {tensor.type, GGMLQuantizationType.F32}
        if not kinds:
            continue
        step = tensor.row_step * max(1, plan.chunk_elements // (tensor.row_step * tensor.n_columns))
        for start in range(0, tensor.n_rows, step):
            rows = plan.model.read_rows(tensor.name, start, min(start + step, tensor.n_rows))
            floats = widen(rows, tensor)
            work += [(kind, floats) for kind in sorted(kinds)]
    return work


def main(folder: str, threads: str, *types: str) -> None:
    model = model_from_checkpoint(open_checkpoint(folder))
    request = GgufRequest(types=tuple(file_type(name) for name in types), folder=Path(), threads=int(threads))
    plan = plan_gguf(model, request)
    print(kernel_seconds(plan))


if __name__ == "__main__":
    main(*sys.argv[1:])
