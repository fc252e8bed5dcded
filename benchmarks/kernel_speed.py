"""Every kernel beside ggml's on one thread, with and without importances: million weights a CPU second, as a table.

Both quantize the same rows from memory, in turn; the best of several runs counts. The bytes must be equal. The rows are
too many for a processor to remember the branches that their values take: as in a model, no row comes twice.
"""

import time
from collections.abc import Callable

import numpy as np
from gguf import GGMLQuantizationType

from benchmarks.lines import Lines, Target, machine, print_machine
from quantkit.gguf import c_kernels, kernels
from quantkit.gguf.types import row_bytes

_ROWS, _COLUMNS, _REPEATS, _SECONDS = 256, 2048, 5, 1.0


def measure_kernel(kind: GGMLQuantizationType, *, weighted: bool) -> tuple[float, float]:
    """Million weights a second, ggml's and ours."""
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((_ROWS, _COLUMNS)) * 0.02).astype(np.float32)
    weights = np.exp(2 * rng.standard_normal(_COLUMNS)).astype(np.float32) if weighted else None
    made = [np.empty((_ROWS, row_bytes(kind, _COLUMNS)), dtype=np.uint8) for _ in range(2)]
    library = kernels._kernels()
    sides: tuple[Callable[[], object], ...] = (
        lambda: library.quantize(kind, rows, weights, made[0]),
        lambda: kernels.quantize_rows(kind, rows, weights, made[1]),
    )
    for side in sides:
        side()
    best = [float("inf"), float("inf")]
    ends, repeats = time.monotonic() + _SECONDS, 0
    while repeats < _REPEATS or time.monotonic() < ends:
        repeats += 1
        for index, side in enumerate(sides):
            started = time.process_time()
            side()
            best[index] = min(best[index], time.process_time() - started)
    if not np.array_equal(*made):
        raise RuntimeError(f"{kind.name}: the bytes differ from ggml's")
    theirs, ours = (rows.size / seconds / 1e6 for seconds in best)
    return theirs, ours


def main() -> None:
    facts = machine()
    print_machine(facts)
    lines = Lines()
    print(f"one thread, {kernels.library()}; million weights a second")
    for kind in c_kernels.KINDS:
        for weighted in (True,) if kernels.requires_imatrix(kind) else (False, True):
            theirs, ours = measure_kernel(kind, weighted=weighted)
            name = "with importances" if weighted else "without"
            lines.add(Target(f"{kind.name}, ggml", name, theirs, "M/s"))
            lines.add(Target(f"{kind.name}, quantkit", name, ours, "M/s"))
            lines.add(Target(f"{kind.name}, quantkit / ggml", name, ours / theirs, "", at_least=4))
    lines.save("kernels", facts)


if __name__ == "__main__":
    main()
