"""`quantkit imatrix`: a checkpoint's importance matrix, in llama.cpp's own format."""

from pathlib import Path
from typing import Annotated

import typer

from quantkit.cli import calibrated
from quantkit.cli.calibration_options import (
    Calibrating,
    CalibrationOption,
    ChatOption,
    CheckpointArg,
    DeviceOption,
    MaxRamOption,
    OfflineOption,
    SamplesOption,
    SeqLenOption,
    ThreadsOption,
)
from quantkit.cli.options import DryRunOption, ForceOption
from quantkit.cli.output import Out, human_bytes
from quantkit.conversion.calibrated import Squares
from quantkit.conversion.importance import Importance, Written
from quantkit.errors import OutputError


def imatrix(
    out: Out,
    source: CheckpointArg,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The file to write.", show_default="NAME-imatrix.gguf"),
    ] = None,
    calibration: CalibrationOption = None,
    samples: SamplesOption = 128,
    seq_len: SeqLenOption = 512,
    chat: ChatOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    max_ram: MaxRamOption = None,
    dry_run: DryRunOption = False,
    force: ForceOption = False,
    offline: OfflineOption = False,
) -> None:
    """Compute an importance matrix over a calibration text.

    The file is what llama.cpp's llama-imatrix writes and llama-quantize reads; quantkit gguf --imatrix reads it too.
    The model runs layer by layer, in the memory of one layer, and needs no GGUF. A killed run is taken up by the same
    command.

    Example: quantkit imatrix ORG/NAME -o imatrix.gguf
    """
    asked = Calibrating(calibration, samples, seq_len, chat, threads, max_ram, device, None, offline)
    with calibrated.fetch(source, out, offline=offline, headers_only=dry_run) as checkpoint:
        path = Path(f"{checkpoint.name}-imatrix.gguf") if output is None else output
        if path.is_dir():
            raise OutputError(f"{path} is a folder; name the file to write, as {path / 'imatrix.gguf'}")
        found = calibrated.plan(checkpoint, [], asked, out, name=path.stem, output=path.parent, nearest=True)
        importance = Importance(found)
        if dry_run:
            entries = len(importance.sources)
            out.say(f"{path}: {entries} tensors\ndry run: nothing was written")
            out.document({"command": "imatrix", "dry_run": True, **calibrated.facts(found), "entries": entries})
            return
        written: list[Written] = []

        def then(squares: Squares) -> None:
            written.append(importance.write(path, squares))

        result = calibrated.run(found, asked, out, force=force, then=then, others=[path])
    (file,) = written
    if file.unseen:
        first, number = next(iter(file.unseen.items()))
        out.warn(
            f"{sum(file.unseen.values())} matrices of {len(file.unseen)} tensors belong to experts that no token came"
            f" to ({first}: {number}); their inputs count alike, a longer --calibration text would reach them"
        )
    out.say(str(path))
    out.say(
        f"\n{file.entries} tensors over {found.samples.tokens.size} tokens in {result.seconds['calibrate']:.1f} s,"
        f" peak memory {human_bytes(result.peak_memory)}"
    )
    out.document(
        {
            "command": "imatrix",
            "dry_run": False,
            **calibrated.facts(found),
            "file": str(path),
            "bytes": path.stat().st_size,
            "entries": file.entries,
            "experts_without_tokens": file.unseen,
            "seconds": {name: round(value, 3) for name, value in result.seconds.items()},
            "peak_memory_bytes": result.peak_memory,
            "resumed_layers": result.resumed,
        }
    )
