"""`quantkit lora`: write a LoRA adapter as llama.cpp's adapter GGUF."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from quantkit.cli.options import DryRunOption, ForceOption, OfflineOption, check_name, output_option
from quantkit.cli.output import Out


def lora(
    out: Out,
    adapter: Annotated[
        str,
        typer.Argument(metavar="ADAPTER", help="A folder or a hub id of a LoRA adapter of PEFT.", show_default=False),
    ],
    base: Annotated[
        str,
        typer.Option(metavar="SOURCE", help="The adapter's base model: a folder or a hub id.", show_default=False),
    ],
    type_: Annotated[
        str, typer.Option("--type", "-t", metavar="TYPE", help="Type of the matrices: f32, f16, bf16 or q8_0.")
    ] = "f32",
    output: Annotated[Path, output_option("DIR", "Folder of the outputs.", "here")] = Path(),
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the output.", show_default="the adapter's")
    ] = None,
    dry_run: DryRunOption = False,
    force: ForceOption = False,
    offline: OfflineOption = False,
) -> None:
    """Write a LoRA adapter as a GGUF that llama.cpp loads beside its base model.

    Writes NAME-GGUF/NAME-TYPE-LoRA.gguf. Of the base only the config and the headers of its weights are read. To merge
    the adapter into the weights instead, pass --adapter to a command that converts.

    Example: quantkit lora ADAPTER --base ORG/NAME -t f16 -o out
    """
    from quantkit.adapters import AdapterRequest, open_adapter
    from quantkit.conversion.adapter_gguf import write_adapter_gguf
    from quantkit.families import open_model
    from quantkit.outputs.adapter_gguf import plan_adapter_file

    check_name(name)
    with out.progress() as progress:
        opened = open_adapter(AdapterRequest(adapter), offline=offline, progress=progress)
        with closing(opened), open_model(base, offline=offline, headers_only=True, progress=progress) as model:
            file = plan_adapter_file(model, opened, type_.lower(), output, name)
            written = None if dry_run else write_adapter_gguf(file, opened, force=force, progress=progress)
    record = file.origin["adapters"][0]
    out.say(f"{file.path}: {record['kind']} of rank {record['rank']}, {len(file.tensors)} tensors")
    out.say(f"run it with llama.cpp: llama-cli -m BASE.gguf --lora {file.path.name}")
    out.document(
        {
            "command": "lora",
            "dry_run": dry_run,
            "family": file.family,
            "origin": file.origin,
            "file": str(file.path),
            "type": file.type.name,
            "bytes": file.layout.size,
            "sha256": written and written.sha256,
            "tensors": {
                tensor.name: {"type": tensor.type.name, "shape": list(tensor.shape)} for tensor in file.tensors
            },
        }
    )
