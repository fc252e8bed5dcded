"""The commands of a recipe, and the outputs of each one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantkit.chat import BUILT_IN
from quantkit.gguf.file_types import file_type
from quantkit.packed.registry import FORMATS
from quantkit.publish.ollama.tags import plan_tags
from quantkit.recipes.ollama import NONE, OllamaRecipe, ollama_recipe
from quantkit.recipes.recipe import PackedFormat, Recipe


@dataclass(frozen=True)
class Machine:
    """Options that do not change the bytes of an output."""

    threads: int | None = None
    device: str | None = None
    max_ram: str | None = None
    offline: bool = False


@dataclass(frozen=True)
class Command:
    """`quantkit WORDS... MORE...`.

    Attributes:
        words: the words that the content of the outputs depends on.
        more: the other words: folders and options of the machine.
        formats: the formats that a conversion writes.
    """

    words: tuple[str, ...]
    more: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()

    @property
    def line(self) -> tuple[str, ...]:
        """All words."""
        return (*self.words, *self.more)


def output_of(recipe: Recipe, folder: Path, name: str) -> Path:
    """The GGUF file, or the folder, of a format."""
    if name in recipe.formats.packed:
        return folder / f"{recipe.name}-{FORMATS[name].label}"
    return gguf_folder(recipe, folder) / f"{recipe.name}-{file_type(name).label}.gguf"


def gguf_folder(recipe: Recipe, folder: Path) -> Path:
    """The folder of the GGUF files."""
    return folder / f"{recipe.name}-GGUF"


def report_folder(recipe: Recipe, folder: Path) -> Path:
    """The folder of the measurement's report."""
    return folder / f"{recipe.name}-report"


def convert_commands(recipe: Recipe, formats: Sequence[str], folder: Path, machine: Machine) -> list[Command]:
    """The smallest number of conversions for `formats`: folders with equal options are written together."""
    groups: list[tuple[str, ...]] = []
    for method, options in recipe.formats.packed.items():
        if method in formats:
            group_number = next((n for n, group in enumerate(groups) if _agree(recipe, group, options)), None)
            if group_number is None:
                groups.append((method,))
            else:
                groups[group_number] += (method,)
    gguf = tuple(name for name in formats if name not in recipe.formats.packed)
    if gguf and groups:
        groups[0] += gguf
    elif gguf:
        groups.append(gguf)
    return [_convert(recipe, group, folder, machine) for group in groups]


def _convert(recipe: Recipe, group: tuple[str, ...], folder: Path, machine: Machine) -> Command:
    calibration, options = recipe.calibration, recipe.formats.packed.get(group[0])
    gguf = any(name not in recipe.formats.packed for name in group)
    calibrates = (gguf and recipe.formats.imatrix) or any(
        FORMATS[name].calibrated for name in group if name in recipe.formats.packed
    )
    words = ["convert" if calibrates or options is not None else "gguf", recipe.source]
    for name in group:
        words += ["-t", name]
    words += ["--name", recipe.name]
    if gguf and recipe.formats.mmproj is not None:
        words += ["--mmproj", recipe.formats.mmproj]
    if gguf and recipe.chat_template is not None:
        words += ["--chat-template", recipe.chat_template]
    if options is not None:
        size = _group_size(recipe, group)
        words += ["--group-size", str(size)] if size is not None else []
        for pattern in options.skip:
            words += ["--skip", pattern]
    if calibrates:
        for text in calibration.texts:
            words += ["--calibration", text]
        words += ["--samples", str(calibration.samples), "--seq-len", str(calibration.seq_len)]
        if calibration.chat is not None:
            words.append("--chat" if calibration.chat else "--raw")
    if gguf and options is not None and not recipe.formats.imatrix:
        words.append("--no-imatrix")
    more = ["-o", str(folder), *_threads(machine), *_offline(machine)]
    if machine.max_ram:
        more += ["--max-ram", machine.max_ram]
    if machine.device and calibrates:
        more += ["--device", machine.device]
    return Command(tuple(words), tuple(more), group)


def _agree(recipe: Recipe, group: Sequence[str], options: PackedFormat) -> bool:
    """Whether a folder with `options` can be written by the command that writes `group`."""
    size = _group_size(recipe, group)
    return recipe.formats.packed[group[0]].skip == options.skip and (
        None in (size, options.group_size) or size == options.group_size
    )


def _group_size(recipe: Recipe, group: Sequence[str]) -> int | None:
    """The --group-size of a command; None if no format of it has a choice."""
    sizes = (recipe.formats.packed[name].group_size for name in group if name in recipe.formats.packed)
    return next((size for size in sizes if size is not None), None)


def signature(recipe: Recipe, name: str) -> tuple[str, ...]:
    """The words that convert one format alone; the other formats of a conversion do not change them."""
    return _convert(recipe, (name,), Path(), Machine()).words


def measure_command(recipe: Recipe, formats: Sequence[str], folder: Path, machine: Machine) -> Command:
    """The command that measures `formats` against the source."""
    measure = recipe.measure
    assert measure is not None
    words = ["measure", recipe.source, *(str(output_of(recipe, folder, name)) for name in formats)]
    for text in measure.texts:
        words += ["--text", text]
    words += ["--ctx", str(measure.ctx), "--gpu-layers", measure.gpu_layers, "--memory-ctx", str(measure.memory_ctx)]
    if measure.chunks is not None:
        words += ["--chunks", str(measure.chunks)]
    if measure.speed:
        words.append("--speed")
    more = ["-o", str(report_folder(recipe, folder)), *_threads(machine), *_offline(machine)]
    if machine.device:
        more += ["--device", machine.device]
    return Command(tuple(words), tuple(more))


def ollama_files(recipe: Recipe, ollama: OllamaRecipe, folder: Path) -> list[Path]:
    """The GGUF files for Ollama: the types of [ollama] that are in [formats]."""
    return [output_of(recipe, folder, name) for name in ollama.types if name in recipe.formats.gguf]


def ollama_command(recipe: Recipe, files: Sequence[Path], effective: Path) -> Command:
    """The command that writes Modelfiles beside the GGUF files; `effective`: the merged recipe in one file."""
    return Command(("ollama", *map(str, files), "--recipe", str(effective)))


def termux_commands(recipe: Recipe, folder: Path) -> list[tuple[Command, Path]]:
    """For each type of [phone] the command, and the script that it writes."""
    assert recipe.phone is not None
    tags: dict[str, str] = {}
    overrides: list[str] = ["--chat-template", recipe.chat_template] if recipe.chat_template == NONE else []
    if recipe.ollama_name is not None:
        ollama = ollama_recipe(recipe.opened)
        for key, value in ollama.overrides.parameters:
            overrides += ["--parameter", f"{key}={value}"]
        if ollama.overrides.system is not None:
            overrides += ["--system", ollama.overrides.system]
        files = [(name, (name,)) for name in ollama.types if name in recipe.formats.gguf]
        if files:
            plan = plan_tags(ollama.name, files, size=ollama.size)
            tags = {tagged.type: plan.name.tagged(tagged.tags[0]) for tagged in plan.quantizations}
    commands = []
    for name in recipe.phone.types:
        file = str(output_of(recipe, folder, name))
        # a pulled model has its parameters already; a model without a template is created on the phone
        pulled = name in tags and recipe.chat_template != NONE
        source = ["--model", tags[name], "--figures", file] if pulled else ["--gguf", file, *overrides]
        memory = ["--ram", recipe.phone.memory] if recipe.phone.memory else []
        script = folder / f"{recipe.name}-termux-{name}.sh"
        commands.append((Command(("termux", *source, *memory), ("-o", str(script))), script))
    return commands


def chat_template_file(recipe: Recipe) -> Path | None:
    """The file of the chat template; None for a built-in template or none."""
    if recipe.chat_template is None or recipe.chat_template in (*BUILT_IN, NONE):
        return None
    return Path(recipe.chat_template)


def _threads(machine: Machine) -> list[str]:
    return ["--threads", str(machine.threads)] if machine.threads else []


def _offline(machine: Machine) -> list[str]:
    return ["--offline"] if machine.offline else []
