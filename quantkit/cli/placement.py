"""The placement that `run` and `serve` take with --gpu-layers auto, and the words for it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.cli.output import Out, human_bytes
from quantkit.planning.context import Context

if TYPE_CHECKING:
    from quantkit.measurement.memory import Device
    from quantkit.planning.layers import Placement


def automatic_placement(
    model: Path, context: Context, devices: Sequence["Device"], out: Out, *, fit_moe: bool
) -> "Placement":
    """What fits on `devices`, by `plan`. `fit_moe`: the experts' place is chosen too."""
    from quantkit.planning.layers import Placement, placement_that_fits

    if not devices:
        return Placement(0)
    free = sum(device.free for device in devices)
    placement = placement_that_fits(model, context, free, fit_moe=fit_moe)
    if placement.gpu_layers is not None:
        names = ", ".join(device.name for device in devices)
        experts = f" but the experts of {placement.cpu_moe}" if placement.cpu_moe else ""
        out.note(f"{placement.gpu_layers} layers{experts} on {names}, with {human_bytes(free)} free")
    return placement
