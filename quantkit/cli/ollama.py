"""`quantkit ollama`: write Modelfiles and plan the tags of a GGUF; create and push them with --create and --push."""

import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from quantkit.cli.ollama_layers import read_num_gpu, with_layers
from quantkit.cli.ollama_options import read_overrides
from quantkit.cli.options import LICENSE_HELP, ContextOption, ForceOption, ParameterOption, ShortParameterOption
from quantkit.cli.output import Out, human_bytes
from quantkit.errors import ModelfileError, OutputError, UsageError
from quantkit.files import write_atomically
from quantkit.gguf.file_types import file_type
from quantkit.publish.ollama.bundle import Bundle, make_bundle
from quantkit.publish.ollama.facts import Facts, facts_of_folder, facts_of_gguf
from quantkit.publish.ollama.modelfile import lint_modelfile, write_modelfile
from quantkit.publish.ollama.plan_file import FILE_NAME, read_plan, write_plan
from quantkit.publish.ollama.push import Item, create_all, push_all
from quantkit.publish.ollama.server import Server, parse_host
from quantkit.publish.ollama.tags import TagPlan, parse_name, plan_tags, size_tag
from quantkit.recipes.ollama import OllamaRecipe, read_ollama


def ollama(
    out: Out,
    models: Annotated[
        list[Path] | None,
        typer.Argument(metavar="MODEL.gguf", help="GGUF files, or a NAME-GGUF folder.", show_default=False),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NS/MODEL[:TAG]", help="Name to publish under.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder of the Modelfiles.", show_default="beside the GGUF"),
    ] = None,
    default: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="Type that gets the short tags.", show_default="q4_0 if present"),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Model size in the tags, such as 4b.", show_default="the GGUF's, rounded"),
    ] = None,
    plan_file: Annotated[
        Path | None, typer.Option("--plan", metavar="FILE", help=f"An edited {FILE_NAME}, used instead of a new plan.")
    ] = None,
    recipe_file: Annotated[
        Path | None, typer.Option("--recipe", metavar="FILE", help="A recipe; its [ollama] table gives the defaults.")
    ] = None,
    parameters: ParameterOption = None,
    short_parameters: ShortParameterOption = None,
    ctx: ContextOption = None,
    num_gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu-layers", "--num-gpu", metavar="auto|all|N", help="Layers on the GPU; auto: as many as fit."
        ),
    ] = None,
    vram: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="GPU memory for --gpu-layers auto.", show_default="the free memory"),
    ] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="The system message.")] = None,
    license_: Annotated[
        list[str] | None,
        typer.Option("--license", metavar="ID|FILE", help=LICENSE_HELP, show_default="the GGUF's"),
    ] = None,
    messages: Annotated[
        list[str] | None,
        typer.Option("--message", metavar="ROLE=TEXT", help="A first message of the conversation; repeatable."),
    ] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(metavar="FILE|NAME", help="A Jinja file, a built-in template, or none."),
    ] = None,
    check: Annotated[
        Path | None, typer.Option("--check", metavar="FILE", help="Check a Modelfile and do nothing else.")
    ] = None,
    create: Annotated[bool, typer.Option("--create", help="Create every tag on the Ollama server.")] = False,
    push: Annotated[bool, typer.Option("--push", help="Create every tag, then push all tags.")] = False,
    host: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The Ollama server.", show_default="OLLAMA_HOST, else 127.0.0.1:11434"),
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Push to a registry without TLS.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; write nothing, call no server.")] = False,
    force: ForceOption = False,
) -> None:
    """Write Modelfiles and publish a GGUF on Ollama.

    The command converts the chat template to Ollama's language only if both render the same text. Otherwise the
    Modelfile has no template, and requires an Ollama version that renders the GGUF's own.

    Example: quantkit ollama NAME-GGUF --name NS/MODEL --push
    """
    if check is not None:
        _check(check, out)
        return
    recipe = read_ollama(recipe_file) if recipe_file else None
    layers, room = read_num_gpu(num_gpu, vram)
    overrides = read_overrides(
        [*(parameters or ()), *(short_parameters or ())], ctx, layers, system, license_, messages, chat_template
    )
    if recipe is not None:
        overrides = overrides.over(recipe.overrides)
    server = Server(parse_host(host or os.environ.get("OLLAMA_HOST"))) if create or push else None
    plan, facts, folder = _planned(models or [], plan_file, recipe, name, default, size, output, out)
    if push and plan.name.namespace is None:
        raise UsageError(f"--push needs a namespace; write --name NAMESPACE/{plan.name}")
    items = []
    for each, model in zip(plan.quantizations, facts, strict=True):
        sources = [_from(file, folder) for file in model.files]
        make = partial(make_bundle, model, sources=sources, base=plan.name.tagged(each.tags[0]))
        bundle = make(overrides)
        if room is not None:
            bundle = make(with_layers(overrides, bundle, model, room, out))
        items.append(Item(each, model, bundle))
    texts = _texts(items)
    if plan_file is None:
        texts[FILE_NAME] = write_plan(plan)
    _show(plan, items, out)
    document = _document(plan, items, dry_run)
    if not dry_run:
        document["written"] = [str(path) for path in _write(folder, texts, force)]
        out.say(f"\nwrote {', '.join(texts)} in {folder}")
    if server is not None and not dry_run:
        document["created"] = _create(server, plan, items, out)
        if push:
            document["pushed"] = _push(server, plan, insecure, out)
    out.document(document)


def _check(path: Path, out: Out) -> None:
    try:
        findings = lint_modelfile(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ModelfileError(
            f"{path} is not UTF-8 text (byte {error.start}); Ollama would not read it as meant"
        ) from error
    out.document(
        {
            "command": "ollama",
            "check": str(path),
            "findings": [{"line": each.line, "severity": each.severity, "message": each.message} for each in findings],
        }
    )
    for each in findings:
        out.say(f"{path}:{each.line}: {each.severity}: {each.message}")
    if findings:
        count = len(findings)
        raise ModelfileError(f"{path} has {count} {'finding' if count == 1 else 'findings'}")
    out.note(f"{path}: nothing to find fault with")


def _planned(
    models: list[Path],
    plan_file: Path | None,
    recipe: OllamaRecipe | None,
    name: str | None,
    default: str | None,
    size: str | None,
    output: Path | None,
    out: Out,
) -> tuple[TagPlan, list[Facts], Path]:
    """The plan, the facts of each of its files in the same order, and the folder to write to."""
    if plan_file is not None:
        for option, value in (("MODEL", models), ("--name", name), ("--default", default), ("--size", size)):
            if value:
                raise UsageError(f"{option} is in the plan {plan_file} already; edit it there")
        plan = read_plan(plan_file)
        facts = [facts_of_gguf(plan_file.parent / each.files[0]) for each in plan.quantizations]
        return plan, facts, output or plan_file.parent
    if not models:
        raise UsageError("no GGUF was named; write quantkit ollama MODEL.gguf --name NAMESPACE/MODEL")
    if name is None and recipe is None:
        raise UsageError("--name NAMESPACE/MODEL is missing; it is what the model is published under")
    parsed = parse_name(name) if name is not None else None
    found: list[Facts] = []
    for path in models:
        if path.is_dir():
            more, notes = facts_of_folder(path)
            found += more
            for note in notes:
                out.warn(note)
        else:
            found.append(facts_of_gguf(path))
    found = list({each.files[0].resolve(): each for each in found}.values())
    folder = output or found[0].files[0].parent
    if size is not None:
        parse_name(f"model:{size}")
    elif recipe is not None and recipe.size:
        size = recipe.size
    if parsed is None:
        assert recipe is not None
        parsed = recipe.name
    sizes = dict.fromkeys(size_tag(each.size_label) for each in found)
    if size is None and parsed.tag is None and len(sizes) > 1:
        said = ", ".join(f"{each.files[0].name} ({each.size_label or 'none'})" for each in found)
        raise UsageError(f"the files are of several sizes: {said}; publish them one by one, or give --size")
    pairs = [(each.type, tuple(_relative(file, folder) for file in each.files)) for each in found]
    plan = plan_tags(
        parsed, pairs, size=size or next(iter(sizes)), default=file_type(default).name if default else None
    )
    by_type = {each.type: each for each in found}
    return plan, [by_type[each.type] for each in plan.quantizations], folder


def _relative(file: Path, folder: Path) -> str:
    return Path(os.path.relpath(file.resolve(), folder.resolve())).as_posix()


def _from(file: Path, folder: Path) -> str:
    """A path that FROM cannot take for a model's name."""
    path = _relative(file, folder)
    return path if path.startswith("../") else f"./{path}"


def _texts(items: list[Item]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for item in items:
        texts[item.plan.modelfile] = write_modelfile(item.bundle.modelfile)
        if item.plan.gpu_tags:
            texts[item.plan.gpu_modelfile] = write_modelfile(item.bundle.gpu)
    return texts


def _write(folder: Path, texts: dict[str, str], force: bool) -> list[Path]:
    """The files; one of another content is only replaced with --force, so that a hand-edited one is not lost."""
    paths = {folder / name: text.encode() for name, text in texts.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, data in paths.items():
            if not force and path.exists() and path.read_bytes() != data:
                raise OutputError(
                    f"{path} is there already and says something else; replace it with --force, or write elsewhere"
                    " with -o" + (f", or use it with --plan {path}" if path.name == FILE_NAME else "")
                )
        for path, data in paths.items():
            write_atomically(path, data)
    except OSError as error:
        raise OutputError(f"cannot write in {folder}: {error.strerror or error}") from error
    return list(paths)


def _show(plan: TagPlan, items: list[Item], out: Out) -> None:
    rows = [
        (plan.name.tagged(tag), item.plan.type, of, item.plan.gpu_modelfile if gpu else item.plan.modelfile)
        for item in items
        for tags, gpu in ((item.plan.tags, False), (item.plan.gpu_tags, True))
        for tag, of in ((tag, "" if tag == tags[0] else f"= {tags[0]}") for tag in tags)
    ]
    out.table((("tag", "left"), ("type", "left"), ("same as", "left"), ("from", "left")), rows)
    for bundle in {item.bundle.reason: item.bundle for item in items}.values():
        if bundle.template == "refused":
            out.warn(
                f"no TEMPLATE on any tag, Ollama {bundle.modelfile.requires} or later is needed:"
                f" the GGUF's chat template cannot be said exactly in Ollama's language:"
                f" {bundle.reason or ''}"
            )
    for note in dict.fromkeys(note for item in items for note in item.bundle.notes):
        out.note(note)


def _document(plan: TagPlan, items: list[Item], dry_run: bool) -> dict[str, object]:
    def described(bundle: Bundle) -> dict[str, object]:
        return {
            "template": bundle.template,
            "template_reason": bundle.reason,
            "requires": bundle.modelfile.requires,
            "parameters": [[key, value] for key, value in bundle.modelfile.parameters],
            "notes": list(bundle.notes),
        }

    return {
        "command": "ollama",
        "name": str(plan.name),
        "dry_run": dry_run,
        "quantizations": [
            {
                "type": item.plan.type,
                "files": list(item.plan.files),
                "tags": list(item.plan.tags),
                "gpu_tags": list(item.plan.gpu_tags),
                "modelfile": item.plan.modelfile,
                "gpu_modelfile": item.plan.gpu_modelfile or None,
                **described(item.bundle),
            }
            for item in items
        ],
    }


def _create(server: Server, plan: TagPlan, items: list[Item], out: Out) -> list[str]:
    version = server.version()
    out.note(f"Ollama {version} at {server.url}")
    if any(item.bundle.template == "refused" for item in items) and _older(version):
        out.warn(
            f"this server is Ollama {version}, which ignores the GGUF's own template; it can make and push the tags"
        )
    with out.progress() as progress:
        made = create_all(server, plan, items, progress)
    for tag in made.tags:
        out.say(f"made {tag}")
    kept = f", {human_bytes(made.kept)} were there already" if made.kept else ""
    out.note(f"sent {human_bytes(made.sent)}{kept}")
    return made.tags


def _push(server: Server, plan: TagPlan, insecure: bool, out: Out) -> list[str]:
    with out.progress() as progress:
        tags = push_all(server, plan, insecure=insecure, progress=progress)
    for tag in tags:
        out.say(f"pushed {tag}")
    return tags


def _older(version: str) -> bool:
    parts = version.split("-")[0].split(".")
    return all(part.isdigit() for part in parts[:2]) and tuple(map(int, parts[:2])) < (0, 30)
