"""`quantkit bake`: run recipes, here or on a Ray cluster."""

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from quantkit.cli.bake_summary import BakeProgress, baked_document, planned_document, show_baked, show_plans
from quantkit.cli.conversion_options import DeviceOption, MaxRamOption, ThreadsOption
from quantkit.cli.options import DryRunOption, ForceOption, OfflineOption, output_option
from quantkit.cli.output import Out
from quantkit.errors import QuantkitError, UsageError, VerificationError
from quantkit.files import user_path
from quantkit.recipes import Recipe, read_recipe
from quantkit.recipes.bake.commands import Machine
from quantkit.recipes.bake.dry_run import plan_bake
from quantkit.recipes.bake.process import failure
from quantkit.recipes.bake.ray_cluster import bake_on_ray
from quantkit.recipes.bake.result import STEPS, Options
from quantkit.recipes.bake.run import bake as bake_recipe

Document = dict[str, Any]
Failure = tuple[str, QuantkitError]
StepName = StrEnum("StepName", {name: name for name in STEPS})  # type: ignore[misc]


def bake(
    out: Out,
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE...", help="Recipe files.", show_default=False)],
    output: Annotated[Path, output_option("DIR", "Folder of the outputs.", "here")] = Path(),
    only: Annotated[
        list[StepName] | None,
        typer.Option("--only", metavar="STEP", help=f"Run only this step: {', '.join(STEPS)}; repeatable."),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="A folder or hub id, used instead of the recipe's.", show_default=False),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key: calibration.samples=8; repeatable."),
    ] = None,
    push: Annotated[
        bool, typer.Option("--push", help="Push to the repositories of [hub] if all floors are met.")
    ] = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    max_ram: MaxRamOption = None,
    dry_run: DryRunOption = False,
    force: ForceOption = False,
    ray: Annotated[
        str | None,
        typer.Option("--ray", metavar="local|ADDRESS", help="Distribute the recipes over a Ray cluster."),
    ] = None,
    offline: OfflineOption = False,
) -> None:
    """Run a recipe: convert, measure, card and publish one model.

    Each step is a quantkit command in a process of its own. DIR/NAME.bake.journal records the finished steps. The same
    command resumes a killed bake. After a change of the recipe it repeats only the steps that depend on the change;
    --force repeats every step. If a floor is not met, the exit code is 3 and nothing is pushed.

    Example: quantkit bake recipes/smollm2.toml -o out
    """
    overrides = [*(settings or ()), *([f"model.source={json.dumps(_absolute(source))}"] if source is not None else ())]
    opened = [read_recipe(path, overrides) for path in recipes]
    _require_unique_names(opened)
    steps = tuple(str(step) for step in only or ())
    if "push" in steps and not push:
        raise UsageError("--only push needs --push; pass both")
    machine = Machine(threads, None if device == "auto" else device, max_ram, offline)
    if dry_run:
        folder, progress = output.absolute(), BakeProgress(out)
        plans = [plan_bake(recipe, folder, steps or STEPS, machine, progress, out.warn) for recipe in opened]
        show_plans(plans, out)
        out.document({"command": "bake", "dry_run": True, "recipes": [planned_document(plan) for plan in plans]})
        return
    options = Options(output, steps, push, force, machine)
    if ray is None:
        baked, failed = _bake_here(opened, options, out)
    else:
        words = [*_words(options), *(word for setting in overrides for word in ("--set", setting))]
        baked, failed = _bake_on_ray(opened, words, ray, threads, out)
    for document in baked:
        show_baked(document, out)
    failures = [{"name": name, "error": str(error)} for name, error in failed]
    out.document({"command": "bake", "dry_run": False, "recipes": baked, "failed": failures})
    if failed:
        name, error = failed[0]
        more = f" ({len(failed)} recipes failed)" if len(failed) > 1 else ""
        raise type(error)(f"{name}: {error}{more}" if len(opened) > 1 else str(error)) from error
    broken = [reason for document in baked for reason in document["floors_not_met"]]
    if broken:
        raise VerificationError(f"floors are not met: {'; '.join(broken)}")


def _bake_here(recipes: Sequence[Recipe], options: Options, out: Out) -> tuple[list[Document], list[Failure]]:
    """Bake one recipe after the other; the documents, and the errors by recipe."""
    baked: list[Document] = []
    failed: list[Failure] = []
    for recipe in recipes:
        try:
            baked.append(baked_document(bake_recipe(recipe, options, BakeProgress(out, recipe.name), out.warn)))
        except QuantkitError as error:
            failed.append((recipe.name, error))
            if len(recipes) > 1:
                out.warn(f"{recipe.name}: {error}")
    return baked, failed


def _bake_on_ray(
    recipes: Sequence[Recipe], words: Sequence[str], address: str, threads: int | None, out: Out
) -> tuple[list[Document], list[Failure]]:
    """Bake each recipe on a worker of a Ray cluster; the documents, and the errors by recipe."""
    baked: list[Document] = []
    failed: list[Failure] = []
    paths = [recipe.opened.path for recipe in recipes]
    for recipe, done in zip(
        recipes, bake_on_ray(paths, words, address, threads, BakeProgress(out, indent="")), strict=True
    ):
        documents = json.loads(done.ended.answer)["recipes"] if done.ended.answer else []
        baked += documents
        # a floor that is not met is an exit code too, but the document reports it
        if done.ended.code and not (documents and documents[0]["floors_not_met"]):
            error = failure("bake", done.ended.code, done.ended.sentences)
            if not isinstance(error, QuantkitError):
                raise error
            failed.append((recipe.name, error))
            out.warn(f"{recipe.name}: {error}")
    return baked, failed


def _words(options: Options) -> list[str]:
    """The options as words of a command line for a worker."""
    machine = options.machine
    words = ["-o", str(options.output.absolute()), *(word for step in options.only for word in ("--only", step))]
    words += ["--push"] if options.push else []
    words += ["--force"] if options.force else []
    words += ["--device", machine.device] if machine.device else []
    words += ["--max-ram", machine.max_ram] if machine.max_ram else []
    return words + (["--offline"] if machine.offline else [])


def _absolute(source: str) -> str:
    """A folder as an absolute path, a hub id as it is."""
    path = user_path(source)
    return str(path.absolute()) if path.is_dir() else source


def _require_unique_names(recipes: Sequence[Recipe]) -> None:
    """Raise UsageError for two recipes that would write the same files."""
    names = [recipe.name for recipe in recipes]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        both = " and ".join(str(recipe.opened.path) for recipe in recipes if recipe.name == repeated)
        raise UsageError(f"{both} both name their model {repeated} and would write the same files; rename one of them")
