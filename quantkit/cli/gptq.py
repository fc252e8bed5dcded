"""`quantkit gptq`: a checkpoint to GPTQ, in AutoGPTQ's format."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from quantkit.cli import calibrated
from quantkit.cli.calibration_options import (
    BitsOption,
    Calibrating,
    CalibrationOption,
    ChatOption,
    CheckpointArg,
    DeviceOption,
    DtypeOption,
    GroupOption,
    LogitsOption,
    MaxRamOption,
    MaxShardOption,
    NameOption,
    OfflineOption,
    OutputOption,
    SamplesOption,
    SeqLenOption,
    SkipOption,
    ThreadsOption,
    check_name,
)
from quantkit.cli.options import DryRunOption, ForceOption, parse_size
from quantkit.cli.output import Out
from quantkit.outputs.packed_folders import FolderRequest
from quantkit.quant.grid import Grid


def gptq(
    out: Out,
    source: CheckpointArg,
    output: OutputOption = Path(),
    name: NameOption = None,
    bits: BitsOption = 4,
    group_size: GroupOption = 128,
    symmetric: Annotated[
        bool, typer.Option("--sym/--asym", help="One zero point for all, which every kernel reads, or one a group.")
    ] = True,
    act_order: Annotated[
        bool, typer.Option("--act-order/--no-act-order", help="Round the columns that matter most first.")
    ] = True,
    static_groups: Annotated[
        bool,
        typer.Option(
            "--static-groups/--no-static-groups",
            help="Groups of neighbouring columns whatever the order, which kernels read fastest.",
        ),
    ] = True,
    damp: Annotated[
        float, typer.Option(metavar="SHARE", min=0.0, max=1.0, help="Of the mean diagonal, added to the diagonal.")
    ] = 0.01,
    skip: SkipOption = None,
    calibration: CalibrationOption = None,
    samples: SamplesOption = 128,
    seq_len: SeqLenOption = 512,
    chat: ChatOption = None,
    propagate: Annotated[
        Literal["float", "quantized"],
        typer.Option(help="What the next layer learns from: the source's activations, or the quantized layers'."),
    ] = "float",
    dtype: DtypeOption = "float16",
    max_shard_size: MaxShardOption = "5G",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    max_ram: MaxRamOption = None,
    logits: LogitsOption = None,
    dry_run: DryRunOption = False,
    force: ForceOption = False,
    offline: OfflineOption = False,
) -> None:
    """Quantize a checkpoint to GPTQ, in AutoGPTQ's format.

    Runs the model over a calibration text layer by layer, in the memory of one layer, on a CPU if need be. Routers and
    gates of a mixture of experts, the embedding and the head are never quantized. The folder is reloaded and checked
    before it gets its name. A killed run is taken up by the same command.

    Example: quantkit gptq ORG/NAME --bits 4 --group-size 128 -o out
    """
    check_name(name)
    request = FolderRequest(
        method="gptq",
        grid=Grid(bits, group_size, symmetric),
        skip=tuple(skip or ()),
        dtype=dtype,
        max_shard=parse_size(max_shard_size, "--max-shard-size"),
        damp=damp,
        act_order=act_order,
        static_groups=static_groups,
    )
    asked = Calibrating(
        calibration, samples, seq_len, chat, threads, max_ram, device, logits, offline, propagate == "quantized"
    )
    calibrated.folder_command(source, request, asked, out, name=name, output=output, dry_run=dry_run, force=force)
