"""`quantkit bake`: from a recipe to everything a careful publisher makes of a model."""

import json
import shlex
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from quantkit.baking.commands import Machine, output_of, report_folder
from quantkit.baking.driver import STEPS, Baked, Hooks, Options
from quantkit.baking.driver import bake as bake_recipe
from quantkit.baking.outlook import Outlook, look_ahead
from quantkit.baking.process import Told
from quantkit.cli.calibration_options import DeviceOption, MaxRamOption, OfflineOption, ThreadsOption
from quantkit.cli.options import DebugOption, Format, FormatOption
from quantkit.cli.output import Out, human_bytes, printable
from quantkit.errors import QuantkitError, UsageError, VerificationError
from quantkit.recipes import Recipe, read_recipe

StepName = StrEnum("StepName", {name: name for name in STEPS})  # type: ignore[misc]


def bake(
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE...", help="Recipe files.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where everything is made.", show_default="here")
    ] = Path(),
    only: Annotated[
        list[StepName] | None,
        typer.Option("--only", metavar="STEP", help=f"Only this step: {', '.join(STEPS)}. Repeat."),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="A folder or hub id in place of the recipe's source.", show_default=False),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another value for a key: calibration.samples=8. Repeat."),
    ] = None,
    push: Annotated[bool, typer.Option("--push", help="Push to the repositories of [hub], if floors are met.")] = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    max_ram: MaxRamOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the commands, disk and memory; read no weights, write nothing.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Do every step again, over whatever stands there.")
    ] = False,
    offline: OfflineOption = False,
    format_: FormatOption = Format.human,
    debug: DebugOption = False,
) -> None:
    """Bake a model by its recipe: convert to every format, measure, Modelfiles, model cards, phone script.

    Each step is a quantkit command in a process of its own. What is done is noted in DIR/NAME.bake.journal: the same
    command goes on where a killed one was, and after a change to the recipe redoes only what that touches. Floors that
    are not met exit 3, after everything is written, and nothing is pushed.

    Example: quantkit bake recipes/smollm2.toml -o out
    """
    del debug
    out = Out(format_)
    over = [*(settings or ()), *([f"model.source={json.dumps(_rooted(source))}"] if source is not None else ())]
    read = [read_recipe(path, over) for path in recipes]
    _check_names(read)
    steps = tuple(str(step) for step in only or ())
    if "push" in steps and not push:
        raise UsageError("--only push says what, --push says that it is meant; write both")
    machine = Machine(threads, None if device == "auto" else device, max_ram, offline)
    if dry_run:
        _dry_run(read, output, steps or STEPS, machine, out)
        return
    options = Options(output, steps, push, force, machine)
    baked: list[Baked] = []
    failed: list[tuple[Recipe, QuantkitError]] = []
    for recipe in read:
        hooks = Hooks(
            stage=lambda text, name=recipe.name: out.note(f"{name}: {text}", style="bold"),  # type: ignore[misc]
            told=Told(note=lambda text: out.note(f"  {text}"), warn=out.warn),
        )
        try:
            baked.append(bake_recipe(recipe, options, hooks))
        except QuantkitError as error:
            if len(read) == 1:
                raise
            failed.append((recipe, error))
            out.warn(f"{recipe.name}: {error}")
    for each in baked:
        _show(each, out)
    out.document(
        {
            "command": "bake",
            "dry_run": False,
            "recipes": [_document(each) for each in baked],
            "failed": [{"name": recipe.name, "error": str(error)} for recipe, error in failed],
        }
    )
    _raise(baked, failed)


def _rooted(source: str) -> str:
    """A folder by a path that says that it is one."""
    return str(Path(source).expanduser().absolute()) if Path(source).expanduser().is_dir() else source


def _check_names(read: Sequence[Recipe]) -> None:
    names = [recipe.name for recipe in read]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        both = " and ".join(str(recipe.opened.path) for recipe in read if recipe.name == twice)
        raise UsageError(f"{both} both name their model {twice}, and would write the same files")


def _raise(baked: Sequence[Baked], failed: Sequence[tuple[Recipe, QuantkitError]]) -> None:
    if failed:
        recipe, error = failed[0]
        more = f" ({len(failed)} recipes failed)" if len(failed) > 1 else ""
        raise type(error)(f"{recipe.name}: {error}{more}")
    broken = [reason for each in baked for reason in each.broken]
    if broken:
        raise VerificationError(f"floors are not met: {'; '.join(broken)}")


def _dry_run(read: Sequence[Recipe], output: Path, steps: Sequence[str], machine: Machine, out: Out) -> None:
    told = Told(note=lambda text: out.note(f"  {text}"), warn=out.warn)
    found = [look_ahead(recipe, output.absolute(), steps, machine, told) for recipe in read]
    for each in found:
        for step, words in each.commands:
            out.say(f"{step}: quantkit {printable(shlex.join(words))}")
        if each.sizes:
            sizes = ", ".join(f"{name} {human_bytes(size)}" for name, size in each.sizes.items())
            out.say(
                f"{each.recipe.name}: {sizes}; {human_bytes(each.disk)} of disk, about {human_bytes(each.memory)} of"
                " memory"
            )
    out.say("dry run: nothing was written")
    out.document({"command": "bake", "dry_run": True, "recipes": [_planned(each) for each in found]})


def _planned(outlook: Outlook) -> dict[str, Any]:
    return {
        "name": outlook.recipe.name,
        "commands": [{"step": step, "words": ["quantkit", *words]} for step, words in outlook.commands],
        "bytes": outlook.sizes,
        "disk_bytes": outlook.disk,
        "expected_peak_memory_bytes": outlook.memory,
    }


def _show(baked: Baked, out: Out) -> None:
    recipe = baked.recipe
    rows = []
    for each in _outputs(baked):
        quality = each.get("quality") or {}
        ratio, kl = quality.get("perplexity_ratio"), quality.get("kl")
        rows.append(
            [
                each["format"],
                human_bytes(each["bytes"]),
                f"{100 * (ratio['value'] - 1):+.1f} ± {100 * ratio['error']:.1f}%" if ratio else "",
                f"{kl['mean']:.3g} ± {kl['error']:.1g}" if kl else "",
                str(Path(each["path"]).relative_to(baked.folder)),
            ]
        )
    headers = [("format", "left"), ("size", "right"), ("perplexity", "right"), ("KL", "right"), ("where", "left")]
    out.table(headers, rows, title=f"{recipe.name} in {_shown(baked.folder)}")
    for step in baked.steps:
        peak = f", peak memory {human_bytes(step.peak_memory)}" if step.peak_memory else ""
        time = f", {'was ' if step.state == 'kept' else ''}made in {step.seconds:.1f} s{peak}" if step.seconds else ""
        out.say(f"{step.name}: {step.state}{time}{f' ({printable(step.why)})' if step.why else ''}")
    if baked.report is not None:
        out.say(f"report: {_shown(report_folder(recipe, baked.folder) / 'report.md')}")
    for reason in baked.broken:
        out.say(f"floor not met: {reason}")


def _shown(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _document(baked: Baked) -> dict[str, Any]:
    return {
        "name": baked.recipe.name,
        "source": baked.recipe.source,
        "folder": str(baked.folder),
        "steps": [
            {
                "step": step.name,
                "state": step.state,
                "why": step.why or None,
                "commands": [["quantkit", *words] for words in step.commands],
                "seconds": round(step.seconds, 3),
                "peak_memory_bytes": step.peak_memory or None,
            }
            for step in baked.steps
        ],
        "outputs": _outputs(baked),
        "report": str(report_folder(baked.recipe, baked.folder)) if baked.report is not None else None,
        "floors_not_met": list(baked.broken),
        "pushed": list(baked.pushed),
    }


def _outputs(baked: Baked) -> list[dict[str, Any]]:
    """Each format that is there: its bytes, the sha256 of its files, what it measured at on the first text."""
    found = []
    models = {model["path"]: model for model in (baked.report or {}).get("models", [])[1:]}
    for name in baked.recipe.formats.names:
        path = output_of(baked.recipe, baked.folder, name)
        if not path.exists():
            continue
        quality = models.get(path.name, {}).get("quality") or [None]
        files = _recorded(path)
        found.append(
            {
                "format": name,
                "path": str(path),
                "bytes": sum(file["bytes"] for file in files.values()) if files else _size(path),
                "sha256": {file: about["sha256"] for file, about in files.items()},
                "quality": quality[0],
            }
        )
    return found


def _recorded(path: Path) -> dict[str, dict[str, Any]]:
    """The files of an output, as quantkit.json has them."""
    record, key = (path / "quantkit.json", path.name) if path.is_dir() else (path.parent / "quantkit.json", path.stem)
    try:
        found: dict[str, dict[str, Any]] = json.loads(record.read_text("utf-8"))["outputs"][key]["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*.safetensors")) if path.is_dir() else path.stat().st_size
