"""`quantkit inspect`: what any checkpoint or output is, from its headers."""

from typing import Annotated

import typer

from quantkit.cli.options import OfflineOption
from quantkit.cli.output import Out


def inspect(
    out: Out,
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="A checkpoint folder, a hub id ([modelscope:]ORG/NAME[@REVISION]), a GGUF file, or a folder of them.",
            show_default=False,
        ),
    ],
    offline: OfflineOption = False,
) -> None:
    """Show what a checkpoint or an output is, from headers alone.

    Reads headers only; of a model on the hub no weights are downloaded. The chat template is shown as it renders a
    sample conversation.

    Example: quantkit inspect ORG/NAME
    """
    from quantkit.cli.inspect_lines import lines_of
    from quantkit.inspection import inspect_source

    description = inspect_source(path, offline=offline)
    out.document({"command": "inspect", **description.document()})
    width = out.stdout.width if out.stdout.is_terminal else 100
    for line in lines_of(description, max(width, 60)):
        out.say(line)
