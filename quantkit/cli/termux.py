"""`quantkit termux`: write one bash script that installs and runs a model in Termux on an Android phone."""

from pathlib import Path
from typing import Annotated

import typer

from quantkit.cli.ollama_options import read_overrides
from quantkit.cli.options import (
    ChatTemplateOption,
    ContextOption,
    DryRunOption,
    ForceOption,
    OfflineOption,
    ParameterOption,
    SystemOption,
    output_option,
    parse_memory,
    parse_size,
)
from quantkit.cli.output import Out


def termux(
    out: Out,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="NS/MODEL[:TAG]", help="Ollama model to pull, or a name for --gguf.", show_default=False
        ),
    ] = None,
    gguf: Annotated[
        str | None,
        typer.Option(metavar="URL|FILE", help="GGUF to download, or a file to copy to the phone.", show_default=False),
    ] = None,
    output: Annotated[Path, output_option("FILE", "File of the script.")] = Path("termux.sh"),
    figures: Annotated[
        str | None,
        typer.Option(metavar="URL|FILE", help="GGUF of the model to pull; gives the sizes."),
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Size of the download, such as 2.3G.", show_default="the GGUF's")
    ] = None,
    ram: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory of the model, such as 3G.", show_default="planned from the GGUF"),
    ] = None,
    ctx: ContextOption = None,
    parameters: ParameterOption = None,
    system: SystemOption = None,
    chat_template: ChatTemplateOption = None,
    offline: OfflineOption = False,
    dry_run: DryRunOption = False,
    force: ForceOption = False,
) -> None:
    """Write the script that installs a model on an Android phone.

    Pass --model or --gguf. The script is one readable bash file. Run it on the phone, or pipe it into bash there. It
    contains the memory that the model needs, and refuses a phone that is too small before it downloads anything.

    Example: quantkit termux --model NS/MODEL --figures MODEL.gguf -o termux.sh
    """
    from quantkit.cli.termux_tables import document, show_phones
    from quantkit.publish.ollama.tags import parse_name
    from quantkit.publish.termux import fill_in, script, write_script
    from quantkit.publish.termux_model import ScriptRequest, script_settings

    request = ScriptRequest(
        overrides=read_overrides(parameters, ctx, None, system, None, None, chat_template),
        name=str(parse_name(model)) if model is not None else "",
        gguf=gguf,
        figures=figures,
        size=parse_size(size, "--size") if size else None,
        memory=parse_memory(ram, "--ram") if ram is not None else None,
        offline=offline,
    )
    with out.progress() as progress:
        settings, phone_model = script_settings(request, progress)
    for warning in phone_model.warnings:
        out.warn(warning)
    for note in phone_model.notes:
        out.note(f"note: {note}")
    text = fill_in(script(), settings)
    show_phones(settings, out)
    if not dry_run:
        write_script(output, text, force=force)
        out.say(f"\nwrote {output}; on the phone, in Termux: bash {output.name}")
    out.document(document(settings, output, dry_run=dry_run))
