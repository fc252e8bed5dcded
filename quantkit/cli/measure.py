"""`quantkit measure`: the loss of quality, memory and speed of every format of a model."""

import re
from pathlib import Path
from typing import Annotated

import typer

from quantkit.cli.conversion_options import DeviceOption, ThreadsOption
from quantkit.cli.options import (
    ForceOption,
    NoKvOffloadOption,
    OfflineOption,
    RpcOption,
    context_option,
    output_option,
    parse_gpu_layers,
)
from quantkit.cli.output import Out
from quantkit.errors import UsageError, VerificationError
from quantkit.machine import cores


def measure(
    out: Out,
    reference: Annotated[
        str,
        typer.Argument(
            metavar="REFERENCE",
            help="The model to compare with: a GGUF, a folder of weights, or a hub id.",
            show_default=False,
        ),
    ],
    candidates: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CANDIDATE...",
            help="GGUF files, folders of GGUF files, folders of AWQ, GPTQ or plain weights, hub ids.",
            show_default=False,
        ),
    ] = None,
    texts: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            "-T",
            metavar="FILE|ORG/NAME[:SPLIT]",
            help="Text to measure on: a text, jsonl or parquet file, or a hub dataset; repeat.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        output_option("DIR", "Folder of the report.", "NAME-report"),
    ] = None,
    ctx: Annotated[int, context_option("Tokens of a window (a chunk).", least=8)] = 512,
    chunks: Annotated[
        int | None,
        typer.Option("--chunks", metavar="N", min=1, help="Windows of each text.", show_default="all"),
    ] = None,
    gpu_layers: Annotated[
        str,
        typer.Option(
            "--gpu-layers",
            metavar="all|N,...",
            help="Layers on the GPU for memory and speed of GGUF files, or none.",
        ),
    ] = "0,8,16,all",
    memory_ctx: Annotated[
        int, typer.Option("--memory-ctx", metavar="N", min=1, help="Context of the memory measurement, in tokens.")
    ] = 4096,
    speed: Annotated[
        bool, typer.Option("--speed", help="Measure the tokens per second of GGUF files, beside the plan's estimate.")
    ] = False,
    cpu_moe: Annotated[
        int,
        typer.Option(
            "--n-cpu-moe", metavar="N", min=0, help="Layers whose experts stay on the CPU, for memory and speed."
        ),
    ] = 0,
    no_kv_offload: NoKvOffloadOption = False,
    rpc: RpcOption = None,
    mmproj: Annotated[
        str | None,
        typer.Option(
            "--mmproj",
            metavar="FILE|none",
            help="Projector with which GGUF files answer about pictures.",
            show_default="the one beside each",
        ),
    ] = None,
    max_delta: Annotated[
        str | None,
        typer.Option(metavar="X|X%", help="Exit 3 if a perplexity exceeds the reference's by more than this."),
    ] = None,
    max_kl: Annotated[
        float | None, typer.Option(metavar="NATS", min=0, help="Exit 3 if a mean KL divergence exceeds this.")
    ] = None,
    min_top1: Annotated[
        str | None, typer.Option(metavar="X%", help="Exit 3 if fewer top tokens match the reference's.")
    ] = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    force: ForceOption = False,
    offline: OfflineOption = False,
) -> None:
    """Measure what quantization cost: perplexity, KL divergence, memory, speed.

    All models see the same tokens, in the windows of llama-perplexity. llama.cpp runs GGUF files. quantkit's streamed
    forward runs folders of weights, in the memory of one layer. The command writes report.html, report.md, report.json
    and plots into DIR. Repeat the command to resume a killed run. GGUF files of encoders need no --text: their
    embeddings of quantkit's own queries and passages are compared. GGUF files with a projector beside them also answer
    questions about quantkit's own pictures.

    Example: quantkit measure ORG/NAME NAME-GGUF NAME-AWQ --text wiki.test.raw --chunks 40
    """
    from quantkit.api import measure as measure_models
    from quantkit.cli.measure_tables import show_measurement
    from quantkit.measurement.costs import Costs
    from quantkit.measurement.run import Limits, MeasureOptions

    options = MeasureOptions(
        output=output,
        n_ctx=ctx,
        n_chunks=chunks,
        threads=threads or cores(),
        limits=Limits(_delta(max_delta), max_kl, _share(min_top1)),
        costs=Costs(_layers(gpu_layers), memory_ctx, speed, threads or cores(), rpc or [], cpu_moe, not no_kv_offload),
        device=device,
        force=force,
        offline=offline,
        mmproj=mmproj,
    )
    with out.progress() as progress:
        measured = measure_models(reference, candidates or [], texts or [], options, progress, warn=out.warn)
    show_measurement(measured, out)
    out.document({"command": "measure", "report": str(measured.folder), **measured.document})
    if measured.flags:
        raise VerificationError("; ".join(measured.flags))


def _delta(text: str | None) -> tuple[float, bool] | None:
    """Parse "0.5" as (0.5, False) and "5%" as (0.05, True)."""
    if text is None:
        return None
    number = _number(text.removesuffix("%"))
    if number is None:
        raise UsageError(
            f"--max-delta {text!r} is not a limit of 0 or more; write a perplexity as 0.5 or a fraction as 5%"
        )
    return (number / 100, True) if text.endswith("%") else (number, False)


def _share(text: str | None) -> float | None:
    if text is None:
        return None
    number = _number(text.removesuffix("%"))
    share = None if number is None else number / 100 if text.endswith("%") else number
    if share is None or not 0 <= share <= 1:
        raise UsageError(f"--min-top1 {text!r} is not between 0 and 1; write 95% or 0.95")
    return share


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d+(\.\d*)?|\.\d+", text.strip()) else None


def _layers(text: str) -> list[int | None]:
    """Parse `--gpu-layers 0,8,all`; None stands for all, an empty list for "none"."""
    if text.strip() in ("none", ""):
        return []
    return [parse_gpu_layers(word, "0,8,16,all, or none") for word in text.split(",")]
