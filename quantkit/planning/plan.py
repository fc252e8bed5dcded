"""`plan`: which types of a model fit a machine, with how many layers on the GPU and how much context."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quantkit.errors import UnsupportedError
from quantkit.gguf.mix import MixOptions, MixTensor
from quantkit.imatrix.file import load_imatrix
from quantkit.machine import Machine, cores, probe_bandwidth, this_machine
from quantkit.outputs.target import candidates
from quantkit.planning.budget import (
    Budget,
    best_fit,
    largest_file,
    longest_context,
    remedies,
)
from quantkit.planning.context import Context
from quantkit.planning.memory import GPU_OVERHEAD, DeviceMemory, kv_bytes
from quantkit.planning.phones import PHONE_BANDWIDTH, PHONE_TYPES, Phone
from quantkit.planning.placement import Fixed, fastest_fit
from quantkit.planning.projector import planned_projector
from quantkit.planning.result import Plan, Row
from quantkit.planning.sizes import Matrix, Offer, known_types, offers
from quantkit.planning.sources import Source, open_source, source_path
from quantkit.planning.speed import DeviceSpeed, Work, tokens_per_second
from quantkit.planning.stored_speeds import StoredSpeed, stored_speeds

DEFAULT_CTX = 4096

# A file of a given size has no use above this: q8_0 is as good.
MOST_TARGET_BITS = 8.5

ALL_LAYERS = 1 << 16
"""More layers than any model has: all of them."""


@dataclass(frozen=True)
class PlanOptions:
    """The machine and the settings of llama.cpp to plan for; None takes the value of the machine or the model.

    Attributes:
        types: GGUF types, `awq`, `gptq`; None for the usual ones.
        imatrix: importance matrix of the GGUF types, which changes the type of some tensors and adds keys.
        machine: free memory and bandwidth; None measures this machine.
        phone: plan for this phone instead of `machine`.
        n_ctx: tokens of context; None for 4096, or the training context if that is shorter.
        kv_type: type of the KV cache.
        n_ubatch: tokens of a physical batch; None for 512.
        flash: flash attention; None lets llama.cpp decide.
        gpu_layers: layers on the GPU, ALL_LAYERS or more than there are for all; None for the most that fit.
        cpu_moe: layers whose experts stay on the CPU; None for the fastest placement that fits.
        kv_on_gpu: False keeps the KV cache on the CPU; True leaves the choice to the plan.
        repack: llama.cpp repacks weights for the CPU.
        mmproj: type of the projector to reserve memory for, or "none"; None counts one that lies beside a GGUF.
        bandwidth: bytes per second that `CPU` and `GPU` read, with the origin of the figure.
        stored_speeds: without `bandwidth` or a phone, use the speeds that `measure --speed` stored of this CPU, and of
            this machine's GPUs if the plan is for them.
    """

    types: Sequence[str] | None = None
    imatrix: Path | None = None
    machine: Machine | None = None
    phone: Phone | None = None
    n_ctx: int | None = None
    kv_type: str = "f16"
    n_ubatch: int | None = None
    flash: bool | None = None
    gpu_layers: int | None = None
    cpu_moe: int | None = None
    kv_on_gpu: bool = True
    repack: bool = True
    mmproj: str | None = None
    bandwidth: Mapping[str, tuple[float, str]] | None = None
    stored_speeds: bool = False

    def context(self) -> Context:
        """The llama.cpp context.

        Raises:
            UsageError: an unknown KV type, or a quantized one without flash attention.
        """
        phone = self.phone
        n_ubatch = phone.n_batch if phone else self.n_ubatch or 512
        return Context(
            n_ctx=self.n_ctx or (phone.n_ctx if phone else DEFAULT_CTX),
            kv_type=self.kv_type.lower(),
            n_batch=n_ubatch if phone else max(2048, n_ubatch),
            n_ubatch=n_ubatch,
            flash=self.flash,
            gpu_layers=self.gpu_layers or 0,
            cpu_moe=self.cpu_moe or 0,
            kv_on_gpu=self.kv_on_gpu,
        )


def plan(source: str, options: PlanOptions | None = None, *, offline: bool = False) -> Plan:
    """Plan from headers alone; no weights are read or downloaded.

    Args:
        source: a hub id, a checkpoint folder, a folder that has a config.json and no weights, a config.json, or a GGUF.
        offline: use only what the hub's cache holds.

    Raises:
        UsageError: an unknown type or KV type.
        ImatrixError: the importance matrix is damaged or belongs to another model.
        CheckpointError, HubError, UnsupportedError: the source is not found, damaged, or of an unknown family.
    """
    options = options or PlanOptions()
    types = options.types or (PHONE_TYPES if options.phone else None)
    known_types(types or ())
    context = options.context()
    matrix = Matrix(options.imatrix, load_imatrix(options.imatrix)) if options.imatrix else None
    machine = Machine(ram=options.phone.room) if options.phone else options.machine or this_machine()
    bandwidth, speeds = _speeds(options, machine)
    source = source_path(source)
    opened = open_source(source, offline=offline)
    try:
        if options.n_ctx is None and opened.shape.context:
            context = replace(context, n_ctx=min(context.n_ctx, opened.shape.context))
        if opened.shape.traits.encoder:
            if options.phone:
                raise UnsupportedError(f"{source} is an encoder, and --phone plans a chat model; use --ram instead")
            context = replace(context.one_batch, kv_type="f16")
        if "CPU" not in bandwidth:
            bandwidth["CPU"] = (probe_bandwidth(), "measured")
        projector, unseen = planned_projector(opened, source, options.mmproj)
        remaining = projector.left(machine) if projector else machine
        features = machine.cpu_features if options.repack else frozenset()
        budget = Budget(remaining.ram, remaining.vram, features, remaining.vrams, remaining.unified)
        if unseen is not None:
            opened = replace(opened, notes=(*opened.notes, unseen))
        empty = Plan(
            source,
            opened,
            machine,
            context,
            budget,
            rows=(),
            best=None,
            bandwidth=bandwidth,
            speeds=speeds,
            for_phone=options.phone is not None,
            imatrix=options.imatrix,
            projector=projector,
        )
        forms = offers(opened, types, matrix, calibrated=empty.for_phone)
        return _with_target(_with_best(_with_rows(empty, forms, options)))
    finally:
        opened.model.close()


def _speeds(options: PlanOptions, machine: Machine) -> tuple[dict[str, tuple[float, str]], Mapping[str, DeviceSpeed]]:
    """The known bandwidths of `CPU` and `GPU` with their origin, and the stored speeds."""
    bandwidth = {"GPU": (machine.gpu_bandwidth, machine.gpu_bandwidth_from), **(options.bandwidth or {})}
    if options.phone:
        bandwidth.setdefault("CPU", (PHONE_BANDWIDTH, "assumed of a phone"))
    speeds: Mapping[str, StoredSpeed] = {}
    if options.stored_speeds and not options.bandwidth and not options.phone:
        names = machine.gpu_name.split(", ") if machine.vram and machine.gpu_name else []
        if names or not machine.vram:
            speeds = stored_speeds(names, cores())
            bandwidth |= {name: (entry.speed.bandwidth, entry.origin) for name, entry in speeds.items()}
    return bandwidth, {name: entry.speed for name, entry in speeds.items()}


def _with_rows(plan: Plan, forms: Sequence[Offer], options: PlanOptions) -> Plan:
    """A row for each form of the model."""
    speeds = {device: DeviceSpeed(speed) for device, (speed, _) in plan.bandwidth.items()} | dict(plan.speeds)
    rows = []
    for offer in forms:
        if offer.why_not:
            rows.append(Row(offer))
        elif offer.is_folder:
            rows.append(_folder_row(plan, offer, speeds))
        else:
            rows.append(_gguf_row(plan, offer, speeds, options))
    return replace(plan, rows=tuple(rows))


def _with_best(plan: Plan) -> Plan:
    """The recommended row and the longest context, or the remedies if nothing fits."""
    shape, context, budget = plan.source.shape, plan.context, plan.budget
    best = best_fit(shape, [(row.fit, row.speed) for row in plan.rows if row.fit is not None])
    folders = [row for row in plan.rows if row.offer.is_folder and row.devices and not row.missing]
    if best is None and folders:
        return replace(plan, best=folders[0], longest=context.n_ctx)
    if best is None:
        smaller = [row.offer for row in plan.rows if row.fit is not None]
        changes = remedies(shape, smaller, context, budget) if smaller else []
        totals = tuple((remedy.what, remedy.fit.offer.label, remedy.fit.memory.total) for remedy in changes)
        return replace(plan, remedies=totals)
    row = next(row for row in plan.rows if row.fit is best)
    most = shape.context or context.n_ctx
    longest = max(longest_context(shape, best, budget, most), best.memory.context.n_ctx if most else 0)
    return replace(plan, best=row, longest=longest)


def _with_target(plan: Plan) -> Plan:
    """The size to pass as --target-size, if a checkpoint is the source and such a size is of use."""
    quantized = [row.offer for row in plan.rows if row.fit is not None and not row.offer.is_float]
    if plan.source.is_gguf or plan.for_phone or not quantized:
        return plan
    size = largest_file(plan.source.shape, quantized, plan.context, plan.budget)
    # the command rounds the size down to at most 1% less
    if (
        size is None
        or 0.99 * size < _smallest(plan.source, quantized[0])
        or 8 * size > MOST_TARGET_BITS * plan.parameters
    ):
        return plan
    return replace(plan, target_size=size)


def _smallest(source: Source, offer: Offer) -> int:
    """Bytes of the smallest file that --target-size can make. `offer`: any GGUF; all have the same other bytes."""
    tensors = [MixTensor(tensor.name, tensor.shape, tensor.type) for tensor in source.model.tensors]
    weighted = frozenset(tensor.name for tensor in tensors if tensor.name.startswith("blk."))
    options = candidates(source.model.sizes, tensors, MixOptions(), weighted)
    return offer.size - sum(tensor.nbytes for tensor in offer.tensors) + sum(min(option.bytes) for option in options)


def _gguf_row(plan: Plan, offer: Offer, speeds: Mapping[str, DeviceSpeed], options: PlanOptions) -> Row:
    """The placement that fits with the most tokens per second."""
    fixed = Fixed(layers=options.gpu_layers is not None, experts=options.cpu_moe is not None)
    placed = fastest_fit(plan.source.shape, offer, plan.context, plan.budget, speeds, fixed)
    fit, layers = placed.fit, placed.layers
    return Row(
        offer,
        fit,
        fit.memory.devices,
        missing=fit.missing,
        # the estimate is of generated tokens
        speed=0.0 if plan.source.shape.traits.encoder else placed.speed,
        whole_layers=layers.gpu_layers if layers.fits else None,
    )


def _folder_row(plan: Plan, offer: Offer, speeds: Mapping[str, DeviceSpeed]) -> Row:
    """An AWQ or GPTQ model on a GPU: its weights, a 16-bit KV cache and the CUDA context."""
    shape, vram = plan.source.shape, max(plan.budget.rooms, default=0)
    kv = sum(kv_bytes(shape, replace(plan.context, kv_type="f16", gpu_layers=0)).values())
    gpu = DeviceMemory("GPU", weights=offer.size, kv=kv, overhead=GPU_OVERHEAD)
    work = {"GPU": Work({offer.label: offer.size})}
    speed = tokens_per_second(work, speeds) if vram and not shape.has_experts else 0.0
    return Row(offer, None, (gpu,), missing=max(gpu.total - vram, 0), speed=speed)
