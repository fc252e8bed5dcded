"""A plan as tables and sentences for a terminal."""

from collections.abc import Iterator

from quantkit.cli.output import Out, human_count
from quantkit.planning.commands import target_command
from quantkit.planning.memory import DeviceMemory
from quantkit.planning.result import Plan, Row
from quantkit.units import human_bytes


def show_plan(plan: Plan, out: Out, *, ram_is_free: bool, vram_is_free: bool) -> None:
    """The whole plan. `ram_is_free`, `vram_is_free`: the figures are this machine's free memory, not an option's."""
    shape, context, machine = plan.source.shape, plan.context, plan.machine
    trained = f", trained for {shape.context} tokens" if shape.context else ""
    active = f", {shape.n_expert_used} experts for each token" if shape.has_experts else ""
    out.say(f"{plan.source.model.name}: {shape.arch}, {human_count(plan.parameters)} parameters{active}{trained}")
    memory = f"{human_bytes(machine.ram)} of memory{' free' if ram_is_free else ''}"
    sizes = " + ".join(human_bytes(size) for size in plan.budget.rooms)
    if machine.unified:
        sizes = f"up to {sizes} of it"
    gpu = f"{sizes} of GPU memory{f' free ({machine.gpu_name})' if vram_is_free and machine.gpu_name else ''}"
    out.say(f"room: {memory}, {gpu if machine.vram else 'no GPU'}")
    has_cache = not shape.traits.encoder or shape.traits.unused_cache
    cache = f"KV cache {context.kv_type}" if has_cache else "no KV cache"
    settings = f"context {context.n_ctx}, {cache}, batch {context.n_ubatch}"
    out.say(f"with: {settings}, flash attention {'on' if context.flash_on else 'off'}")
    out.say("")
    _types(plan, out)
    out.say("")
    if plan.best is None:
        for line in _missing(plan):
            out.say(line)
    else:
        _recommendation(plan.best, plan, out)
    _target(plan, out)
    for note in plan.notes():
        out.note(f"note: {note}")


def _types(plan: Plan, out: Out) -> None:
    has_gpu = plan.machine.vram > 0
    headers = [("", "left"), ("type", "left"), ("size", "right"), ("bits", "right")]
    if has_gpu:
        layers = ("-ngl", "moe") if plan.source.shape.has_experts else ("GPU layers",)
        headers += [(name, "right") for name in (*layers, "on GPU")]
    headers += [("on CPU", "right"), ("tokens/s", "right"), ("fits", "left")]
    rows = []
    for row in plan.rows:
        offer = row.offer
        if offer.why_not:
            rows.append(["", offer.label, *[""] * (len(headers) - 3), "cannot be made, see below"])
            continue
        label = (
            offer.label
            if not offer.group or offer.group == offer.usual_group
            else f"{offer.label}, group {offer.group}"
        )
        cells = ["*" if row is plan.best else "", label, human_bytes(offer.size), f"{offer.bits:.2f}"]
        if has_gpu:
            cells += _gpu_cells(row, plan)
        cells += [human_bytes(row.cpu_bytes) if row.cpu_bytes else "-", _speed(row), _fits(row)]
        rows.append(cells)
    out.table(headers, rows)
    if has_gpu and plan.source.shape.has_experts:
        every = plan.source.shape.n_layer + 1
        out.say(f"-ngl: layers on the GPU, of {every}; moe: --n-cpu-moe, layers with experts on the CPU")
    for row in plan.rows:
        if row.offer.why_not:
            out.say(f"{row.offer.label}: {row.offer.why_not}")


def _gpu_cells(row: Row, plan: Plan) -> list[str]:
    shape, fit = plan.source.shape, row.fit
    if shape.has_experts:
        cells = ["all", "-"] if fit is None else [str(fit.gpu_layers), str(fit.cpu_moe) if fit.cpu_moe else "-"]
    else:
        cells = ["all" if fit is None else f"{fit.gpu_layers} of {shape.n_layer + 1}"]
    return [*cells, human_bytes(row.gpu_bytes) if row.gpu_bytes else "-"]


def _speed(row: Row) -> str:
    return f"~{row.speed:.2g}" if 0 < row.speed < 10 else f"~{row.speed:.0f}" if row.speed else "-"


def _fits(row: Row) -> str:
    if row.fit is None and row.missing == row.gpu_bytes:
        return f"GPU, {human_bytes(row.gpu_bytes)}"
    return "yes" if not row.missing else f"lacks {human_bytes(row.missing)}"


def _recommendation(best: Row, plan: Plan, out: Out) -> None:
    fit = best.fit
    words = f"Take {best.offer.label}"
    if fit is None:
        words += ", whole on the GPU"
    elif fit.memory.gpus:
        layers = plan.source.shape.n_layer + 1
        where = "the GPUs" if len(fit.memory.gpus) > 1 else "the GPU"
        words += (
            f", all on {where}" if fit.gpu_layers >= layers else f", {fit.gpu_layers} of {layers} layers on {where}"
        )
        if fit.cpu_moe:
            words += f" but the experts of {'all' if fit.cpu_moe >= layers - 1 else f'the first {fit.cpu_moe}'} layers"
        words += "; the KV cache is on the CPU" if not fit.memory.context.kv_on_gpu else ""
    if plan.longest > plan.context.n_ctx:
        words += f"; there is room for a context of {plan.longest} tokens"
    out.say(f"{words}:")
    names = ("weights", "KV cache", "compute", "output", "overhead", "in all")
    out.table([("", "left"), *((name, "right") for name in names)], [_device_row(device) for device in best.devices])
    out.say("")
    for command in plan.commands():
        out.say(f"  {command}")


def _target(plan: Plan, out: Out) -> None:
    """The command that makes the largest file that fits as a whole."""
    command = target_command(plan)
    if command is None or plan.target_size is None:
        return
    where = "on the GPU" if plan.machine.vram else "into memory"
    bits = 8 * plan.target_size / plan.parameters
    out.say(f"\nThe largest file that fits {where} as a whole has {bits:.2f} bits per weight:\n\n  {command}")


def _device_row(device: DeviceMemory) -> list[str]:
    parts = (device.weights, device.kv, device.compute, device.output, device.overhead, device.total)
    return [device.name, *(human_bytes(part) if part else "-" for part in parts)]


def _missing(plan: Plan) -> Iterator[str]:
    """What is missing and what would help, a sentence each."""
    missing = plan.missing()
    if missing is None:
        yield "None of the types can be made of this model."
        return
    yield f"Nothing fits: {missing['type']} comes nearest and lacks {human_bytes(missing['bytes'])}."
    for change, label, _ in plan.remedies:
        yield f"With {change}, {label} would fit."
    if not plan.remedies:
        need = missing["needs"]
        gpu = f" and {human_bytes(need['vram'])} of GPU memory" if need.get("vram") else ""
        yield f"It needs {human_bytes(need['ram'])} of memory{gpu}; take a smaller type or a smaller model."
