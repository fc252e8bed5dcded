"""`quantkit bake`: run recipes, here or on a Ray cluster."""

import json
from pathlib import Path
from typing import Annotated

import typer

from quantkit.cli.conversion_options import DeviceOption, MaxRamOption, ThreadsOption
from quantkit.cli.options import DryRunOption, ForceOption, OfflineOption, output_option
from quantkit.cli.output import Out
from quantkit.errors import UsageError, VerificationError
from quantkit.files import user_path
from quantkit.recipes.bake.result import STEPS
from quantkit.system.python import StrEnum

StepName = StrEnum("StepName", {name: name for name in STEPS})  # type: ignore[misc]


def bake(
    out: Out,
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE...", help="Recipe files.", show_default=False)],
    output: Annotated[Path, output_option("DIR", "Folder of the outputs.", "here")] = Path(),
    only: Annotated[
        list[StepName] | None,
        typer.Option("--only", metavar="STEP", help=f"Run only this step: {', '.join(STEPS)}; repeat."),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="A folder or hub id, used instead of the recipe's.", show_default=False),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key: calibration.samples=8; repeat."),
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

    Each step is a quantkit command in a separate process. DIR/NAME.bake.journal records the finished steps. The same
    command resumes a killed bake. After a change of the recipe it repeats only the steps that depend on the change;
    --force repeats every step. If a floor is not met, the exit code is 3 and nothing is pushed.

    Example: quantkit bake recipes/smollm2.toml -o out
    """
    from quantkit.cli.bake_summary import BakeProgress, planned_document, show_baked, show_plans
    from quantkit.recipes import read_recipe
    from quantkit.recipes.bake.commands import Machine
    from quantkit.recipes.bake.dry_run import plan_bake
    from quantkit.recipes.bake.result import Options
    from quantkit.recipes.bake.several import bake_in_turn, bake_on_cluster, require_unique_names

    source = None if source is None else _absolute(source)
    opened = [read_recipe(path, settings or (), source) for path in recipes]
    require_unique_names(opened)
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
        bakes = bake_in_turn(opened, options, BakeProgress(out), out.warn)
    else:
        overrides = [*(settings or ()), *([f"model.source={json.dumps(source)}"] if source is not None else ())]
        bakes = bake_on_cluster(opened, options, overrides, ray, BakeProgress(out, indent=""), out.warn)
    for document in bakes.documents:
        show_baked(document, out)
    failed = [{"name": name, "error": str(error)} for name, error in bakes.errors]
    out.document({"command": "bake", "dry_run": False, "recipes": list(bakes.documents), "failed": failed})
    bakes.raise_first()
    if bakes.broken_floors:
        raise VerificationError(f"floors are not met: {'; '.join(bakes.broken_floors)}")


def _absolute(source: str) -> str:
    """A folder as an absolute path, a hub id as it is."""
    path = user_path(source)
    return str(path.absolute()) if path.is_dir() else source
