"""The kernels alone, and with a copy: every chunk of a plan quantized from memory, without and with moving its bytes.

The reference for the pass, which does the same work on the same chunks with the same threads. With a copy, each chunk
is also read from the source, and what it became is written to one file. The pass adds to that: widening to float32, the
search for NaN and infinity, the journal. Run as a separate process, which prints the wall seconds of both:
`python -m benchmarks.kernels CHECKPOINT FOLDER THREADS TYPE...`.
"""

import os
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from quantkit.checkpoint import open_checkpoint
from quantkit.gguf.file_types import file_type
from quantkit.gguf.kernels import quantize_rows
from quantkit.gguf.types import row_bytes
from quantkit.outputs.gguf_files import GgufPlan, GgufRequest, plan_gguf
from quantkit.outputs.model import model_from_checkpoint, widen
from quantkit.system import descriptors


@dataclass(frozen=True)
class Chunk:
    """Rows start..stop of a tensor as float32, the types they get, and where the results of a copy go."""

    name: str
    start: int
    stop: int
    floats: NDArray[np.float32]
    kinds: Counter[GGMLQuantizationType]
    """How many outputs take each type."""
    offset: int


def kernel_seconds(plan: GgufPlan, chunks: list[Chunk], copy: Path | None = None) -> float:
    """Wall seconds to quantize every chunk to every type that the outputs ask of it, once a type.

    `copy`: each chunk is read again, and each output's bytes are written to this file.
    """
    out = None if copy is None else os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def quantize(chunk: Chunk) -> None:
        if out is not None:
            plan.model.read_rows(chunk.name, chunk.start, chunk.stop)
        offset = chunk.offset
        for kind, outputs in chunk.kinds.items():
            data = quantize_rows(kind, chunk.floats)
            for _ in range(outputs if out is not None else 0):
                descriptors.write_at(out, data.data, offset)
                offset += data.nbytes

    try:
        if out is not None:
            descriptors.reserve(out, sum(map(_bytes, chunks)))
        with ThreadPoolExecutor(plan.threads) as pool:
            started = monotonic()
            for _ in pool.map(quantize, chunks):
                pass
            return monotonic() - started
    finally:
        if out is not None:
            os.close(out)


def resident_chunks(plan: GgufPlan) -> list[Chunk]:
    """Chunks of the plan's own size, widened to float32, in the order of the pass."""
    chunks: list[Chunk] = []
    offset = 0
    for index, tensor in enumerate(plan.model.tensors):
        kinds = Counter(output.choices[index].type for output in plan.outputs)
        for kind in (tensor.type, GGMLQuantizationType.F32):
            del kinds[kind]
        if not kinds:
            continue
        step = tensor.row_step * max(1, plan.chunk_elements // (tensor.row_step * tensor.n_columns))
        for start in range(0, tensor.n_rows, step):
            stop = min(start + step, tensor.n_rows)
            floats = widen(plan.model.read_rows(tensor.name, start, stop), tensor)
            chunks.append(Chunk(tensor.name, start, stop, floats, kinds, offset))
            offset += _bytes(chunks[-1])
    return chunks


def _bytes(chunk: Chunk) -> int:
    n_rows, n_cols = chunk.floats.shape
    return sum(n_rows * row_bytes(kind, n_cols) * outputs for kind, outputs in chunk.kinds.items())


def main(checkpoint: str, folder: str, threads: str, *types: str) -> None:
    model = model_from_checkpoint(open_checkpoint(checkpoint))
    request = GgufRequest(types=tuple(file_type(name) for name in types), folder=Path(), threads=int(threads))
    plan = plan_gguf(model, request)
    chunks = resident_chunks(plan)
    copy = Path(folder) / "copy"
    alone = kernel_seconds(plan, chunks)
    print(alone, kernel_seconds(plan, chunks, copy))
    copy.unlink()


if __name__ == "__main__":
    main(*sys.argv[1:])
