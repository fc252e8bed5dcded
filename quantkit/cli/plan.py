"""`quantkit plan`: what a model takes and what fits this machine, before anything is downloaded or converted."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantkit.cli.loading import loading
from quantkit.cli.options import (
    AUTO,
    GPU_LAYERS,
    KvTypeOption,
    NoKvOffloadOption,
    NoStoredSpeedsOption,
    OfflineOption,
    context_option,
    parse_gpu_layers,
    parse_memory,
    parse_size,
)
from quantkit.cli.output import Out
from quantkit.errors import UsageError
from quantkit.machine import Machine, this_machine, unified_vram
from quantkit.units import human_bytes

if TYPE_CHECKING:
    from quantkit.planning.phones import Phone


def plan(
    out: Out,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A hub id ([modelscope:]ORG/NAME[@REVISION]), a checkpoint folder, a config.json, or a GGUF file.",
            show_default=False,
        ),
    ],
    types: Annotated[
        list[str] | None,
        typer.Option(
            "--type",
            "-t",
            metavar="TYPE",
            help="A GGUF type, or a folder such as awq or fp8; repeat.",
            show_default="the usual",
        ),
    ] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Importance matrix of the GGUF types, which changes their sizes."),
    ] = None,
    vram: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE[,SIZE]", help="Memory of each GPU to use (8G; 8G,12G; none).", show_default="what is free"
        ),
    ] = None,
    ram: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory to use (16G).", show_default="what is free")
    ] = None,
    unified: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory that CPU and GPU share: Apple, APUs (16G).", show_default="detected"),
    ] = None,
    for_phone: Annotated[
        str | None,
        typer.Option("--phone", metavar="SIZE", help="Plan for a phone with this much memory: 4G, 6G, 8G or 12G."),
    ] = None,
    ctx: Annotated[int | None, context_option(default="4096, or the trained")] = None,
    kv_type: KvTypeOption = "f16",
    gpu_layers: Annotated[str, GPU_LAYERS] = AUTO,
    cpu_moe: Annotated[
        int | None,
        typer.Option(
            "--n-cpu-moe",
            metavar="N",
            min=0,
            help="Layers whose experts stay on the CPU.",
            show_default="the fastest that fits",
        ),
    ] = None,
    no_kv_offload: NoKvOffloadOption = False,
    batch: Annotated[int, typer.Option(metavar="N", min=1, max=1 << 16, help="Tokens of a physical batch.")] = 512,
    flash_attn: Annotated[
        bool | None, typer.Option("--flash-attn/--no-flash-attn", help="Flash attention.", show_default="auto: on")
    ] = None,
    repack: Annotated[
        bool, typer.Option("--repack/--no-repack", help="llama.cpp rearranges weights for the CPU.")
    ] = True,
    mmproj: Annotated[
        str | None,
        typer.Option(
            "--mmproj",
            metavar="TYPE|none",
            help="Count the projector of a model that sees, in this type.",
            show_default="one beside a GGUF",
        ),
    ] = None,
    bandwidth: Annotated[
        str | None,
        typer.Option(metavar="CPU[,GPU]", help="Memory read a second (40G,500G); one a GPU.", show_default="measured"),
    ] = None,
    no_stored_speeds: NoStoredSpeedsOption = False,
    offline: OfflineOption = False,
) -> None:
    """Show which format and placement fit a machine, from headers alone.

    The command reads headers only and downloads no weights. Sizes are those that llama.cpp takes; speeds are estimates.

    Example: quantkit plan ORG/NAME --vram 8G --ram 16G
    """
    from quantkit.cli.plan_tables import show_plan
    from quantkit.planning.plan import PlanOptions
    from quantkit.planning.plan import plan as plan_model

    if unified is not None and (vram is not None or ram is not None):
        raise UsageError("--unified sets the memory of CPU and GPU, and so do --ram and --vram; use only one of them")
    chosen_phone = _phone(for_phone, vram, ram or unified)
    options = PlanOptions(
        types=types,
        imatrix=imatrix,
        machine=None if chosen_phone else _machine(vram, ram, unified),
        phone=chosen_phone,
        n_ctx=ctx,
        kv_type=kv_type,
        n_ubatch=batch,
        flash=flash_attn,
        gpu_layers=_layers(gpu_layers),
        cpu_moe=cpu_moe,
        kv_on_gpu=not no_kv_offload,
        repack=repack,
        mmproj=mmproj,
        bandwidth=_bandwidths(bandwidth, len((vram or "").split(","))),
        stored_speeds=not no_stored_speeds,
    )
    # the plan of a large mixture makes a million objects without cycles; collections would take a third of its time
    with loading():
        result = plan_model(source, options, offline=offline)
    out.document({"command": "plan", **result.document()})
    free = unified is None
    show_plan(result, out, ram_is_free=free and ram is None and not chosen_phone, vram_is_free=free and vram is None)
    if chosen_phone:
        out.note(
            f"note: of a phone's {chosen_phone.gigabytes} GB Android is assumed to leave"
            f" {human_bytes(chosen_phone.room)} to a model"
        )


def _phone(text: str | None, vram: str | None, ram: str | None) -> "Phone | None":
    if text is None:
        return None
    if vram is not None or ram is not None:
        raise UsageError("--phone sets the memory, and so do --ram and --vram; use only one of them")
    from quantkit.planning.phones import phone

    return phone(text)


def _layers(text: str) -> int | None:
    """Layers on the GPU; None for as many as fit."""
    if text == AUTO:
        return None
    from quantkit.planning.plan import ALL_LAYERS

    layers = parse_gpu_layers(text)
    return ALL_LAYERS if layers is None else layers


def _machine(vram: str | None, ram: str | None, unified: str | None) -> Machine:
    here = this_machine()
    if unified is not None:
        shared = parse_memory(unified, "--unified")
        return replace(here, ram=shared, vram=unified_vram(shared), vrams=(), unified=True, gpu_name="")
    if vram is not None:
        none = vram.strip().lower() in ("0", "none")
        sizes = () if none else tuple(parse_memory(part, "--vram") for part in vram.split(","))
        name = here.gpu_name if here.vram else ""
        here = replace(here, vram=sum(sizes), vrams=sizes if len(sizes) > 1 else (), unified=False, gpu_name=name)
    if ram is not None:
        here = replace(here, ram=parse_memory(ram, "--ram"))
    return here


def _bandwidths(text: str | None, gpus: int) -> dict[str, tuple[float, str]]:
    """Bytes per second of the devices that --bandwidth gives; `gpus`: how many --vram has."""
    from quantkit.planning.devices import gpu_names

    figures = [parse_size(part.replace("/s", ""), "--bandwidth") for part in text.split(",")] if text else []
    if len(figures) > 2 and len(figures) - 1 != gpus:
        raise UsageError(
            f"--bandwidth {text!r} has more than two figures; write CPU,GPU such as 40G,500G, or one for each GPU of"
            " --vram"
        )
    names = ("CPU", *gpu_names(gpus)) if len(figures) > 2 else ("CPU", "GPU")
    return {device: (float(figure), "given") for device, figure in zip(names, figures, strict=False)}
