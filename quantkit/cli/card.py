"""`quantkit card`: README.md for a folder that is to be published."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from quantkit.cli.ollama_options import license_name
from quantkit.cli.options import LICENSE, output_option
from quantkit.cli.output import Out
from quantkit.errors import UsageError


def card(
    out: Out,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A NAME-GGUF, NAME-AWQ or NAME-GPTQ folder.", show_default=False)
    ],
    base_model: Annotated[
        str | None,
        typer.Option("--base-model", metavar="ORG/NAME", help="The original model.", show_default="by quantkit.json"),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="DIR", help="Report of `quantkit measure` with figures and plots."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="TEXT", help="Model name.", show_default="the folder's")
    ] = None,
    license_: Annotated[str | None, LICENSE] = None,
    languages: Annotated[
        list[str] | None, typer.Option("--language", metavar="CODE", help="Language code, such as en; repeat.")
    ] = None,
    repo: Annotated[
        str | None, typer.Option("--repo", metavar="ORG/NAME", help="Hub repository that the commands name.")
    ] = None,
    ollama: Annotated[str | None, typer.Option("--ollama", metavar="NS/MODEL", help="Model name on Ollama.")] = None,
    output: Annotated[
        Path | None,
        output_option("FILE", "File of the card.", "README.md in FOLDER"),
    ] = None,
) -> None:
    """Write a model card for a folder of outputs.

    The card leaves out unknown values. A README.md written by hand is kept as README.md.bak.

    Example: quantkit card NAME-GGUF --base-model ORG/NAME --report report --repo ME/NAME-GGUF
    """
    from quantkit.measurement.reading import load_report
    from quantkit.publish.card.card import CardModel, kind_of_folder, write_card
    from quantkit.publish.card.facts import KINDS
    from quantkit.publish.card.metadata import is_hub_id, page_of
    from quantkit.publish.ollama.tags import parse_name

    if base_model is not None and page_of(base_model) is None:
        raise UsageError(f"--base-model {base_model!r} is not a hub id; write ORG/NAME or modelscope:ORG/NAME")
    if repo is not None and not is_hub_id(repo):
        raise UsageError(f"--repo {repo!r} is not a hub id; write ORG/NAME")
    if folder.is_file():
        raise UsageError(f"{folder} is a file; pass the folder that it is in")
    if not folder.is_dir():
        raise UsageError(f"folder {folder} not found; pass a NAME-GGUF, NAME-AWQ or NAME-GPTQ folder")
    kind = kind_of_folder(folder)
    model = CardModel(
        name=name or folder.resolve().name.removesuffix(f"-{KINDS[kind]}"),
        base_model=base_model,
        license=None if license_ is None else license_name(license_),
        languages=tuple(languages or ()),
        ollama_name=str(parse_name(ollama)) if ollama is not None else None,
        hub_repo=repo,
    )
    figures = None if report is None else load_report(report / "report.json" if report.is_dir() else report)
    plots = report if report is None or report.is_dir() else report.parent
    written = write_card(folder, kind=kind, model=model, report=figures, plots=plots, path=output)
    out.document({"command": "card", "folder": str(folder), "kind": kind, "card": str(written)})
    out.say(str(written))
    if repo is not None and output is None:
        command = f"hf upload {repo} {shlex.quote(str(folder))} --exclude '*.partial' '*.failed' '*.journal*' '*.bak*'"
        out.note(f"to publish the folder: {command}")
