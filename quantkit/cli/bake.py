"""`quantkit bake`: from a recipe to everything a careful publisher makes of a model."""

import json
import shlex
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from quantkit.cli.bake_summary import baked_document, show_baked
from quantkit.cli.conversion_options import DeviceOption, MaxRamOption, OfflineOption, ThreadsOption
from quantkit.cli.output import Out, human_bytes
from quantkit.errors import QuantkitError, UsageError, VerificationError
from quantkit.files import user_path
from quantkit.recipes import Recipe, read_recipe
from quantkit.recipes.bake.commands import Machine
from quantkit.recipes.bake.dry_run import BakePlan, plan_bake
from quantkit.recipes.bake.process import Messages, failure
from quantkit.recipes.bake.ray_cluster import bake_on_ray
from quantkit.recipes.bake.run import STEPS, Hooks, Options
from quantkit.recipes.bake.run import bake as bake_recipe

Document = dict[str, Any]
Failure = tuple[str, QuantkitError]
StepName = StrEnum("StepName", {name: name for name in STEPS})  # type: ignore[misc]


def bake(
    out: Out,
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE...", help="Recipe files.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of the outputs.", show_default="here")
    ] = Path(),
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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the commands, disk and memory; read no weights, write nothing.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Repeat every step and overwrite existing outputs.")
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option("--ray", metavar="local|ADDRESS", help="Distribute the recipes over a Ray cluster."),
    ] = None,
    offline: OfflineOption = False,
) -> None:
    """Run a recipe: convert, measure, card and publish one model.

    Each step is a quantkit command in a process of its own. What is done is noted in DIR/NAME.bake.journal: the same
    command goes on where a killed one was, and after a change to the recipe redoes only what that touches. Floors that
    are not met exit 3, after everything is written, and nothing is pushed.

    Example: quantkit bake recipes/smollm2.toml -o out
    """
    over = [*(settings or ()), *([f"model.source={json.dumps(_rooted(source))}"] if source is not None else ())]
    read = [read_recipe(path, over) for path in recipes]
    _check_names(read)
    steps = tuple(str(step) for step in only or ())
    if "push" in steps and not push:
        raise UsageError("--only push needs --push too; give both")
    machine = Machine(threads, None if device == "auto" else device, max_ram, offline)
    if dry_run:
        _dry_run(read, output, steps or STEPS, machine, out)
        return
    options = Options(output, steps, push, force, machine)
    if ray is None:
        baked, failed = _bake_here(read, options, out)
    else:
        words = [*_words(options), *(word for each in over for word in ("--set", each))]
        baked, failed = _bake_on_ray(read, words, ray, threads, out)
    for each in baked:
        show_baked(each, out)
    failures = [{"name": name, "error": str(error)} for name, error in failed]
    out.document({"command": "bake", "dry_run": False, "recipes": baked, "failed": failures})
    if failed:
        name, error = failed[0]
        more = f" ({len(failed)} recipes failed)" if len(failed) > 1 else ""
        raise type(error)(f"{name}: {error}{more}" if len(read) > 1 else str(error)) from error
    broken = [reason for each in baked for reason in each["floors_not_met"]]
    if broken:
        raise VerificationError(f"floors are not met: {'; '.join(broken)}")


def _bake_here(read: Sequence[Recipe], options: Options, out: Out) -> tuple[list[Document], list[Failure]]:
    """One after the other."""
    baked: list[Document] = []
    failed: list[Failure] = []
    for recipe in read:
        hooks = Hooks(
            stage=lambda text, name=recipe.name: out.note(f"{name}: {text}", style="bold"),  # type: ignore[misc]
            messages=Messages(note=lambda text: out.note(f"  {text}"), warn=out.warn),
        )
        try:
            baked.append(baked_document(bake_recipe(recipe, options, hooks)))
        except QuantkitError as error:
            failed.append((recipe.name, error))
            if len(read) > 1:
                out.warn(f"{recipe.name}: {error}")
    return baked, failed


def _bake_on_ray(
    read: Sequence[Recipe], words: Sequence[str], address: str, threads: int | None, out: Out
) -> tuple[list[Document], list[Failure]]:
    """Each where a worker is free."""
    baked: list[Document] = []
    failed: list[Failure] = []
    messages = Messages(note=out.note, warn=out.warn)
    names = [recipe.opened.path for recipe in read]
    for recipe, done in zip(read, bake_on_ray(names, words, address, threads, messages), strict=True):
        documents = json.loads(done.ended.answer)["recipes"] if done.ended.answer else []
        baked += documents
        # floors that are not met are in the document
        if done.ended.code and not (documents and documents[0]["floors_not_met"]):
            error = failure("bake", done.ended.code, done.ended.sentences)
            if not isinstance(error, QuantkitError):
                raise error
            failed.append((recipe.name, error))
            out.warn(f"{recipe.name}: {error}")
    return baked, failed


def _words(options: Options) -> list[str]:
    """The options of a bake elsewhere."""
    machine = options.machine
    words = ["-o", str(options.output.absolute()), *(word for step in options.only for word in ("--only", step))]
    words += ["--push"] if options.push else []
    words += ["--force"] if options.force else []
    words += ["--device", machine.device] if machine.device else []
    words += ["--max-ram", machine.max_ram] if machine.max_ram else []
    return words + (["--offline"] if machine.offline else [])


def _rooted(source: str) -> str:
    """A folder by a path that says that it is one."""
    path = user_path(source)
    return str(path.absolute()) if path.is_dir() else source


def _check_names(read: Sequence[Recipe]) -> None:
    names = [recipe.name for recipe in read]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        both = " and ".join(str(recipe.opened.path) for recipe in read if recipe.name == twice)
        raise UsageError(f"{both} both name their model {twice}, and would write the same files")


def _dry_run(read: Sequence[Recipe], output: Path, steps: Sequence[str], machine: Machine, out: Out) -> None:
    messages = Messages(note=lambda text: out.note(f"  {text}"), warn=out.warn)
    plans = [plan_bake(recipe, output.absolute(), steps, machine, messages) for recipe in read]
    for each in plans:
        for step, words in each.commands:
            out.say(f"{step}: quantkit {shlex.join(words)}")
        if each.sizes:
            sizes = ", ".join(f"{name} {human_bytes(size)}" for name, size in each.sizes.items())
            out.say(
                f"{each.recipe.name}: {sizes}; {human_bytes(each.disk)} of disk, about {human_bytes(each.memory)} of"
                " memory"
            )
    out.say("dry run: nothing was written")
    out.document({"command": "bake", "dry_run": True, "recipes": [_planned(plan) for plan in plans]})


def _planned(plan: BakePlan) -> dict[str, Any]:
    return {
        "name": plan.recipe.name,
        "commands": [{"step": step, "words": ["quantkit", *words]} for step, words in plan.commands],
        "bytes": plan.sizes,
        "disk_bytes": plan.disk,
        "expected_peak_memory_bytes": plan.memory,
    }
