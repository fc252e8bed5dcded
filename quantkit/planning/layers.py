"""How many layers of a GGUF file a GPU has room for: what `run` and `ollama` ask of the plan."""

from pathlib import Path

from quantkit.errors import QuantkitError
from quantkit.machine import cpu_features
from quantkit.planning.budget import Budget, fit_offer
from quantkit.planning.context import Context
from quantkit.planning.sizes import as_it_is
from quantkit.planning.sources import open_source


def layers_that_fit(model: Path, *, n_ctx: int, vram: int, op_offload: bool = True) -> int:
    """The most layers of `model` that fit in `vram` bytes with a context of `n_ctx`: up to all and one, the output.

    `op_offload`: see `Context`. The CPU's memory is not looked at: layers are either here or there, and there is no
    third place. Raises CheckpointError for what is no GGUF, UnsupportedError where the plan does not know the
    architecture.
    """
    source = open_source(str(model))
    try:
        budget = Budget(ram=1 << 62, vram=vram, cpu_features=cpu_features())
        context = Context(n_ctx=n_ctx, op_offload=op_offload)
        return fit_offer(source.shape, as_it_is(source), context, budget).gpu_layers
    finally:
        source.model.close()


def layers_or_all(model: Path, *, n_ctx: int, vram: int, op_offload: bool = True) -> int | None:
    """The same; None, which leaves it to llama.cpp to take all, for a file the plan does not know."""
    try:
        return layers_that_fit(model, n_ctx=n_ctx, vram=vram, op_offload=op_offload)
    except QuantkitError:
        return None
