"""`quantkit card`: README.md for a folder that is to be published."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from quantkit.cli.output import Out, printable
from quantkit.errors import UsageError
from quantkit.measurement.document import load_report
from quantkit.publish.card.card import CardModel, kind_of_folder, write_card
from quantkit.publish.card.facts import KINDS
from quantkit.publish.card.metadata import is_hub_id
from quantkit.publish.ollama.tags import parse_name


def card(
    out: Out,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A NAME-GGUF, NAME-AWQ or NAME-GPTQ folder.", show_default=False)
    ],
    base_model: Annotated[
        str | None,
        typer.Option("--base-model", metavar="ORG/NAME", help="The original.", show_default="by quantkit.json"),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="DIR", help="A report of `quantkit measure`: figures and plots of the card."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="TEXT", show_default="the folder's")] = None,
    license_: Annotated[
        str | None,
        typer.Option("--license", metavar="ID|NAME", help="As the hub spells it (apache-2.0).", show_default="GGUF's"),
    ] = None,
    languages: Annotated[
        list[str] | None, typer.Option("--language", metavar="CODE", help="en, zh, ...; repeat.")
    ] = None,
    repo: Annotated[
        str | None, typer.Option("--repo", metavar="ORG/NAME", help="The repository it will be, for its commands.")
    ] = None,
    ollama: Annotated[
        str | None, typer.Option("--ollama", metavar="NS/MODEL", help="Its name on Ollama, where it is there.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write it there.", show_default="README.md in FOLDER"),
    ] = None,
) -> None:
    """Write a model card for a folder of outputs.

    What is not known is left out. A README.md that was written by hand is kept as README.md.bak.

    Example: quantkit card NAME-GGUF --base-model ORG/NAME --report report --repo ME/NAME-GGUF
    """
    for option, given in (("--base-model", base_model), ("--repo", repo)):
        if given is not None and not is_hub_id(given):
            raise UsageError(f"{option} {given!r} is no id of the hub; write ORG/NAME")
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}; give a NAME-GGUF, NAME-AWQ or NAME-GPTQ folder")
    kind = kind_of_folder(folder)
    model = CardModel(
        name=name or folder.resolve().name.removesuffix(f"-{KINDS[kind]}"),
        base_model=base_model,
        license=license_,
        languages=tuple(languages or ()),
        ollama_name=str(parse_name(ollama)) if ollama is not None else None,
        hub_repo=repo,
    )
    figures = None if report is None else load_report(report / "report.json" if report.is_dir() else report)
    plots = report if report is None or report.is_dir() else report.parent
    written = write_card(folder, kind=kind, model=model, report=figures, plots=plots, path=output)
    out.document({"command": "card", "folder": str(folder), "kind": kind, "card": str(written)})
    out.say(printable(str(written)))
    if repo is not None and output is None:
        command = f"hf upload {repo} {shlex.quote(str(folder))} --exclude '*.partial' '*.failed' '*.journal*' '*.bak*'"
        out.note(printable(f"to publish the folder: {command}"))
