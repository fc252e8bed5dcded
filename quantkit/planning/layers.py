"""The number of layers of a GGUF file that fit on a GPU, for `run` and `ollama`."""

from pathlib import Path

from quantkit.errors import QuantkitError
from quantkit.machine import cpu_features
from quantkit.planning.budget import Budget, fit_offer
from quantkit.planning.context import Context
from quantkit.planning.sizes import as_it_is
from quantkit.planning.sources import open_source


def layers_that_fit(model: Path, *, n_ctx: int, vram: int, op_offload: bool = True) -> int:
    """The most layers of `model` that fit in `vram` bytes with a context of `n_ctx`: the output is one more.

    `op_offload`: see `Context`. The CPU's memory is not checked, because the other layers can only be there.

    Raises:
        CheckpointError: the file is not a GGUF.
        UnsupportedError: the plan does not support the architecture.
    """
    source = open_source(str(model))
    try:
        budget = Budget(ram=1 << 62, vram=vram, cpu_features=cpu_features())
        context = Context(n_ctx=n_ctx, op_offload=op_offload)
        return fit_offer(source.shape, as_it_is(source), context, budget).gpu_layers
    finally:
        source.model.close()


def layers_or_all(model: Path, *, n_ctx: int, vram: int, op_offload: bool = True) -> int | None:
    """Like `layers_that_fit`, or None (llama.cpp then offloads all layers) if the plan does not support the file."""
    try:
        return layers_that_fit(model, n_ctx=n_ctx, vram=vram, op_offload=op_offload)
    except QuantkitError:
        return None
