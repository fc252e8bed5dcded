"""`quantkit ollama`: write Modelfiles and plan the tags of a GGUF; create and push them with --create and --push."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.cli import ollama_options as options
from quantkit.cli.options import (
    ChatTemplateOption,
    ContextOption,
    DryRunOption,
    ForceOption,
    ParameterOption,
    SystemOption,
)
from quantkit.cli.output import Out
from quantkit.errors import ModelfileError, UsageError
from quantkit.units import human_bytes

if TYPE_CHECKING:
    from quantkit.publish.ollama.publication import Publication
    from quantkit.recipes.ollama import OllamaRecipe


def ollama(
    out: Out,
    models: options.ModelsArg = None,
    name: options.NameOption = None,
    output: options.OutputOption = None,
    default: options.DefaultOption = None,
    size: options.SizeOption = None,
    plan_file: options.PlanOption = None,
    recipe_file: options.RecipeOption = None,
    parameters: ParameterOption = None,
    ctx: ContextOption = None,
    gpu_layers: options.GpuLayersOption = None,
    vram: options.VramOption = None,
    system: SystemOption = None,
    license_: options.LicenseOption = None,
    messages: options.MessageOption = None,
    chat_template: ChatTemplateOption = None,
    mmproj: options.MmprojOption = None,
    adapter: options.AdapterOption = None,
    check: options.CheckOption = None,
    create: options.CreateOption = False,
    push: options.PushOption = False,
    host: options.HostOption = None,
    insecure: options.InsecureOption = False,
    dry_run: DryRunOption = False,
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
    from quantkit.cli.ollama_tables import document, show_notes, show_plan
    from quantkit.publish.ollama.plan_file import FILE_NAME, write_plan
    from quantkit.publish.ollama.publication import (
        foresee,
        make_items,
        modelfile_texts,
        needs_index,
        read_publication,
        write_texts,
    )
    from quantkit.publish.ollama.push import create_all, push_all
    from quantkit.publish.ollama.server import Server, parse_host
    from quantkit.publish.ollama.template_index import local_program, read_index
    from quantkit.recipes.ollama import read_ollama

    recipe = read_ollama(recipe_file) if recipe_file else None
    layers, gpu_memory = options.read_gpu_layers(gpu_layers, vram)
    overrides = options.read_overrides(parameters, ctx, layers, system, license_, messages, chat_template)
    if recipe is not None:
        overrides = overrides.over(recipe.overrides)
    server = Server(parse_host(host or os.environ.get("OLLAMA_HOST"))) if create or push else None
    if plan_file is not None:
        for option, value in (("MODEL", models), ("--name", name), ("--default", default), ("--size", size)):
            if value:
                raise UsageError(f"{option} is in the plan {plan_file} already; edit it there")
        publication = read_publication(plan_file, output)
    else:
        publication = _publication(models or [], recipe, name, default, size, output, out)
    if push and publication.plan.name.namespace is None:
        raise UsageError(f"--push needs a namespace; write --name NAMESPACE/{publication.plan.name}")
    sees, projector = mmproj != options.NONE, Path(mmproj) if mmproj not in (None, options.NONE) else None
    items = make_items(publication, overrides, vram=gpu_memory, mmproj=projector, sees=sees, adapter=adapter)
    program = local_program() if needs_index(items) else None
    index = read_index(program) if program else None
    items = foresee(items, index or ())
    texts, left_out = modelfile_texts(items, over_http=server is not None)
    if plan_file is None:
        texts[FILE_NAME] = write_plan(publication.plan)
    show_plan(publication.plan, items, out)
    show_notes(items, out, vram=gpu_memory, index_read=index is not None)
    for note in left_out:
        out.warn(note)
    result = document(publication.plan, items, dry_run)
    if not dry_run:
        result["written"] = [str(path) for path in write_texts(publication.folder, texts, force=force)]
        out.say(f"\nwrote {', '.join(texts)} in {publication.folder}")
    if server is not None and not dry_run:
        out.note(f"Ollama {server.version()} at {server.url}")
        with out.progress() as progress:
            created = create_all(server, publication.plan, items, progress)
        for note in created.notes:
            out.warn(note)
        for tag in created.tags:
            out.say(f"made {tag}")
        kept = f", {human_bytes(created.kept)} were there already" if created.kept else ""
        out.note(f"sent {human_bytes(created.sent)}{kept}")
        result["created"] = created.tags
        if push:
            with out.progress() as progress:
                result["pushed"] = push_all(server, publication.plan, insecure=insecure, progress=progress)
            for tag in result["pushed"]:
                out.say(f"pushed {tag}")
    out.document(result)


def _publication(
    models: list[Path],
    recipe: "OllamaRecipe | None",
    name: str | None,
    default: str | None,
    size: str | None,
    output: Path | None,
    out: Out,
) -> "Publication":
    """The publication that the command line describes, with the recipe's name and size where an option is absent."""
    from quantkit.publish.ollama.publication import plan_publication, read_models
    from quantkit.publish.ollama.tags import parse_name

    if not models:
        raise UsageError("no GGUF was named; write quantkit ollama MODEL.gguf --name NAMESPACE/MODEL")
    if name is None and recipe is None:
        raise UsageError("--name NAMESPACE/MODEL is missing; it is what the model is published under")
    parsed = parse_name(name) if name is not None else None
    facts, notes = read_models(models)
    for note in notes:
        out.warn(note)
    if size is not None:
        parse_name(f"model:{size}")
    elif recipe is not None:
        size = recipe.size or None
    if parsed is None:
        assert recipe is not None
        parsed = recipe.name
    return plan_publication(facts, parsed, size=size, default=default, folder=output)


def _check(path: Path, out: Out) -> None:
    from quantkit.publish.ollama.lint import lint_file

    findings = lint_file(path)
    out.document(
        {
            "command": "ollama",
            "check": str(path),
            "findings": [
                {"line": finding.line, "severity": finding.severity, "message": finding.message} for finding in findings
            ],
        }
    )
    for finding in findings:
        out.say(f"{path}:{finding.line}: {finding.severity}: {finding.message}")
    if findings:
        count = len(findings)
        raise ModelfileError(f"{path} has {count} {'finding' if count == 1 else 'findings'}")
    out.note(f"{path}: no findings")
