"""Run in an environment that has torch: runs of rounding that torch compiles on the CPU, against the same uncompiled.

Prints a JSON object: `rows`, by run and case, for each result the fraction of rows that differ; `failure`, why torch
could not compile; `compiled`, how many times it did.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

sys.path.append(os.environ["MORE_PACKAGES"])

from gguf import GGMLQuantizationType as T

from quantkit.gguf.blocks import FORMATS
from quantkit.quant import block_tensors as blocks
from quantkit.quant import column_runs as columns

CPU = torch.device("cpu")
Case = tuple[str, Callable[..., Any], tuple[Any, ...]]


def cases(rows: int) -> Iterator[Case]:
    """Each run with `rows` rows, as GPTQ and the types of GGUF call it."""
    random = torch.Generator().manual_seed(rows)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    weights, feedback = normal(16, rows), 0.1 * normal(16, 16)
    scales, zeros = 0.2 * normal(16, rows).abs() + 0.1, torch.full((16, rows), 8.0)
    mixed = normal(16, 64)
    gram, step = mixed @ mixed.T, scales[0].clone()
    levels = torch.randint(0, 16, (16, rows), generator=random).float()
    yield "round", columns._round_run, (weights.clone(), weights, feedback, scales, zeros, 15.0)
    yield "descend", columns._descend_run, (normal(16, rows), levels, step, gram, 15.0)
    for kind in (T.Q4_0, T.Q6_K, T.Q4_K, T.IQ4_XS):
        format_ = FORMATS[kind]
        limits, affine = blocks.limits_of(format_, CPU), format_.greatest_minimum > 0
        points = torch.randint(format_.low, format_.high + 1, (16, rows), generator=random).float()
        bases = -zeros * scales if affine else None
        yield f"{kind.name} feedback", blocks.feed_back, (weights.clone(), weights, feedback, scales, bases, limits)
        yield f"{kind.name} levels", blocks.descend, (normal(16, rows), points, step, gram, limits)
        u, v = normal(32, rows), normal(32, rows) if affine else None
        wide = normal(32, 128)
        fit = u, wide @ wide.T @ u, v, None if v is None else wide @ wide.T @ v, normal(32, rows)
        whole = torch.randint(1, 20, (2, rows), generator=random).float()
        yield f"{kind.name} halves", blocks.refit_halves, (*fit, step, whole[1] / 8 if affine else None)
        if format_.has_group_scales:
            minimum = whole[1] if affine else None
            yield f"{kind.name} integers", blocks.refit_integers, (*fit, whole[0], minimum, limits)


def copied(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.clone() if isinstance(value, torch.Tensor) else value for value in arguments)


differences = {}
for rows in (96, 250):
    for name, run, arguments in cases(rows):
        plain, made = run(*copied(arguments)), columns.compiled(run)(*copied(arguments))
        pairs = [pair for pair in zip(plain, made, strict=True) if pair[0] is not None]
        differences[f"{name}, {rows} rows"] = [
            # by rows: a value between two levels moves the columns that follow in its row
            float(((a - b).abs().reshape(-1, rows).amax(0) > 1e-5 * a.abs().max()).float().mean())
            for a, b in pairs
        ]
counts = torch._dynamo.utils.counters["stats"]
print(json.dumps({"rows": differences, "failure": columns.failure(), "compiled": counts["unique_graphs"]}))
