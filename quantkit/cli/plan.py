"""`quantkit plan`: what a model takes and what fits this machine, before anything is downloaded or converted."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import typer

from quantkit.cli.options import parse_size
from quantkit.cli.output import Out, human_bytes, human_count
from quantkit.errors import UsageError
from quantkit.machine import Machine, this_machine
from quantkit.planning.answer import Answer, Row, make_answer
from quantkit.planning.budget import Budget
from quantkit.planning.context import KV_TYPES, Context
from quantkit.planning.memory import GPU_OVERHEAD, DeviceMemory
from quantkit.planning.phones import PHONE_BANDWIDTH, PHONE_TYPES, Phone, phone
from quantkit.planning.sizes import known_types
from quantkit.planning.sources import open_source

_PLAIN_NUMBER = re.compile(r"^\s*-?\d+(\.\d+)?\s*$")


def plan(
    out: Out,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A hub id (ORG/NAME or ORG/NAME@REVISION), a checkpoint folder, a config.json, or a GGUF file.",
            show_default=False,
        ),
    ],
    types: Annotated[
        list[str] | None,
        typer.Option(
            "--type", "-t", metavar="TYPE", help="A GGUF type, awq or gptq; repeat.", show_default="the usual"
        ),
    ] = None,
    vram: Annotated[
        str | None, typer.Option(metavar="SIZE", help="GPU memory to use (8G; none).", show_default="what is free")
    ] = None,
    ram: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory to use (16G).", show_default="what is free")
    ] = None,
    for_phone: Annotated[
        str | None,
        typer.Option("--phone", metavar="SIZE", help="Plan for a phone sold with so much memory: 4G, 6G, 8G, 12G."),
    ] = None,
    ctx: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=1 << 24, help="Tokens of context.", show_default="4096, or the trained"),
    ] = None,
    kv_type: Annotated[str, typer.Option(metavar="TYPE", help=f"Type of the KV cache: {', '.join(KV_TYPES)}.")] = "f16",
    gpu_layers: Annotated[
        int | None, typer.Option("--gpu-layers", metavar="N", min=0, help="Layers on the GPU.", show_default="most")
    ] = None,
    cpu_moe: Annotated[
        int, typer.Option("--n-cpu-moe", metavar="N", min=0, help="Layers whose experts stay on the CPU.")
    ] = 0,
    batch: Annotated[int, typer.Option(metavar="N", min=1, max=1 << 16, help="Tokens of a physical batch.")] = 512,
    flash_attn: Annotated[
        bool | None, typer.Option("--flash-attn/--no-flash-attn", help="Flash attention.", show_default="auto: on")
    ] = None,
    repack: Annotated[
        bool, typer.Option("--repack/--no-repack", help="llama.cpp rearranges weights for the CPU.")
    ] = True,
    bandwidth: Annotated[
        str | None,
        typer.Option(metavar="CPU[,GPU]", help="Memory read a second (40G,500G).", show_default="measured"),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use only what the hub's cache holds.")] = False,
) -> None:
    """Show which format and placement fit a machine, from headers alone.

    Reads headers only: of a model on the hub no weights are downloaded. Sizes are what llama.cpp itself would take;
    speeds are estimates.

    Example: quantkit plan ORG/NAME --vram 8G --ram 16G
    """
    a_phone = _phone(for_phone, vram, ram)
    if a_phone:
        types, batch = types or list(PHONE_TYPES), a_phone.n_batch
    known_types(types or ())
    context = Context(
        n_ctx=ctx or (a_phone.n_ctx if a_phone else 4096),
        kv_type=kv_type.lower(),
        n_batch=batch if a_phone else max(2048, batch),
        n_ubatch=batch,
        flash=flash_attn,
        gpu_layers=gpu_layers or 0,
        cpu_moe=cpu_moe,
    )
    machine = Machine(ram=a_phone.room) if a_phone else _machine(vram, ram)
    budget = Budget(machine.ram, machine.vram, machine.cpu_features if repack else frozenset())
    speeds = _bandwidths(bandwidth, machine)
    if a_phone:
        speeds.setdefault("CPU", (PHONE_BANDWIDTH, "assumed of a phone"))
    found = open_source(source, offline=offline)
    try:
        if ctx is None and found.shape.context:
            context = replace(context, n_ctx=min(context.n_ctx, found.shape.context))
        answer = make_answer(found, types, context, budget, speeds, fixed_layers=gpu_layers is not None)
    finally:
        found.model.close()
    commands = _commands(source, answer, a_phone is not None)
    out.document(_document(source, answer, machine, commands))
    _show(answer, machine, commands, out, given=(vram is not None, ram is not None or a_phone is not None))
    if a_phone:
        out.note(
            f"note: of a phone's {a_phone.gigabytes} GB Android is assumed to leave {human_bytes(a_phone.room)} to a"
            " model"
        )


def _phone(text: str | None, vram: str | None, ram: str | None) -> Phone | None:
    if text is None:
        return None
    if vram is not None or ram is not None:
        raise UsageError("--phone says how much memory there is, and so do --ram and --vram; give one of them")
    return phone(text)


def _commands(source: str, answer: Answer, for_phone: bool) -> list[str]:
    """What to type to have the best form."""
    best = answer.best
    if best is None:
        return []
    if not for_phone:
        return answer.commands(best, source)
    if answer.source.is_gguf:
        return [f"quantkit termux --gguf {shlex.quote(source)}"]
    whole = "ORG/NAME" if answer.source.is_config else shlex.quote(source)
    file = shlex.quote(f"{answer.source.model.name}-GGUF/{best.offer.file}")
    return [f"quantkit gguf {whole} --preset phone", f"quantkit termux --gguf {file}"]


def _machine(vram: str | None, ram: str | None) -> Machine:
    here = this_machine()
    if vram is not None:
        none = vram.strip().lower() in ("0", "none")
        same = here.vram > 0
        here = replace(here, vram=0 if none else _budget(vram, "--vram"), gpu_name=here.gpu_name if same else "")
    if ram is not None:
        here = replace(here, ram=_budget(ram, "--ram"))
    return here


def _budget(text: str, option: str) -> int:
    """A size with its unit: a bare 8 would be eight bytes, which nobody means."""
    if text.strip().startswith("-"):
        raise UsageError(f"{option} {text!r} is negative; write the memory there is, such as 8G")
    if _PLAIN_NUMBER.match(text):
        raise UsageError(f"{option} {text!r} has no unit; write {text.strip()}G for gigabytes")
    return parse_size(text, option)


def _bandwidths(text: str | None, machine: Machine) -> dict[str, tuple[float, str]]:
    """Bytes a second of each device and where the figure is from."""
    given = [f"{parse_size(part.replace('/s', ''), '--bandwidth')}" for part in text.split(",")] if text else []
    if len(given) > 2:
        raise UsageError(f"--bandwidth {text!r} has more than two figures; write CPU,GPU such as 40G,500G")
    found = {"GPU": (machine.gpu_bandwidth, machine.gpu_bandwidth_from)}
    for device, figure in zip(("CPU", "GPU"), given, strict=False):
        found[device] = (float(figure), "given")
    return found


def _show(answer: Answer, machine: Machine, commands: Sequence[str], out: Out, *, given: tuple[bool, bool]) -> None:
    shape, context = answer.source.shape, answer.context
    parameters = sum(tensor.n_elements for tensor in answer.source.model.tensors)
    trained = f", trained for {shape.context} tokens" if shape.context else ""
    active = f", {shape.n_expert_used} experts for each token" if shape.has_experts else ""
    out.say(f"{answer.source.model.name}: {shape.arch}, {human_count(parameters)} parameters{active}{trained}")
    memory = f"{human_bytes(machine.ram)} of memory{'' if given[1] else ' free'}"
    gpu = f"{human_bytes(machine.vram)} of GPU memory{'' if given[0] else f' free ({machine.gpu_name})'}"
    out.say(f"room: {memory}, {gpu if machine.vram else 'no GPU'}")
    settings = f"context {context.n_ctx}, KV cache {context.kv_type}, batch {context.n_ubatch}"
    out.say(f"with: {settings}, flash attention {'on' if context.flash_on else 'off'}")
    out.say("")
    _table(answer, machine, out)
    out.say("")
    if answer.best is None:
        for line in answer.missing_lines():
            out.say(line)
    else:
        _recommend(answer.best, answer, commands, out)
    for note in answer.notes(machine):
        out.note(f"note: {note}")


def _table(answer: Answer, machine: Machine, out: Out) -> None:
    has_gpu = machine.vram > 0
    headers = [("", "left"), ("type", "left"), ("size", "right"), ("bits", "right")]
    if has_gpu:
        headers += [("GPU layers", "right"), ("on GPU", "right")]
    headers += [("on CPU", "right"), ("tokens/s", "right"), ("fits", "left")]
    rows = []
    for row in answer.rows:
        offer = row.offer
        if offer.why_not:
            rows.append(["", offer.label, *[""] * (len(headers) - 3), "cannot be made, see below"])
            continue
        cells = ["*" if row is answer.best else "", offer.label, human_bytes(offer.size), f"{offer.bits:.2f}"]
        if has_gpu:
            cells += _gpu_cells(row, answer)
        cells += [human_bytes(row.cpu_bytes) if row.cpu_bytes else "-", _speed(row), _fits(row)]
        rows.append(cells)
    out.table(headers, rows)
    for row in answer.rows:
        if row.offer.why_not:
            out.say(f"{row.offer.label}: {row.offer.why_not}")


def _gpu_cells(row: Row, answer: Answer) -> list[str]:
    if row.fit is None:
        return ["all", human_bytes(row.gpu_bytes)]
    taken = human_bytes(row.gpu_bytes) if row.gpu_bytes else "-"
    return [f"{row.fit.gpu_layers} of {answer.source.shape.n_layer + 1}", taken]


def _speed(row: Row) -> str:
    return f"~{row.speed:.2g}" if 0 < row.speed < 10 else f"~{row.speed:.0f}" if row.speed else "-"


def _fits(row: Row) -> str:
    if row.fit is None and row.missing == row.gpu_bytes:
        return f"GPU, {human_bytes(row.gpu_bytes)}"
    return "yes" if not row.missing else f"lacks {human_bytes(row.missing)}"


def _recommend(best: Row, answer: Answer, commands: Sequence[str], out: Out) -> None:
    fit = best.fit
    words = f"Take {best.offer.label}"
    if fit is None:
        words += ", whole on the GPU"
    elif fit.memory.gpu is not None:
        layers = answer.source.shape.n_layer + 1
        words += ", all on the GPU" if fit.gpu_layers >= layers else f", {fit.gpu_layers} of {layers} layers on the GPU"
    if answer.longest > answer.context.n_ctx:
        words += f"; there is room for a context of {answer.longest} tokens"
    out.say(f"{words}:")
    device_rows = [_device_row(device) for device in best.devices]
    names = ("weights", "KV cache", "compute", "output", "overhead", "in all")
    out.table([("", "left"), *((name, "right") for name in names)], device_rows)
    out.say("")
    for command in commands:
        out.say(f"  {command}")


def _device_row(device: DeviceMemory) -> Sequence[str]:
    parts = (device.weights, device.kv, device.compute, device.output, device.overhead, device.total)
    return [device.name, *(human_bytes(part) if part else "-" for part in parts)]


def _document(source: str, answer: Answer, machine: Machine, commands: Sequence[str]) -> dict[str, Any]:
    shape, context = answer.source.shape, answer.context
    return {
        "command": "plan",
        "source": source,
        "name": answer.source.model.name,
        "architecture": shape.arch,
        "parameters": sum(tensor.n_elements for tensor in answer.source.model.tensors),
        "layers": shape.n_layer,
        "trained_context": shape.context or None,
        "exact_sizes": answer.source.exact,
        "budget": {"ram": machine.ram, "vram": machine.vram, "gpu": machine.gpu_name or None},
        "context": {**vars(context), "gpu_layers": None, "flash": context.flash_on},
        "assumed": {"gpu_overhead": GPU_OVERHEAD, "bandwidth": answer.bandwidth_document()},
        "types": [_row_document(row) for row in answer.rows],
        "best": None if answer.best is None else answer.best.offer.label,
        "longest_context": answer.longest or None,
        "commands": list(commands),
        "missing": None if answer.best is not None else answer.missing_document(),
        "notes": list(answer.notes(machine)),
    }


def _row_document(row: Row) -> dict[str, Any]:
    offer = row.offer
    if offer.why_not:
        return {"type": offer.label, "why_not": offer.why_not}
    return {
        "type": offer.label,
        "bytes": offer.size,
        "bits_per_weight": round(offer.bits, 4),
        "needs_imatrix": offer.needs_imatrix,
        "fits": not row.missing,
        "missing_bytes": row.missing,
        "gpu_layers": None if row.fit is None else row.fit.gpu_layers,
        "devices": [
            {key: value for key, value in {**vars(device), "total": device.total}.items() if value != 0}
            for device in row.devices
        ],
        "gpu_bytes": row.gpu_bytes,
        "cpu_bytes": row.cpu_bytes,
        "tokens_per_second_estimate": round(row.speed, 2) or None,
    }
