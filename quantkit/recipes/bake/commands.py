"""The commands that a recipe stands for, and the files each one leaves."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantkit.chat import BUILT_IN
from quantkit.gguf.file_types import file_type
from quantkit.publish.ollama.tags import plan_tags
from quantkit.recipes.ollama import NONE, OllamaRecipe, ollama_recipe
from quantkit.recipes.recipe import Recipe


@dataclass(frozen=True)
class Machine:
    """How to work, which changes no byte of what is made."""

    threads: int | None = None
    device: str | None = None
    max_ram: str | None = None
    offline: bool = False


@dataclass(frozen=True)
class Command:
    """`quantkit WORDS... MORE...`: `words` decide what comes out, `more` do not."""

    words: tuple[str, ...]
    more: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    """What it makes, of a conversion."""

    @property
    def line(self) -> tuple[str, ...]:
        return (*self.words, *self.more)


def output_of(recipe: Recipe, folder: Path, name: str) -> Path:
    """The GGUF file, or the AWQ or GPTQ folder, of a format."""
    if name in recipe.formats.packed:
        return folder / f"{recipe.name}-{name.upper()}"
    return gguf_folder(recipe, folder) / f"{recipe.name}-{file_type(name).label}.gguf"


def gguf_folder(recipe: Recipe, folder: Path) -> Path:
    return folder / f"{recipe.name}-GGUF"


def report_folder(recipe: Recipe, folder: Path) -> Path:
    return folder / f"{recipe.name}-report"


def convert_commands(recipe: Recipe, formats: Sequence[str], folder: Path, machine: Machine) -> list[Command]:
    """As few conversions as make `formats`: those that share their options go through one calibration together."""
    groups: list[tuple[str, ...]] = []
    for method, options in recipe.formats.packed.items():
        if method in formats:
            alike = next((n for n, group in enumerate(groups) if recipe.formats.packed[group[0]] == options), None)
            if alike is None:
                groups.append((method,))
            else:
                groups[alike] += (method,)
    gguf = tuple(name for name in formats if name not in recipe.formats.packed)
    if gguf and groups:
        groups[0] += gguf
    elif gguf:
        groups.append(gguf)
    return [_convert(recipe, group, folder, machine) for group in groups]


def _convert(recipe: Recipe, group: tuple[str, ...], folder: Path, machine: Machine) -> Command:
    calibration, method = recipe.calibration, group[0]
    options = recipe.formats.packed.get(method)
    gguf = any(name not in recipe.formats.packed for name in group)
    calibrates = options is not None or recipe.formats.imatrix
    words = ["convert" if calibrates else "gguf", recipe.source]
    for name in group:
        words += ["-t", name]
    words += ["--name", recipe.name]
    if gguf and recipe.chat_template is not None:
        words += ["--chat-template", recipe.chat_template]
    if options is not None:
        words += ["--group-size", str(options.group_size)]
        for pattern in options.skip:
            words += ["--skip", pattern]
    if calibrates:
        if calibration.text is not None:
            words += ["--calibration", calibration.text]
        words += ["--samples", str(calibration.samples), "--seq-len", str(calibration.seq_len)]
        if calibration.chat is not None:
            words.append("--chat" if calibration.chat else "--raw")
        if gguf and not recipe.formats.imatrix:
            words.append("--no-imatrix")
    more = ["-o", str(folder), *_threads(machine), *_offline(machine)]
    if machine.max_ram:
        more += ["--max-ram", machine.max_ram]
    if machine.device and calibrates:
        more += ["--device", machine.device]
    return Command(tuple(words), tuple(more), group)


def signature(recipe: Recipe, name: str) -> tuple[str, ...]:
    """What one format is made by, whatever else is made with it."""
    return _convert(recipe, (name,), Path(), Machine()).words


def measure_command(recipe: Recipe, formats: Sequence[str], folder: Path, machine: Machine) -> Command:
    """All formats against the source."""
    asked = recipe.measure
    assert asked is not None
    words = ["measure", recipe.source, *(str(output_of(recipe, folder, name)) for name in formats)]
    for text in asked.texts:
        words += ["--text", text]
    words += ["--ctx", str(asked.ctx), "--gpu-layers", asked.gpu_layers, "--memory-ctx", str(asked.memory_ctx)]
    if asked.chunks is not None:
        words += ["--chunks", str(asked.chunks)]
    if asked.speed:
        words.append("--speed")
    more = ["-o", str(report_folder(recipe, folder)), *_threads(machine), *_offline(machine)]
    if machine.device:
        more += ["--device", machine.device]
    return Command(tuple(words), tuple(more))


def ollama_files(recipe: Recipe, found: OllamaRecipe, folder: Path) -> list[Path]:
    """The GGUF files that go to Ollama: of [ollama]'s types those that are made."""
    return [output_of(recipe, folder, name) for name in found.types if name in recipe.formats.gguf]


def ollama_command(recipe: Recipe, files: Sequence[Path], effective: Path) -> Command:
    """The Modelfiles, beside the GGUF files; `effective`: the recipe in one file."""
    return Command(("ollama", *map(str, files), "--recipe", str(effective)))


def termux_commands(recipe: Recipe, folder: Path) -> list[tuple[Command, Path]]:
    """For each of [phone]'s types the command and the script it writes."""
    assert recipe.phone is not None
    tags: dict[str, str] = {}
    overrides: list[str] = ["--chat-template", recipe.chat_template] if recipe.chat_template == NONE else []
    if recipe.ollama_name is not None:
        found = ollama_recipe(recipe.opened)
        for key, value in found.overrides.parameters:
            overrides += ["--parameter", f"{key}={value}"]
        if found.overrides.system is not None:
            overrides += ["--system", found.overrides.system]
        made = [(name, (name,)) for name in found.types if name in recipe.formats.gguf]
        plan = plan_tags(found.name, made, size=found.size) if made else None
        tags = {each.type: plan.name.tagged(each.tags[0]) for each in plan.quantizations} if plan else {}
    commands = []
    for name in recipe.phone.types:
        file = str(output_of(recipe, folder, name))
        # a model that is pulled brings its parameters; one without a template can only be made there
        pulled = name in tags and recipe.chat_template != NONE
        source = ["--model", tags[name], "--figures", file] if pulled else ["--gguf", file, *overrides]
        memory = ["--ram", recipe.phone.memory] if recipe.phone.memory else []
        script = folder / f"{recipe.name}-termux-{name}.sh"
        commands.append((Command(("termux", *source, *memory), ("-o", str(script))), script))
    return commands


def chat_template_file(recipe: Recipe) -> Path | None:
    """The file of the chat template, where it is one."""
    if recipe.chat_template is None or recipe.chat_template in (*BUILT_IN, NONE):
        return None
    return Path(recipe.chat_template)


def _threads(machine: Machine) -> list[str]:
    return ["--threads", str(machine.threads)] if machine.threads else []


def _offline(machine: Machine) -> list[str]:
    return ["--offline"] if machine.offline else []
