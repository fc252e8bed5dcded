"""The number of layers of a GGUF file that fit on a GPU, for `run` and `ollama`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantkit.errors import QuantkitError
from quantkit.machine import cpu_features, probe_bandwidth, this_machine
from quantkit.planning.budget import Budget, fit_offer
from quantkit.planning.context import Context
from quantkit.planning.draft import DraftMemory
from quantkit.planning.placement import Fixed, fastest_fit
from quantkit.planning.sizes import as_it_is
from quantkit.planning.sources import open_source
from quantkit.planning.speed import DeviceSpeed


@dataclass(frozen=True)
class Placement:
    """`gpu_layers` on the GPU (None: all), and of these the first `cpu_moe` layers with their experts on the CPU.

    `split`: the layers of each of several GPUs; empty leaves it to llama.cpp. `kv_on_gpu`: the KV cache is where its
    layers are.
    """

    gpu_layers: int | None
    cpu_moe: int = 0
    split: tuple[int, ...] = ()
    kv_on_gpu: bool = True


def placement_that_fits(
    model: Path,
    context: Context,
    rooms: Sequence[int],
    *,
    fit_moe: bool = True,
    draft: DraftMemory | None = None,
    speeds: Mapping[str, DeviceSpeed] | None = None,
) -> Placement:
    """The fastest placement of `model` on GPUs of `rooms` bytes; all layers if the plan does not support the file.

    Whole layers, or with `fit_moe` the experts of layers, stay on the CPU, whose memory is not checked.

    Args:
        draft: memory of a draft model or MTP layer, which comes first.
        speeds: measured speeds of each device by its name in a plan; without them its bandwidth is measured or typical.
    """
    try:
        source = open_source(str(model))
    except QuantkitError:
        return Placement(None)
    try:
        left = [max(room - taken, 0) for room, taken in zip(rooms, draft.taken, strict=True)] if draft else rooms
        vrams = tuple(left) if len(left) > 1 else ()
        budget = Budget(ram=1 << 62, vram=sum(left), cpu_features=cpu_features(), vrams=vrams)
        speeds = speeds or {"CPU": DeviceSpeed(probe_bandwidth()), "GPU": DeviceSpeed(this_machine().gpu_bandwidth)}
        fit = fastest_fit(source.shape, as_it_is(source), context, budget, speeds, Fixed(experts=not fit_moe)).fit
        placed = fit.memory.context
        return Placement(fit.gpu_layers, fit.cpu_moe, placed.split, placed.kv_on_gpu)
    except QuantkitError:
        return Placement(None)
    finally:
        source.model.close()


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
