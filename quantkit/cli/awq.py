"""`quantkit awq`: a checkpoint to AWQ, in AutoAWQ's GEMM format."""

from pathlib import Path

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


def awq(
    out: Out,
    source: CheckpointArg,
    output: OutputOption = Path(),
    name: NameOption = None,
    bits: BitsOption = 4,
    group_size: GroupOption = 128,
    skip: SkipOption = None,
    calibration: CalibrationOption = None,
    samples: SamplesOption = 128,
    seq_len: SeqLenOption = 512,
    chat: ChatOption = None,
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
    """Quantize a checkpoint to AWQ, in AutoAWQ's GEMM format.

    Runs the model over a calibration text layer by layer, in the memory of one layer, on a CPU if need be. Routers and
    gates of a mixture of experts, the embedding and the head are never quantized. The folder is reloaded and checked
    before it gets its name. A killed run is taken up by the same command.

    Example: quantkit awq ORG/NAME --group-size 64 -o out
    """
    check_name(name)
    request = FolderRequest(
        method="awq",
        grid=Grid(bits, group_size),
        skip=tuple(skip or ()),
        dtype=dtype,
        max_shard=parse_size(max_shard_size, "--max-shard-size"),
    )
    asked = Calibrating(calibration, samples, seq_len, chat, threads, max_ram, device, logits, offline)
    calibrated.folder_command(source, request, asked, out, name=name, output=output, dry_run=dry_run, force=force)
