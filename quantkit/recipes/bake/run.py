"""`bake`: a recipe's steps one after the other, each skipped where its outcome is there already.

A kill costs what the command at work loses by one: every command takes up its own work, and the journal knows which
was at work. A changed recipe redoes the steps whose words or inputs changed, and of a conversion only those formats.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantkit.errors import MeasureError, OutputError, UsageError, VerificationError
from quantkit.files import write_atomically
from quantkit.measurement.reading import load_report
from quantkit.recipes.bake.cards import card_model, push, write_cards
from quantkit.recipes.bake.commands import (
    Command,
    Machine,
    convert_commands,
    gguf_folder,
    measure_command,
    ollama_command,
    ollama_files,
    output_of,
    report_folder,
    signature,
    termux_commands,
)
from quantkit.recipes.bake.fingerprint import calibration_files, fingerprint, source_files, text_files, weight_files
from quantkit.recipes.bake.floors import broken_floors
from quantkit.recipes.bake.journal import BakeJournal
from quantkit.recipes.bake.process import Messages, run_command
from quantkit.recipes.ollama import ollama_recipe
from quantkit.recipes.recipe import Recipe
from quantkit.recipes.writing import write_recipe

STEPS = ("convert", "measure", "ollama", "cards", "termux", "push")


@dataclass(frozen=True)
class Options:
    """What is asked of a bake. `only`: steps, all of them where it is empty; push only where `push` says so."""

    output: Path
    only: tuple[str, ...] = ()
    push: bool = False
    force: bool = False
    machine: Machine = field(default_factory=Machine)


@dataclass(frozen=True)
class Step:
    """What became of a step: "done" now, "kept" from before, or "left out", and why. Seconds and bytes of its run."""

    name: str
    state: str
    why: str = ""
    commands: tuple[tuple[str, ...], ...] = ()
    seconds: float = 0.0
    peak_memory: int = 0


@dataclass(frozen=True)
class Baked:
    """A bake that came to its end. `broken`: floors that are not met, in words, for which nothing was pushed."""

    recipe: Recipe
    folder: Path
    steps: tuple[Step, ...]
    report: dict[str, Any] | None
    broken: tuple[str, ...] = ()
    pushed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Hooks:
    """Receivers of a bake's messages. `stage(text)`: a step begins; `messages`: what the step's command prints."""

    stage: Callable[[str], object] = lambda text: None
    messages: Messages = field(default_factory=Messages)


def bake(recipe: Recipe, options: Options, hooks: Hooks) -> Baked:
    """Run the recipe's steps, resuming what was begun.

    Raises:
        OutputError: another bake is at work, or an output stands there that this bake did not make (see `force`).
        VerificationError: an output failed its check, or something is to be pushed that was not measured.
        QuantkitError: a step failed; with the sentence of its command.
    """
    folder = options.output.absolute()
    journal = BakeJournal(folder / f"{recipe.name}.bake.journal")
    try:
        return _Bake(recipe, options, hooks, folder, journal).run()
    finally:
        journal.close()


class _Bake:
    def __init__(self, recipe: Recipe, options: Options, hooks: Hooks, folder: Path, journal: BakeJournal) -> None:
        self.recipe, self.options, self.hooks = recipe, options, hooks
        self.folder, self.journal = folder, journal
        self.effective = folder / f"{recipe.name}.recipe.toml"
        self.steps: list[Step] = []
        self.pushed: list[str] = []

    def run(self) -> Baked:
        asked = self.options.only or tuple(step for step in STEPS if step != "push")
        if self.options.push:
            asked = (*asked, "push")
        text = write_recipe(self.recipe.opened.table)
        if not self.effective.exists() or self.effective.read_text("utf-8") != text:
            write_atomically(self.effective, text)
        work: dict[str, Callable[[], Step]] = {
            "convert": self._convert,
            "measure": self._measure,
            "ollama": self._ollama,
            "cards": self._cards,
            "termux": self._termux,
            "push": self._push,
        }
        for name in STEPS:
            if name in asked:
                self.steps.append(work[name]())
        report = self._report()
        broken = broken_floors(self.recipe, report) if report else []
        return Baked(self.recipe, self.folder, tuple(self.steps), report, tuple(broken), tuple(self.pushed))

    def _convert(self) -> Step:
        recipe, journal = self.recipe, self.journal
        prints = {name: self._convert_print(name) for name in recipe.formats.names}
        todo = [name for name, own in prints.items() if self.options.force or not journal.current(f"{name}", own)]
        for name in [name for name in todo if self._is_complete(name, prints[name])]:
            journal.finish(name, prints[name], weight_files(output_of(recipe, self.folder, name)), {})
            todo.remove(name)
        if not todo:
            return self._kept("convert", recipe.formats.names)
        self._refuse_foreign(todo)
        seconds, peak, lines = 0.0, 0, []
        for command in convert_commands(recipe, todo, self.folder, self.options.machine):
            replacing = any(name in journal.last for name in command.formats) or self.options.force
            for name in command.formats:
                journal.start(name, prints[name], weight_files(output_of(recipe, self.folder, name)))
            line = (*command.line, *(("--force",) if replacing else ()))
            self.hooks.stage(f"converting to {', '.join(command.formats)}")
            done = run_command(line, self.hooks.messages)
            for name in command.formats:
                files = weight_files(output_of(recipe, self.folder, name))
                record = {"seconds": round(done.seconds, 3), "peak_memory_bytes": done.peak_memory}
                journal.finish(name, prints[name], files, record)
            seconds, peak = seconds + done.seconds, max(peak, done.peak_memory)
            lines.append(line)
        return Step("convert", "done", "", tuple(lines), seconds, peak)

    def _convert_print(self, name: str) -> str:
        words = signature(self.recipe, name)
        # the calibration text is no input of what is made without one
        files = [] if words[0] == "gguf" else calibration_files(self.recipe)
        return fingerprint(self.folder, words, [*source_files(self.recipe), *files])

    def _is_complete(self, name: str, own: str) -> bool:
        """Killed between the end of the conversion and the note of it."""
        places = (
            *self.folder.glob(f"{self.recipe.name}*.partial"),
            *gguf_folder(self.recipe, self.folder).glob("*.partial"),
        )
        return not self.options.force and not places and self.journal.complete(name, own)

    def _refuse_foreign(self, names: Sequence[str]) -> None:
        for name in names:
            output = output_of(self.recipe, self.folder, name)
            if not self.options.force and output.exists() and not self.journal.ours(name, weight_files(output)):
                raise OutputError(
                    f"{output} is there already and is not as this bake left it; add --force to replace it, or choose"
                    " another folder with -o"
                )

    def _measure(self) -> Step:
        recipe = self.recipe
        if recipe.measure is None:
            return Step("measure", "left out", "the recipe has no [measure]")
        self._need_outputs("measure")
        command = measure_command(recipe, recipe.formats.names, self.folder, self.options.machine)
        own = self._measure_print(command)
        if not self.options.force and self.journal.current("measure", own):
            return self._kept("measure", ("measure",))
        line = (*command.line, *(("--force",) if "measure" in self.journal.last or self.options.force else ()))
        self.hooks.stage(f"measuring {len(recipe.formats.names)} formats against {recipe.source}")
        reports = [report_folder(recipe, self.folder) / name for name in ("report.json", "report.md")]
        return self._one("measure", own, line, reports)

    def _measure_print(self, command: Command) -> str:
        outputs = [output_of(self.recipe, self.folder, name) for name in self.recipe.formats.names]
        files = [file for output in outputs for file in weight_files(output)]
        return fingerprint(self.folder, command.words, [*files, *source_files(self.recipe), *text_files(self.recipe)])

    def _ollama(self) -> Step:
        recipe = self.recipe
        if recipe.ollama_name is None:
            return Step("ollama", "left out", "the recipe has no [ollama]")
        files = ollama_files(recipe, ollama_recipe(recipe.opened), self.folder)
        if not files:
            return Step("ollama", "left out", "none of [ollama]'s types is made")
        self._need_outputs("ollama", files)
        command = ollama_command(recipe, files, self.effective)
        tables = [recipe.opened.get("model"), recipe.opened.get("ollama")]
        own = fingerprint(self.folder, command.words, files, tables)
        if not self.options.force and self.journal.current("ollama", own):
            return self._kept("ollama", ("ollama",))
        self.hooks.stage("writing Modelfiles")
        return self._one("ollama", own, self._replacing("ollama", command), None)

    def _cards(self) -> Step:
        self._need_outputs("cards")
        recipe, report = self.recipe, self._report()
        outputs = [output_of(recipe, self.folder, name) for name in recipe.formats.names]
        stamped = [*(file for output in outputs for file in weight_files(output))]
        stamped += [report_folder(recipe, self.folder) / "report.json"]
        own = fingerprint(
            self.folder, ["cards"], stamped, [card_model(recipe, kind).__dict__ for kind in ("gguf", "awq", "gptq")]
        )
        if not self.options.force and self.journal.current("cards", own):
            return self._kept("cards", ("cards",))
        self.hooks.stage("writing model cards")
        written = write_cards(recipe, self.folder, report)
        self.journal.finish("cards", own, written, {})
        return Step("cards", "done", ", ".join(str(path.relative_to(self.folder)) for path in written))

    def _termux(self) -> Step:
        if self.recipe.phone is None:
            return Step("termux", "left out", "the recipe has no [phone]")
        made: list[Step] = []
        for command, script in termux_commands(self.recipe, self.folder):
            files = [output_of(self.recipe, self.folder, name) for name in self.recipe.phone.types]
            self._need_outputs("termux", files)
            unit = f"termux {script.name}"
            own = fingerprint(self.folder, command.words, files)
            if not self.options.force and self.journal.current(unit, own):
                made.append(self._kept("termux", (unit,)))
                continue
            self.hooks.stage(f"writing {script.name}")
            made.append(self._one("termux", own, self._replacing(unit, command), [script], unit))
        state = "done" if any(each.state == "done" for each in made) else "kept"
        lines = tuple(line for each in made for line in each.commands)
        seconds, peak = sum(each.seconds for each in made), max((each.peak_memory for each in made), default=0)
        return Step("termux", state, "", lines, seconds, peak)

    def _push(self) -> Step:
        recipe, report = self.recipe, self._report()
        if not recipe.hub:
            raise UsageError(f'{recipe.opened.path} has no [hub] to push to; write gguf = "ORG/NAME-GGUF" there')
        self._need_outputs("push")
        if recipe.measure is not None:
            command = measure_command(recipe, recipe.formats.names, self.folder, self.options.machine)
            if report is None or not self.journal.current("measure", self._measure_print(command)):
                raise VerificationError(
                    f"{recipe.name} was not measured as it is now, so nothing is pushed; bake it with measure first"
                )
            if broken_floors(recipe, report):
                return Step("push", "left out", "floors are not met")
        self.hooks.stage("pushing to the hub")
        self.pushed = push(recipe, self.folder, self.hooks.messages)
        return Step("push", "done", ", ".join(self.pushed))

    def _one(
        self, step: str, own: str, line: tuple[str, ...], files: Sequence[Path] | None, unit: str | None = None
    ) -> Step:
        """One command as one unit; without `files` its document says what was `written`."""
        unit = unit or step
        self.journal.start(unit, own, files or [])
        done = run_command(line, self.hooks.messages)
        written = [Path(path) for path in done.document["written"]] if files is None else files
        record = {"seconds": round(done.seconds, 3), "peak_memory_bytes": done.peak_memory}
        self.journal.finish(unit, own, written, record)
        return Step(step, "done", "", (line,), done.seconds, done.peak_memory)

    def _replacing(self, unit: str, command: Command) -> tuple[str, ...]:
        """With --force over what this bake left and nobody edited since; the rest is the command's to refuse."""
        last = self.journal.last.get(unit)
        left = [self.folder / name for name in (last or {}).get("files", {})]
        ours = last is not None and self.journal.ours(unit, left)
        return (*command.line, *(("--force",) if ours or self.options.force else ()))

    def _kept(self, step: str, units: Sequence[str]) -> Step:
        records = [self.journal.record(unit) for unit in units]
        peak = max((record.get("peak_memory_bytes", 0) for record in records), default=0)
        return Step(
            step, "kept", "nothing changed since", (), max((r.get("seconds", 0.0) for r in records), default=0.0), peak
        )

    def _need_outputs(self, step: str, outputs: Sequence[Path] | None = None) -> None:
        needed = outputs or [output_of(self.recipe, self.folder, name) for name in self.recipe.formats.names]
        missing = next((path for path in needed if not path.exists()), None)
        if missing is not None:
            raise OutputError(f"{step} needs {missing}, which is not there; bake it with convert first")

    def _report(self) -> dict[str, Any] | None:
        """The report, where it is there and this recipe measures."""
        path = report_folder(self.recipe, self.folder) / "report.json"
        if self.recipe.measure is None or not path.exists():
            return None
        try:
            return load_report(path)
        except MeasureError as error:
            raise OutputError(f"{error}, with --only measure --force") from error
