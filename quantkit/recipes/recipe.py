"""A recipe as values: what is made of which model, what it is measured on, what it has to reach, where it goes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.gguf.file_types import file_type
from quantkit.recipes.reading import Opened, open_recipe
from quantkit.recipes.schema import INT4, is_path

GROUP_SIZE, SAMPLES, SEQ_LEN, CTX, GPU_LAYERS, MEMORY_CTX = 128, 128, 512, 512, "0,8,16,all", 4096
"""What the commands take where nobody says otherwise."""


@dataclass(frozen=True)
class PackedFormat:
    """AWQ or GPTQ."""

    group_size: int = GROUP_SIZE
    skip: tuple[str, ...] = ()


@dataclass(frozen=True)
class Formats:
    """What is made. `imatrix`: whether GGUF types use the calibration."""

    gguf: tuple[str, ...]
    packed: Mapping[str, PackedFormat]
    imatrix: bool

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.packed, *self.gguf)


@dataclass(frozen=True)
class Calibration:
    text: str | None
    samples: int
    seq_len: int
    chat: bool | None


@dataclass(frozen=True)
class Measuring:
    texts: tuple[str, ...]
    ctx: int
    chunks: int | None
    gpu_layers: str
    memory_ctx: int
    speed: bool


@dataclass(frozen=True)
class Floor:
    """What a format may cost at most. `delta`: (of the perplexity, whether it is a share of the reference's)."""

    delta: tuple[float, bool] | None = None
    kl: float | None = None
    top1: float | None = None


@dataclass(frozen=True)
class Phone:
    types: tuple[str, ...]
    memory: str | None


@dataclass(frozen=True)
class Recipe:
    """Everything but what Ollama gets, which `ollama.ollama_recipe` reads. `source`: a hub id or an absolute path."""

    opened: Opened
    name: str
    source: str
    chat_template: str | None
    context_length: int | None
    license: str | None
    languages: tuple[str, ...]
    base_model: str | None
    """The hub id that cards name: where [model] says none, the source as any layer has it."""
    formats: Formats
    calibration: Calibration
    measure: Measuring | None
    floors: Mapping[str, Floor]
    """By format; those without a limit are not in it."""
    ollama_name: str | None
    phone: Phone | None
    hub: Mapping[str, str]
    """gguf, awq, gptq -> repository."""
    private: bool


def read_recipe(path: Path, settings: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, fit to be baked; `settings` as for `open_recipe`.

    Raises:
        UsageError: with file and line: as `open_recipe`; a key is missing, a file it names is not there, nothing is to
            be made, a floor is for a format that is not made.
    """
    opened = open_recipe(path, settings)
    model = opened.get("model") or {}
    for key in ("name", "source"):
        if key not in model:
            opened.fail(("model", key), f"[model] lacks {key}")
    source = model["source"]
    if is_path(source) and not Path(source).is_dir():
        opened.fail(("model", "source"), f"source of [model] names the folder {source}, which is not there")
    template = model.get("chat_template")
    if template is not None and is_path(template) and not Path(template).is_file():
        opened.fail(("model", "chat_template"), f"chat_template of [model] names {template}, which is not there")
    if model.get("revision") and "@" not in source:
        source = f"{source}@{model['revision']}"
    formats = _formats(opened)
    return Recipe(
        opened=opened,
        name=model["name"],
        source=source,
        chat_template=template,
        context_length=model.get("context_length"),
        license=model.get("license"),
        languages=tuple(model.get("languages", ())),
        base_model=model.get("base_model") or _published_as(opened),
        formats=formats,
        calibration=_calibration(opened),
        measure=_measuring(opened),
        floors=_floors(opened, formats),
        ollama_name=opened.get("ollama", "name"),
        phone=_phone(opened, formats),
        hub={key: value for key, value in (opened.get("hub") or {}).items() if key != "private"},
        private=bool(opened.get("hub", "private")),
    )


def _published_as(opened: Opened) -> str | None:
    sources = (layer.table.get("model", {}).get("source", ".") for layer in opened.layers)
    return next((each.partition("@")[0] for each in sources if not is_path(each) and not Path(each).exists()), None)


def _formats(opened: Opened) -> Formats:
    table = opened.get("formats") or {}
    packed: dict[str, PackedFormat] = {}
    for method in INT4:
        asked = table.get(method, False)
        if asked is not False:
            options: Mapping[str, Any] = {} if asked is True else asked
            packed[method] = PackedFormat(options.get("group_size", GROUP_SIZE), tuple(options.get("skip", ())))
    gguf = tuple(dict.fromkeys(file_type(each).name for each in table.get("gguf", ())))
    if not gguf and not packed:
        opened.fail(("formats",), 'the recipe makes nothing; write gguf = ["q4_0"] or awq = true under [formats]')
    for each in gguf:
        if file_type(each).needs_imatrix and not table.get("imatrix", True):
            opened.fail(("formats", "imatrix"), f"{each} cannot be made without an importance matrix; imatrix is false")
    return Formats(gguf, packed, table.get("imatrix", True))


def _calibration(opened: Opened) -> Calibration:
    table = opened.get("calibration") or {}
    if "text" in table and is_path(table["text"]) and not Path(table["text"]).is_file():
        opened.fail(("calibration", "text"), f"text of [calibration] names {table['text']}, which is not there")
    return Calibration(
        table.get("text"), table.get("samples", SAMPLES), table.get("seq_len", SEQ_LEN), table.get("chat")
    )


def _measuring(opened: Opened) -> Measuring | None:
    table = opened.get("measure")
    if not table:
        if opened.get("floors"):
            opened.fail(("floors",), "[floors] says what measuring must show, but no [measure] names texts")
        return None
    if "texts" not in table:
        opened.fail(("measure", "texts"), "[measure] lacks texts")
    for text in table["texts"]:
        if is_path(text) and not Path(text).is_file():
            opened.fail(("measure", "texts"), f"texts of [measure] names {text}, which is not there")
    return Measuring(
        texts=tuple(table["texts"]),
        ctx=table.get("ctx", CTX),
        chunks=table.get("chunks"),
        gpu_layers=table.get("gpu_layers", GPU_LAYERS),
        memory_ctx=table.get("memory_ctx", MEMORY_CTX),
        speed=table.get("speed", False),
    )


def _floors(opened: Opened, formats: Formats) -> dict[str, Floor]:
    """The limits of each format: those for all, and its own over them."""
    table = opened.get("floors") or {}
    common = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    own = {_format(key): value for key, value in table.items() if isinstance(value, Mapping)}
    found = {}
    for name in formats.names:
        limits = common | dict(own.get(name, {}))
        if limits:
            found[name] = Floor(
                delta=_limit(limits["max_delta"]) if "max_delta" in limits else None,
                kl=float(limits["max_kl"]) if "max_kl" in limits else None,
                top1=_limit(limits["min_top1"])[0] if "min_top1" in limits else None,
            )
    return found


def _format(name: str) -> str:
    return name.lower() if name.lower() in INT4 else file_type(name).name


def _limit(value: Any) -> tuple[float, bool]:
    """(0.05, True) of "5%", (0.5, False) of 0.5."""
    text = str(value).strip()
    return (float(text.removesuffix("%")) / 100, True) if text.endswith("%") else (float(text), False)


def _phone(opened: Opened, formats: Formats) -> Phone | None:
    table = opened.get("phone")
    if table is None:
        return None
    types = tuple(dict.fromkeys(file_type(each).name for each in table.get("types", formats.gguf)))
    missing = next((each for each in types if each not in formats.gguf), None)
    if missing:
        opened.fail(("phone", "types"), f"types of [phone] has {missing}, which gguf of [formats] does not make")
    return Phone(types, table.get("memory"))
