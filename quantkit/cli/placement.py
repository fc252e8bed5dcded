"""The placement that `run` and `serve` take with --gpu-layers auto, and the words for it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.cli.output import Out
from quantkit.planning.context import Context
from quantkit.units import human_bytes

if TYPE_CHECKING:
    from quantkit.cli.loading_options import LoadingOptions
    from quantkit.llamacpp.conversation import Loading
    from quantkit.llamacpp.draft_choice import Draft
    from quantkit.measurement.memory import Device
    from quantkit.planning.draft import DraftMemory
    from quantkit.planning.layers import Placement


def automatic_placement(
    model: Path,
    context: Context,
    devices: Sequence["Device"],
    out: Out,
    *,
    fit_moe: bool,
    draft: "DraftMemory | None" = None,
    threads: int | None = None,
) -> "Placement":
    """What fits on `devices`, by `plan`.

    Args:
        fit_moe: the experts' place is chosen too.
        draft: what drafts tokens.
        threads: of the CPU, whose stored speed is used (None: of all cores); 0 for no stored speeds.
    """
    from quantkit.machine import cores
    from quantkit.planning.layers import Placement, placement_that_fits
    from quantkit.planning.stored_speeds import stored_speeds

    if not devices:
        return Placement(0)
    rooms = [device.free for device in devices]
    threads = cores() if threads is None else threads
    stored = stored_speeds([device.description for device in devices], threads) if threads else {}
    speeds = {name: entry.speed for name, entry in stored.items()}
    placement = placement_that_fits(model, context, rooms, fit_moe=fit_moe, draft=draft, speeds=speeds)
    if placement.gpu_layers is not None:
        names = ", ".join(f"{device.name} ({human_bytes(device.free)} free)" for device in devices)
        experts = f" but the experts of {placement.cpu_moe}" if placement.cpu_moe else ""
        split = f", split {','.join(map(str, placement.split))}" if placement.split else ""
        day = min((entry.day for entry in stored.values()), default=None)
        by = f", by speeds measured on {day.isoformat()}" if day else ""
        out.note(f"{placement.gpu_layers} layers{experts} on {names}{split}{by}")
    return placement


def place_draft(
    model: Path, draft: "Draft", context: Context, devices: Sequence["Device"], out: Out
) -> tuple["Draft", "DraftMemory | None"]:
    """The draft with its device, and its memory on each GPU; None without a GPU or a plan of the file."""
    from quantkit.errors import QuantkitError
    from quantkit.planning.draft import draft_memory

    if not devices:
        return draft, None
    rooms = [device.free for device in devices]
    try:
        memory = draft_memory(model, draft.model, context, rooms, mtp=draft.mtp, count=draft.count)
    except QuantkitError as error:
        out.warn(f"the memory of the draft is not counted: {error}")
        return replace(draft, gpu=0, device=devices[0].name), None
    where = devices[memory.gpu].name if memory.gpu is not None else ""
    out.note(f"the draft takes {human_bytes(max(memory.taken))} of {where}" if where else "the draft is on the CPU")
    return replace(draft, gpu=memory.gpu, device=where), memory


def placed_loading(
    model: Path,
    options: "LoadingOptions",
    context: Context,
    draft: "Draft | None",
    devices: Callable[[], Sequence["Device"]],
    out: Out,
) -> tuple["Loading", "Placement"]:
    """How llama.cpp loads `model` and the draft, and their placement; `devices` is called if it matters."""
    from quantkit.llamacpp.conversation import Loading

    fixed, memory = options.fixed_placement(), None
    gpus = devices() if draft or not fixed else []
    if draft:
        draft, memory = place_draft(model, draft, context, gpus, out)
    fit_moe = options.cpu_moe is None
    threads = 0 if options.no_stored_speeds else options.threads
    placement = fixed or automatic_placement(model, context, gpus, out, fit_moe=fit_moe, draft=memory, threads=threads)
    loading = Loading(
        placement.gpu_layers,
        placement.cpu_moe,
        context.kv_cache,
        options.threads,
        options.rpc or (),
        tensor_split=placement.split,
        kv_on_gpu=context.kv_on_gpu and placement.kv_on_gpu,
        draft=draft,
    )
    return loading, placement
