"""`quantkit lora`: write a LoRA adapter as llama.cpp's adapter GGUF."""

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.cli.options import DryRunOption, ForceOption, OfflineOption, check_name, output_option
from quantkit.cli.output import Out

if TYPE_CHECKING:
    from quantkit.outputs.adapter_gguf import AdapterFile


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
    types: Annotated[
        list[str] | None,
        typer.Option(
            "--type",
            "-t",
            metavar="TYPE",
            help="Type of the matrices: f32, f16, bf16 or q8_0; repeat for more.",
            show_default="f32",
        ),
    ] = None,
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
    from quantkit.checkpoint import Access
    from quantkit.conversion.adapter_gguf import write_adapter_gguf
    from quantkit.families import open_model
    from quantkit.files import refuse_existing
    from quantkit.outputs.adapter_gguf import plan_adapter_file

    check_name(name)
    with out.progress() as progress:
        opened = open_adapter(AdapterRequest(adapter), offline=offline, progress=progress)
        with closing(opened), open_model(base, Access(offline, headers_only=True), progress=progress) as model:
            names = dict.fromkeys(type_.lower() for type_ in types or ["f32"])
            files = [plan_adapter_file(model, opened, type_, output, name) for type_ in names]
            refuse_existing([file.path for file in files], force=force)
            hashes = [
                None if dry_run else write_adapter_gguf(file, opened, force=force, progress=progress).sha256
                for file in files
            ]
    origin = files[0].origin
    record = origin["adapters"][0]
    for file in files:
        out.say(f"{file.path}: {record['kind']} of rank {record['rank']}, {len(file.tensors)} tensors")
    out.say(f"run it with llama.cpp: llama-cli -m BASE.gguf --lora {files[0].path.name}")
    out.document(
        {
            "command": "lora",
            "dry_run": dry_run,
            "family": files[0].family,
            "origin": origin,
            "outputs": [_output(file, sha256) for file, sha256 in zip(files, hashes, strict=True)],
        }
    )


def _output(file: "AdapterFile", sha256: str | None) -> dict[str, Any]:
    return {
        "file": str(file.path),
        "type": file.type.name,
        "bytes": file.layout.size,
        "sha256": sha256,
        "tensors": {tensor.name: {"type": tensor.type.name, "shape": list(tensor.shape)} for tensor in file.tensors},
    }
