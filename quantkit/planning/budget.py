"""Fitting a model to a memory budget: the best type, the most layers on the GPU, the longest context, or the shortfall.

The rule has three steps. First comes the best type of at least about 4 bits that fits on the GPU completely. Next comes
the best type that fits on GPU and CPU together and is fast enough: it generates at reading speed, or nearly as fast as
the fastest type. Smaller types follow by the same two steps. Unquantized types are recommended only if the user names
nothing else: q8_0 is as good at half the size.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from quantkit.planning.context import Context
from quantkit.planning.memory import Memory, plan_memory
from quantkit.planning.shape import ModelShape
from quantkit.planning.sizes import Offer
from quantkit.planning.split import split_memory

_GOOD_BITS = 4.2
_LEAST_CTX = 512
_READING_PACE = 8.0
_NEARLY = 0.8
_STEP = 256
# The share of the room for weights that a file of a given size may take: rows of other types are padded otherwise.
_SURE = 0.995


@dataclass(frozen=True)
class Budget:
    """Bytes that the model may take. `vram` 0: no GPU.

    `vrams`: the memory of each of several GPUs, whose sum is `vram`. `unified`: CPU and GPU share `ram`, of which the
    GPU may take `vram`.
    """

    ram: int
    vram: int = 0
    cpu_features: frozenset[str] = frozenset()
    vrams: tuple[int, ...] = ()
    unified: bool = False

    @property
    def rooms(self) -> tuple[int, ...]:
        """The memory of each GPU."""
        return self.vrams or ((self.vram,) if self.vram else ())

    def missing(self, memory: Memory) -> int:
        """The largest shortfall of a device, in bytes; 0 if all fits."""
        cpu = memory.total if self.unified else memory.cpu.total
        return max(cpu - self.ram, self.missing_on_gpus(memory), 0)

    def missing_on_gpus(self, memory: Memory) -> int:
        """The largest shortfall of a GPU, in bytes; 0 if all fits there."""
        return max((gpu.total - room for gpu, room in zip(memory.gpus, self.rooms, strict=False)), default=0)


@dataclass(frozen=True)
class Fit:
    """One form of the model in a budget. `missing`: missing bytes with this number of layers on the GPU."""

    offer: Offer
    memory: Memory
    missing: int = 0

    @property
    def fits(self) -> bool:
        """Whether the memory is sufficient."""
        return not self.missing

    @property
    def gpu_layers(self) -> int:
        """Layers on the GPU."""
        return self.memory.context.gpu_layers

    @property
    def cpu_moe(self) -> int:
        """Layers whose experts stay on the CPU although the layer is on the GPU."""
        return self.memory.context.cpu_moe

    def is_whole(self, shape: ModelShape) -> bool:
        """Whether all of the model is on the GPU."""
        return self.gpu_layers > shape.n_layer and not self.cpu_moe


@dataclass(frozen=True)
class Remedy:
    """A change that makes the model fit, as an option, and the fit with it."""

    what: str
    fit: Fit


def fit_offer(shape: ModelShape, offer: Offer, context: Context, budget: Budget, *, fixed_layers: bool = False) -> Fit:
    """The offer with the most layers on the GPU that fit its memory.

    `fixed_layers`: use the number of layers of `context`. If nothing fits, the fit states the missing bytes. A GPU that
    is too small even for its compute buffer is not used; the fit's memory then has no GPU.
    """
    has_gpu = budget.vram > 0

    def memory(layers: int, compute: Mapping[str, int] | None = None) -> Memory:
        placed = replace(context, gpu_layers=layers)
        if not has_gpu:
            return plan_memory(shape, offer.tensors, placed, cpu_features=budget.cpu_features)
        return split_memory(shape, offer.tensors, placed, budget, compute)

    if not has_gpu or fixed_layers:
        fixed = memory(min(context.gpu_layers, shape.n_layer + 1) if has_gpu else 0)
        return Fit(offer, fixed, budget.missing(fixed))
    # without the compute buffer, to see in less time that it does not fit
    if budget.missing_on_gpus(memory(shape.n_layer + 1, {})) <= 0:
        whole = memory(shape.n_layer + 1)
        if not budget.missing(whole):
            return Fit(offer, whole)

    def on_gpu(memory: Memory) -> bool:
        return bool(memory.gpus) and budget.missing_on_gpus(memory) <= 0

    # the compute buffer hardly depends on the number of layers: the search uses an estimate, then corrects it
    guess = split_memory(shape, offer.tensors, replace(context, gpu_layers=shape.n_layer // 2), budget).compute
    layers = max(_largest(lambda layers: on_gpu(memory(layers, guess)), 0, shape.n_layer), 0)
    split = memory(layers)
    while layers and not on_gpu(split):
        layers -= 1
        split = memory(layers)
    while layers < shape.n_layer and on_gpu(more := memory(layers + 1)):
        layers, split = layers + 1, more
    if not on_gpu(split):
        # a GPU without layers still needs its compute buffer; if that does not fit, the GPU is not used
        split = plan_memory(shape, offer.tensors, replace(context, gpu_layers=0), cpu_features=budget.cpu_features)
    return Fit(offer, split, budget.missing(split))


def fit_experts(shape: ModelShape, offer: Offer, context: Context, budget: Budget) -> Fit | None:
    """The offer with the experts of as few layers as possible on the CPU. All else is on the GPU if it fits.

    A token reads few experts of a layer but all other weights, so experts cost the least on the CPU. If the
    experts of all layers are there and the rest still does not fit, whole layers follow. None: a model without
    experts, no GPU, or nothing that fits.
    """
    if not (shape.has_experts and budget.vram):
        return None

    most = shape.n_layer
    context = replace(context, gpu_layers=most + 1)

    def memory(layers_of_experts: int, compute: Mapping[str, int] | None = None) -> Memory:
        return split_memory(shape, offer.tensors, replace(context, cpu_moe=layers_of_experts), budget, compute)

    def on_gpu(memory: Memory) -> bool:
        return budget.missing_on_gpus(memory) <= 0

    # the compute buffer hardly depends on the number of layers: the search uses an estimate, then corrects it
    guess = memory(most // 2).compute
    least = most - _largest(lambda kept: on_gpu(memory(most - kept, guess)), 0, most)
    split = memory(min(least, most))
    while least <= most and not on_gpu(split):
        least += 1
        split = memory(min(least, most))
    while least and on_gpu(fewer := memory(least - 1)):
        least, split = least - 1, fewer
    if least <= most:
        fit = Fit(offer, split, budget.missing(split))
    else:
        fit = fit_offer(shape, offer, replace(context, cpu_moe=most), budget)
    return fit if fit.fits else None


def best_fit(shape: ModelShape, fits: Iterable[tuple[Fit, float]]) -> Fit | None:
    """The fit to recommend by the rule above. `fits`: pairs of fit and tokens per second, best quality first."""
    fitting = [(fit, pace) for fit, pace in fits if fit.fits]
    quantized = [(fit, pace) for fit, pace in fitting if not fit.offer.is_float] or fitting
    for good in (True, False):
        some = [(fit, pace) for fit, pace in quantized if (fit.offer.bits >= _GOOD_BITS) == good]
        whole = [fit for fit, _ in some if fit.is_whole(shape)]
        if whole:
            return whole[0]
        if some:
            enough = min(_READING_PACE, _NEARLY * max(pace for _, pace in some))
            return next(fit for fit, pace in some if pace >= enough)
    return None


def largest_file(shape: ModelShape, offers: Iterable[Offer], context: Context, budget: Budget) -> int | None:
    """Bytes of the largest GGUF that fits completely on the GPU, or into memory without a GPU; None if no size fits.

    The memory besides the weights is that of the nearest of `offers`; types of other sizes change it a little.
    """
    layers = shape.n_layer + 1 if budget.vram else 0
    sizes: list[tuple[int, int]] = []
    for offer in offers:
        fit = fit_offer(shape, offer, replace(context, gpu_layers=layers), budget, fixed_layers=True)
        devices, room = (fit.memory.gpus, budget.vram) if budget.vram else ((fit.memory.cpu,), budget.ram)
        if devices:
            size = offer.size + room - sum(device.total for device in devices)
            sizes.append((abs(size - offer.size), size))
    size = min(sizes)[1] if sizes else 0
    return int(size * _SURE) if size > 0 else None


def longest_context(shape: ModelShape, fit: Fit, budget: Budget, most: int) -> int:
    """The longest context up to `most` that fits with the fit's layers on the GPU; 0 if none fits."""

    def fits(steps: int) -> bool:
        context = replace(fit.memory.context, n_ctx=min(steps * _STEP, most))
        room = budget if fit.memory.gpus else replace(budget, vram=0, vrams=())
        return fit_offer(shape, fit.offer, context, room, fixed_layers=True).fits

    return min(_largest(fits, 0, -(-most // _STEP)) * _STEP, most)


def remedies(shape: ModelShape, offers: Sequence[Offer], context: Context, budget: Budget) -> list[Remedy]:
    """Single changes that make the smallest of `offers` fit."""
    smallest = min(offers, key=lambda offer: offer.size)
    tries: list[tuple[str, Context]] = []
    if context.n_ctx > _LEAST_CTX:
        short = max(
            _LEAST_CTX, longest_context(shape, fit_offer(shape, smallest, context, budget), budget, context.n_ctx)
        )
        tries.append((f"--ctx {short}", replace(context, n_ctx=short)))
    if not shape.traits.encoder and context.kv_type == "f16" and context.flash is not False:
        tries.append(("--kv-type q8_0", replace(context, kv_type="q8_0")))
    if shape.has_experts and budget.vram:
        tries.append((f"--n-cpu-moe {shape.n_layer}", replace(context, cpu_moe=shape.n_layer)))
    if not shape.traits.encoder and context.n_ubatch > 128:
        tries.append(("--batch 128", replace(context, n_ubatch=128)))
    fitting = []
    for change, changed in tries:
        fit = fit_offer(shape, smallest, changed, budget)
        if fit.fits:
            fitting.append(Remedy(change, fit))
    return fitting


def _largest(good: Callable[[int], bool], low: int, high: int) -> int:
    """The largest number in low..high for which the monotonic `good` holds; low - 1 if none."""
    if not good(low):
        return low - 1
    while low < high:
        middle = (low + high + 1) // 2
        if good(middle):
            low = middle
        else:
            high = middle - 1
    return low
