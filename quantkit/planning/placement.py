"""The placement with the most tokens per second that fits, for `plan`, `run` and `serve`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from quantkit.planning.budget import Budget, Fit, fit_experts, fit_offer
from quantkit.planning.context import Context
from quantkit.planning.memory import kv_bytes
from quantkit.planning.shape import ModelShape
from quantkit.planning.sizes import Offer
from quantkit.planning.speed import EARLY, DeviceSpeed, token_work, tokens_per_second

# Numbers of layers that are compared where devices have overheads: each needs the graph of a token.
_MOST_COUNTS = 16
# The KV cache is worth moving only if it takes more than this share of the GPU.
_NOTABLE_KV = 0.1


@dataclass(frozen=True)
class PlacedFit:
    """A fit, its estimated tokens per second, and the fit of whole layers alone (Ollama, -ngl)."""

    fit: Fit
    speed: float
    layers: Fit


@dataclass(frozen=True)
class Fixed:
    """Parts of a placement that are not chosen but those of the context: n_gpu_layers, and the experts on the CPU."""

    layers: bool = False
    experts: bool = False


def fastest_fit(
    shape: ModelShape,
    offer: Offer,
    context: Context,
    budget: Budget,
    speeds: Mapping[str, DeviceSpeed],
    fixed: Fixed = Fixed(),
) -> PlacedFit:
    """The fastest of: whole layers, the experts of layers, or the KV cache besides on the CPU.

    Args:
        speeds: of each device, by its name in a plan.
        fixed: what is taken from `context`.
    """
    layers = fit_offer(shape, offer, context, budget, fixed_layers=fixed.layers)
    fits: list[Fit | None] = [layers]
    # with measured overheads a device can be slower than the CPU
    overheads = any(device.has_overheads for device in speeds.values())
    # at half of the context the place of the KV cache counts as it does in long conversations
    half = max(context.cells // 2, EARLY)

    def speed(placed: Context, filled: int, *, has_gpu: bool = True) -> float:
        work = token_work(shape, offer.tensors, placed, filled, has_gpu=has_gpu, operations=overheads)
        return tokens_per_second(work, speeds)

    def speed_of(fit: Fit, filled: int = EARLY) -> float:
        return speed(fit.memory.context, filled, has_gpu=bool(fit.memory.gpus))

    if overheads and layers.memory.gpu is not None and not fixed.layers:
        step = -(-layers.gpu_layers // _MOST_COUNTS) or 1
        fewer = [
            replace(layers.memory.context, gpu_layers=count, split=()) for count in range(0, layers.gpu_layers, step)
        ]
        if fewer:
            fastest = max(fewer, key=lambda placed: speed(placed, half))
            fits.append(fit_offer(shape, offer, fastest, budget, fixed_layers=True))
    if budget.vram and not fixed.layers and not (layers.fits and layers.is_whole(shape)):
        without_kv = replace(context, kv_on_gpu=False)
        if not fixed.experts:
            fits.append(fit_experts(shape, offer, context, budget))
        kv = sum(kv_bytes(shape, context).values())
        if context.kv_on_gpu and not budget.unified and kv > _NOTABLE_KV * budget.vram:
            fits.append(fit_offer(shape, offer, without_kv, budget))
            fits.append(None if fixed.experts else fit_experts(shape, offer, without_kv, budget))
    fit = max((fit for fit in fits if fit is not None), key=lambda fit: (not fit.missing, speed_of(fit, half)))
    return PlacedFit(fit, speed_of(fit), layers)
