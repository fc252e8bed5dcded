"""Output of `quantkit termux`: the table of phones, and the JSON document."""

from pathlib import Path
from typing import Any

from quantkit.cli.output import Out
from quantkit.planning.phones import PHONES
from quantkit.publish.termux import Settings
from quantkit.publish.termux_model import choose, is_url
from quantkit.units import human_bytes


def show_phones(settings: Settings, out: Out) -> None:
    """Print the phones that run the model, with their context and batch."""
    how = "is pulled" if not settings.gguf else f"is created from {settings.gguf}"
    size = f", {human_bytes(settings.model_bytes)}" if settings.model_bytes else ""
    out.say(f"{settings.name} {how}{size}")
    if not settings.memory:
        if settings.model_bytes is None:
            out.say(
                "the memory of the model is unknown: the script asks the registry for its size; pass --figures or --ram"
            )
        return
    rows = []
    for phone in PHONES:
        chosen = choose(settings, phone)
        context, batch = map(str, chosen[:2]) if chosen else ("-", "-")
        takes = human_bytes(chosen[2] if chosen else settings.memory[0][2])
        rows.append(
            [f"{phone.gigabytes} GB", human_bytes(phone.room), context, batch, takes, "yes" if chosen else "no"]
        )
    headers = [("phone", "right"), ("room", "right"), ("context", "right"), ("batch", "right"), ("takes", "right")]
    out.table([*headers, ("fits", "left")], rows)
    out.note("note: room is the memory that Android is assumed to leave: all but a tenth and 2 GiB")
    if settings.gguf and not is_url(settings.gguf):
        out.note(f"note: copy {settings.gguf} to the phone too, into its Download folder or beside the script")


def document(settings: Settings, output: Path, *, dry_run: bool) -> dict[str, Any]:
    """The JSON document of the command."""
    phones = [(phone, choose(settings, phone)) for phone in PHONES]
    return {
        "command": "termux",
        "model": settings.name,
        "gguf": settings.gguf or None,
        "bytes": settings.model_bytes,
        "sha256": settings.model_sha256 or None,
        "memory": [{"context": ctx, "batch": batch, "bytes": need} for ctx, batch, need in settings.memory],
        "phones": [
            {
                "gigabytes": phone.gigabytes,
                "room": phone.room,
                "fits": chosen is not None if settings.memory else None,
                "context": chosen and chosen[0],
                "batch": chosen and chosen[1],
            }
            for phone, chosen in phones
        ],
        "script": None if dry_run else str(output),
    }
