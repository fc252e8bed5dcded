"""`quantkit termux`: write one bash script that installs and runs a model in Termux on an Android phone."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from quantkit.cli.ollama_options import read_overrides
from quantkit.cli.options import ContextOption, ForceOption, ParameterOption, ShortParameterOption, parse_size
from quantkit.cli.output import Out, human_bytes
from quantkit.errors import CheckpointError, OutputError, UnsupportedError, UsageError
from quantkit.files import user_path, write_atomically
from quantkit.planning.phones import PHONES, Phone, phone_memory
from quantkit.planning.sources import open_source
from quantkit.publish.ollama.bundle import make_bundle
from quantkit.publish.ollama.facts import facts_of_gguf
from quantkit.publish.ollama.overrides import Overrides
from quantkit.publish.ollama.server import digest_of
from quantkit.publish.ollama.tags import parse_name
from quantkit.publish.remote_gguf import check_url, file_name, look_at
from quantkit.publish.termux import (
    Settings,
    check_parameters,
    fill_in,
    llama_flags,
    modelfile_of_name,
    script,
    without_phone_parameters,
)
from quantkit.scratch import scratch_folder

BESIDE_WEIGHTS = 500_000_000
"""Where only a file's size is known: KV cache, compute and the process, as the script assumes them too."""


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
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="File of the script.")] = Path(
        "termux.sh"
    ),
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
    short_parameters: ShortParameterOption = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="The system message.")] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(metavar="FILE|NAME", help="A Jinja file, a built-in template, or none."),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Do not read the header of the GGUF at its URL.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the figures; write nothing.")] = False,
    force: ForceOption = False,
) -> None:
    """Write the script that installs a model on an Android phone.

    The script is one readable bash file. Run it on the phone, or pipe it into bash there. It contains the memory that
    the model needs, and refuses a phone that is too small before it downloads anything.

    Example: quantkit termux --model NS/MODEL --figures MODEL.gguf -o termux.sh
    """
    if model is None and gguf is None:
        raise UsageError("no model was named; write quantkit termux --model NS/MODEL, or --gguf URL|FILE")
    if figures is not None and gguf is not None:
        raise UsageError("--figures is for a model that is pulled by its name; the figures of --gguf are its own")
    name = str(parse_name(model)) if model is not None else ""
    overrides = read_overrides(
        [*(parameters or ()), *(short_parameters or ())], ctx, None, system, None, None, chat_template
    )
    check_parameters(overrides.parameters)
    asked_ctx = next((int(value) for key, value in overrides.parameters if key == "num_ctx"), None)
    found = _Found(model_bytes=parse_size(size, "--size") if size else None)
    if gguf is not None:
        found = _look(gguf, found, overrides, asked_ctx, out, offline=offline)
    elif figures is not None:
        found = _look(figures, found, None, asked_ctx, out, offline=False)
    if ram is not None:
        need = parse_size(ram, "--ram")
        rungs = found.memory or ((asked_ctx or 1024, 128, 0), (asked_ctx or 2048, 128, 0), (asked_ctx or 4096, 512, 0))
        found = replace(found, memory=tuple((n_ctx, batch, need) for n_ctx, batch, _ in rungs))
    if gguf is None:
        if chat_template is not None:
            raise UsageError("--chat-template is for a GGUF; a model that is pulled brings its own")
        made = modelfile_of_name(name, overrides.parameters, overrides.system)
        found = replace(found, modelfile=without_phone_parameters(made))
    settings = Settings(
        name=name or _plain_name(found.file),
        gguf="" if gguf is None else gguf if _is_url(gguf) else found.file,
        model_bytes=found.model_bytes,
        model_sha256=found.sha256,
        memory=found.memory,
        ctx=asked_ctx,
        modelfile=found.modelfile,
        llama_flags=found.flags,
    )
    text = fill_in(script(), settings)
    _show(settings, output, out)
    if not dry_run:
        _write(output, text, force=force)
        out.say(f"\nwrote {output}; on the phone, in Termux: bash {output.name}")
    out.document(_document(settings, output, dry_run=dry_run))


@dataclass(frozen=True)
class _Found:
    """What a GGUF told."""

    file: str = ""
    model_bytes: int | None = None
    sha256: str = ""
    memory: tuple[tuple[int, int, int], ...] = ()
    modelfile: str = ""
    flags: str = ""


def _is_url(text: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def _look(gguf: str, known: _Found, overrides: Overrides | None, ctx: int | None, out: Out, *, offline: bool) -> _Found:
    """What the GGUF tells; without `overrides` its sizes only."""
    if not _is_url(gguf):
        path = user_path(gguf)
        if not path.is_file():
            raise CheckpointError(f"there is no file {gguf}; check the name")
        found = _read(path, known, overrides, ctx, out)
        if overrides is None:
            return found
        with out.progress() as progress:
            progress.start("hashing", path.stat().st_size)
            return replace(found, sha256=digest_of(path, progress).removeprefix("sha256:"))
    check_url(gguf)
    if offline and overrides is not None:
        if overrides.chat_template is not None:
            raise UsageError("--chat-template needs a look at the GGUF; leave out --offline")
        made = modelfile_of_name("model", overrides.parameters, overrides.system)
        text = without_phone_parameters(made)
        return replace(known, file=file_name(gguf), modelfile=text, flags=llama_flags(overrides.parameters))
    with scratch_folder() as folder:
        remote = look_at(gguf, folder)
        return replace(_read(remote.path, known, overrides, ctx, out), sha256=remote.sha256 or "" if overrides else "")


def _read(path: Path, known: _Found, overrides: Overrides | None, ctx: int | None, out: Out) -> _Found:
    """What the header of `path` tells, the rest of which may be a hole."""
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", path.name):
        raise UsageError(f"{path.name} is one of several shards; make one file of them for a phone")
    found = replace(known, file=path.name, model_bytes=known.model_bytes or path.stat().st_size)
    try:
        source = open_source(str(path))
        try:
            found = replace(found, memory=tuple(phone_memory(source, ctx)))
        finally:
            source.model.close()
    except UnsupportedError as error:
        out.warn(f"{error}; the script reckons with the file's size and {human_bytes(BESIDE_WEIGHTS)} more")
    if overrides is None:
        return found
    bundle = make_bundle(facts_of_gguf(path), overrides, sources=("./model.gguf",), base="model")
    for note in bundle.notes:
        if not note.startswith("num_ctx is pinned"):
            out.note(f"note: {note}")
    made = bundle.modelfile
    return replace(found, modelfile=without_phone_parameters(made), flags=llama_flags(made.parameters))


def _plain_name(file: str) -> str:
    """An Ollama name out of a file's, by the script's own rule."""
    name = re.sub(r"[^a-z0-9._-]", "-", file.lower().removesuffix(".gguf"))
    return re.sub(r"\.{2,}", ".", name.lstrip(".-"))[:80] or "model"


def _rung(settings: Settings, phone: Phone) -> tuple[int, int, int] | None:
    """What the script will take on a phone with nothing else open; None where it will refuse."""
    fits = None
    for n_ctx, batch, need in settings.memory:
        if batch <= phone.n_batch and (settings.ctx or n_ctx <= phone.n_ctx) and need <= phone.room:
            fits = (n_ctx, batch, need)
    return fits


def _show(settings: Settings, output: Path, out: Out) -> None:
    how = "is pulled" if not settings.gguf else f"is made of {settings.gguf}"
    size = f", {human_bytes(settings.model_bytes)}" if settings.model_bytes else ""
    out.say(f"{settings.name} {how}{size}")
    if not settings.memory:
        if settings.model_bytes is None:
            out.say("what it needs is not known: the script asks for its size (--figures or --ram tell more)")
        return
    rows = []
    for phone in PHONES:
        rung = _rung(settings, phone)
        room = human_bytes(phone.room)
        if rung is None:
            least = human_bytes(settings.memory[0][2])
            rows.append([f"{phone.gigabytes} GB", room, "-", "-", least, "no"])
        else:
            rows.append([f"{phone.gigabytes} GB", room, str(rung[0]), str(rung[1]), human_bytes(rung[2]), "yes"])
    headers = [("phone", "right"), ("room", "right"), ("context", "right"), ("batch", "right"), ("takes", "right")]
    out.table([*headers, ("fits", "left")], rows)
    out.note("note: room is what Android is assumed to leave: all but a tenth and 2 GiB; the script reads the phone's")
    if output.name and settings.gguf and not _is_url(settings.gguf):
        out.note(f"note: copy {settings.gguf} to the phone too, into its Download folder or beside the script")


def _write(output: Path, text: str, *, force: bool) -> None:
    try:
        if output.is_file() and not force:
            if output.read_bytes() == text.encode():
                return
            raise OutputError(f"{output} is there already with other content; pass --force to replace it")
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, text, mode=0o755)
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error.strerror or error}") from error


def _document(settings: Settings, output: Path, *, dry_run: bool) -> dict[str, Any]:
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
                "fits": rung is not None if settings.memory else None,
                "context": rung and rung[0],
                "batch": rung and rung[1],
            }
            for phone in PHONES
            for rung in [_rung(settings, phone)]
        ],
        "script": None if dry_run else str(output),
    }
