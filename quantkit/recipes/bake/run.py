"""`bake`: run the steps of a recipe in order, and skip each step whose outputs are up to date.

The journal records each started and finished step, and each command resumes its own work: a kill costs no more than a
kill of that command. After a change of the recipe only the steps with changed words or inputs run again; a conversion
repeats only the changed formats.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from quantkit.errors import MeasureError, OutputError, UsageError, VerificationError
from quantkit.files import write_atomically
from quantkit.measurement.reading import load_report
from quantkit.progress import SILENT, Progress
from quantkit.recipes.bake.cards import card_model, push, write_cards
from quantkit.recipes.bake.commands import (
    Command,
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
from quantkit.recipes.bake.dry_run import needs_template, require_template
from quantkit.recipes.bake.fingerprint import calibration_files, fingerprint, source_files, text_files, weight_files
from quantkit.recipes.bake.floors import broken_floors
from quantkit.recipes.bake.journal import BakeJournal
from quantkit.recipes.bake.process import run_command
from quantkit.recipes.bake.result import STEPS, Baked, Options, Step
from quantkit.recipes.ollama import ollama_recipe
from quantkit.recipes.recipe import Recipe
from quantkit.recipes.writing import write_recipe


def bake(
    recipe: Recipe,
    options: Options,
    progress: Progress = SILENT,
    warn: Callable[[str], object] = lambda text: None,
) -> Baked:
    """Run the steps of a recipe; an unfinished step resumes.

    Args:
        progress: a stage for each command; each line that the command prints is an item.
        warn: receives each warning of a command.

    Raises:
        OutputError: another bake of the recipe runs, or an output exists that this bake did not write (see `force`).
        VerificationError: an output failed its check, or an output to push was not measured.
        QuantkitError: a step failed; with the sentence of its command.
    """
    folder = options.output.absolute()
    journal = BakeJournal(folder / f"{recipe.name}.bake.journal")
    try:
        return _Bake(recipe, options, journal, progress, warn).run()
    finally:
        journal.close()


class _Bake:
    """The state of one bake; `effective` is the merged recipe in one file."""

    def __init__(
        self,
        recipe: Recipe,
        options: Options,
        journal: BakeJournal,
        progress: Progress,
        warn: Callable[[str], object],
    ) -> None:
        self.recipe, self.options, self.journal = recipe, options, journal
        self.progress, self.warn = progress, warn
        self.folder = options.output.absolute()
        self.effective = self.folder / f"{recipe.name}.recipe.toml"
        self.chosen = options.only or tuple(step for step in STEPS if step != "push")
        if options.push:
            self.chosen = (*self.chosen, "push")
        self.steps: list[Step] = []
        self.pushed: list[str] = []

    def run(self) -> Baked:
        text = write_recipe(self.recipe.opened.table)
        if not self.effective.exists() or self.effective.read_text("utf-8") != text:
            write_atomically(self.effective, text)
        run: dict[str, Callable[[], Step]] = {
            "convert": self._convert,
            "measure": self._measure,
            "ollama": self._ollama,
            "cards": self._cards,
            "termux": self._termux,
            "push": self._push,
        }
        for name in STEPS:
            if name in self.chosen:
                self.steps.append(run[name]())
        report = self._report()
        broken = broken_floors(self.recipe, report) if report else []
        return Baked(self.recipe, self.folder, tuple(self.steps), report, tuple(broken), tuple(self.pushed))

    def _convert(self) -> Step:
        recipe, journal = self.recipe, self.journal
        inputs = {name: self._convert_inputs(name) for name in recipe.formats.names}
        todo = [name for name in inputs if not self._is_current(name, inputs[name])]
        for name in [name for name in todo if self._is_complete(name, inputs[name])]:
            journal.finish(name, inputs[name], weight_files(output_of(recipe, self.folder, name)), {})
            todo.remove(name)
        if not todo:
            return self._kept("convert", recipe.formats.names)
        self._require_own_outputs(todo)
        commands = convert_commands(recipe, todo, self.folder, self.options.machine)
        gguf = next((command for command in commands if set(command.formats) & {*recipe.formats.gguf}), None)
        if gguf is not None and needs_template(recipe, self.chosen):
            require_template(recipe, run_command((*gguf.line, "--dry-run"), SILENT, lambda text: None).document)
        seconds, peak, lines = 0.0, 0, []
        for command in commands:
            replaced = (*command.formats, *(recipe.formats.gguf if recipe.formats.mmproj else ()))
            # the projector of an earlier conversion is written again
            replacing = any(name in journal.last for name in replaced) or self.options.force
            for name in command.formats:
                journal.start(name, inputs[name], weight_files(output_of(recipe, self.folder, name)))
            line = (*command.line, *(("--force",) if replacing else ()))
            self._stage(f"converting to {', '.join(command.formats)}")
            done = run_command(line, self.progress, self.warn)
            for name in command.formats:
                files = weight_files(output_of(recipe, self.folder, name))
                record = {"seconds": round(done.seconds, 3), "peak_memory_bytes": done.peak_memory}
                journal.finish(name, inputs[name], files, record)
            seconds, peak = seconds + done.seconds, max(peak, done.peak_memory)
            lines.append(line)
        return Step("convert", "done", "", tuple(lines), seconds, peak)

    def _convert_inputs(self, name: str) -> str:
        """The fingerprint of the inputs of one format."""
        words = signature(self.recipe, name)
        # a conversion without calibration does not read the calibration text
        files = [] if words[0] == "gguf" else calibration_files(self.recipe)
        return fingerprint(self.folder, words, [*source_files(self.recipe), *files])

    def _is_current(self, unit: str, inputs: str) -> bool:
        return not self.options.force and self.journal.current(unit, inputs)

    def _is_complete(self, name: str, inputs: str) -> bool:
        """Whether the conversion finished, but a kill prevented its line in the journal."""
        unfinished = (
            *self.folder.glob(f"{self.recipe.name}*.partial"),
            *gguf_folder(self.recipe, self.folder).glob("*.partial"),
        )
        return not self.options.force and not unfinished and self.journal.complete(name, inputs)

    def _require_own_outputs(self, names: Sequence[str]) -> None:
        for name in names:
            output = output_of(self.recipe, self.folder, name)
            if not self.options.force and output.exists() and not self.journal.ours(name, weight_files(output)):
                raise OutputError(
                    f"{output} already exists and is not as this bake left it; add --force to overwrite it, or choose"
                    " another folder with -o"
                )

    def _measure(self) -> Step:
        recipe = self.recipe
        if recipe.measure is None:
            return Step("measure", "left out", "the recipe has no [measure]")
        self._need_outputs("measure")
        command = measure_command(recipe, recipe.formats.names, self.folder, self.options.machine)
        inputs = self._measure_inputs(command)
        if self._is_current("measure", inputs):
            return self._kept("measure", ("measure",))
        line = (*command.line, *(("--force",) if "measure" in self.journal.last or self.options.force else ()))
        self._stage(f"measuring {len(recipe.formats.names)} formats against {recipe.source}")
        reports = [report_folder(recipe, self.folder) / name for name in ("report.json", "report.md")]
        return self._run("measure", inputs, line, reports)

    def _measure_inputs(self, command: Command) -> str:
        outputs = [output_of(self.recipe, self.folder, name) for name in self.recipe.formats.names]
        files = [file for output in outputs for file in weight_files(output)]
        return fingerprint(self.folder, command.words, [*files, *source_files(self.recipe), *text_files(self.recipe)])

    def _ollama(self) -> Step:
        recipe = self.recipe
        if recipe.ollama_name is None:
            return Step("ollama", "left out", "the recipe has no [ollama]")
        files = ollama_files(recipe, ollama_recipe(recipe.opened), self.folder)
        if not files:
            return Step("ollama", "left out", "no type of [ollama] is in [formats]")
        self._need_outputs("ollama", files)
        command = ollama_command(recipe, files, self.effective)
        tables = [recipe.opened.get("model"), recipe.opened.get("ollama")]
        inputs = fingerprint(self.folder, command.words, files, tables)
        if self._is_current("ollama", inputs):
            return self._kept("ollama", ("ollama",))
        self._stage("writing Modelfiles")
        return self._run("ollama", inputs, self._overwriting("ollama", command), None)

    def _cards(self) -> Step:
        self._need_outputs("cards")
        recipe, report = self.recipe, self._report()
        outputs = [output_of(recipe, self.folder, name) for name in recipe.formats.names]
        files = [file for output in outputs for file in weight_files(output)]
        files.append(report_folder(recipe, self.folder) / "report.json")
        models = [
            card_model(recipe, kind).__dict__ for kind in dict.fromkeys(("gguf", "awq", "gptq", *recipe.formats.packed))
        ]
        inputs = fingerprint(self.folder, ["cards"], files, models)
        if self._is_current("cards", inputs):
            return self._kept("cards", ("cards",))
        self._stage("writing model cards")
        written = write_cards(recipe, self.folder, report)
        self.journal.finish("cards", inputs, written, {})
        return Step("cards", "done", ", ".join(str(path.relative_to(self.folder)) for path in written))

    def _termux(self) -> Step:
        if self.recipe.phone is None:
            return Step("termux", "left out", "the recipe has no [phone]")
        steps: list[Step] = []
        for command, script in termux_commands(self.recipe, self.folder):
            files = [output_of(self.recipe, self.folder, name) for name in self.recipe.phone.types]
            self._need_outputs("termux", files)
            unit = f"termux {script.name}"
            inputs = fingerprint(self.folder, command.words, files)
            if self._is_current(unit, inputs):
                steps.append(self._kept("termux", (unit,)))
                continue
            self._stage(f"writing {script.name}")
            steps.append(self._run("termux", inputs, self._overwriting(unit, command), [script], unit))
        state = "done" if any(step.state == "done" for step in steps) else "kept"
        lines = tuple(line for step in steps for line in step.commands)
        seconds, peak = sum(step.seconds for step in steps), max((step.peak_memory for step in steps), default=0)
        return Step("termux", state, "", lines, seconds, peak)

    def _push(self) -> Step:
        recipe, report = self.recipe, self._report()
        if not recipe.hub:
            raise UsageError(f'{recipe.opened.path} has no [hub]; add one with gguf = "ORG/NAME-GGUF"')
        self._need_outputs("push")
        if recipe.measure is not None:
            command = measure_command(recipe, recipe.formats.names, self.folder, self.options.machine)
            if report is None or not self.journal.current("measure", self._measure_inputs(command)):
                raise VerificationError(
                    f"{recipe.name} was not measured as it is now, so nothing is pushed; run its step measure first"
                )
            if broken_floors(recipe, report):
                return Step("push", "left out", "floors are not met")
        self._stage("pushing to the hub")
        self.pushed = push(recipe, self.folder, self.progress)
        return Step("push", "done", ", ".join(self.pushed))

    def _run(
        self, step: str, inputs: str, line: tuple[str, ...], files: Sequence[Path] | None, unit: str | None = None
    ) -> Step:
        """Run one command as one unit of the journal; without `files` its document lists the `written` files."""
        unit = unit or step
        self.journal.start(unit, inputs, files or [])
        done = run_command(line, self.progress, self.warn)
        written = [Path(path) for path in done.document["written"]] if files is None else files
        record = {"seconds": round(done.seconds, 3), "peak_memory_bytes": done.peak_memory}
        self.journal.finish(unit, inputs, written, record)
        return Step(step, "done", "", (line,), done.seconds, done.peak_memory)

    def _overwriting(self, unit: str, command: Command) -> tuple[str, ...]:
        """The command, with --force if its outputs are as this bake wrote them; else the command refuses."""
        last = self.journal.last.get(unit)
        outputs = [self.folder / name for name in (last or {}).get("files", {})]
        ours = last is not None and self.journal.ours(unit, outputs)
        return (*command.line, *(("--force",) if ours or self.options.force else ()))

    def _stage(self, text: str) -> None:
        self.progress.start(f"{self.recipe.name}: {text}")

    def _kept(self, step: str, units: Sequence[str]) -> Step:
        records = [self.journal.record(unit) for unit in units]
        seconds = max((record.get("seconds", 0.0) for record in records), default=0.0)
        peak = max((record.get("peak_memory_bytes", 0) for record in records), default=0)
        return Step(step, "kept", "nothing changed since", (), seconds, peak)

    def _need_outputs(self, step: str, outputs: Sequence[Path] | None = None) -> None:
        needed = outputs or [output_of(self.recipe, self.folder, name) for name in self.recipe.formats.names]
        missing = next((path for path in needed if not path.exists()), None)
        if missing is not None:
            raise OutputError(f"{step} needs {missing}, which does not exist; run the step convert first")

    def _report(self) -> dict[str, Any] | None:
        """The document of report.json; None if the recipe has no [measure] or the file does not exist."""
        path = report_folder(self.recipe, self.folder) / "report.json"
        if self.recipe.measure is None or not path.exists():
            return None
        try:
            return load_report(path)
        except MeasureError as error:
            raise OutputError(f"{error}, with --only measure --force") from error
