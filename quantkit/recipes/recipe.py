"""A recipe as values: the model, the formats, calibration, measurement, quality floors and repositories."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.files import path_is
from quantkit.gguf.file_types import file_type
from quantkit.packed.registry import FORMATS
from quantkit.recipes.reading import Opened, open_recipe
from quantkit.recipes.schema import FOLDERS, is_path
from quantkit.texts.mixed import DEFAULT

GROUP_SIZE, SAMPLES, SEQ_LEN, CTX, GPU_LAYERS, MEMORY_CTX = 128, 128, 512, 512, "0,8,16,all", 4096
"""The defaults of the commands."""


@dataclass(frozen=True)
class PackedFormat:
    """Options of a folder: inputs that share a scale, and patterns of linears that stay in 16 bits.

    `group_size` is None for a format without a choice.
    """

    group_size: int | None = GROUP_SIZE
    skip: tuple[str, ...] = ()


@dataclass(frozen=True)
class Formats:
    """The formats to write: GGUF types, and folders by name. `imatrix`: GGUF types use the calibration.

    `mmproj`: type of the projector beside the GGUF types of a model that sees; None for none.
    """

    gguf: tuple[str, ...]
    packed: Mapping[str, PackedFormat]
    imatrix: bool
    mmproj: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All formats, folders first."""
        return (*self.packed, *self.gguf)


@dataclass(frozen=True)
class Calibration:
    """[calibration]: `seq_len` in tokens; `chat` None lets the command decide whether to apply the chat template.

    `texts`: as `--calibration` takes them; none for quantkit's own text alone.
    """

    texts: tuple[str, ...]
    samples: int
    seq_len: int
    chat: bool | None


@dataclass(frozen=True)
class Measuring:
    """[measure]: `ctx` and `memory_ctx` in tokens; `chunks` None for all windows of a text."""

    texts: tuple[str, ...]
    ctx: int
    chunks: int | None
    gpu_layers: str
    memory_ctx: int
    speed: bool


@dataclass(frozen=True)
class Floor:
    """Limits of a format's loss; None for no limit.

    Attributes:
        delta: maximum increase of the perplexity, and whether it is a fraction of the reference's perplexity.
        kl: maximum mean KL divergence, in nats.
        top1: minimum fraction of positions with the same most likely token.
    """

    delta: tuple[float, bool] | None = None
    kl: float | None = None
    top1: float | None = None


@dataclass(frozen=True)
class Phone:
    """[phone]: the GGUF types that get a Termux script, and the memory of the phone (`4G`)."""

    types: tuple[str, ...]
    memory: str | None


@dataclass(frozen=True)
class Recipe:
    """A checked recipe without its part for Ollama, which `ollama.ollama_recipe` reads.

    Attributes:
        source: a hub id or an absolute path.
        base_model: the hub id that cards name: [model]'s, or else the first source of the layers that is a hub id.
        floors: by format; a format without a limit is not in it.
        hub: gguf, or a format of folders -> repository.
    """

    opened: Opened
    name: str
    source: str
    chat_template: str | None
    context_length: int | None
    license: str | None
    languages: tuple[str, ...]
    base_model: str | None
    formats: Formats
    calibration: Calibration
    measure: Measuring | None
    floors: Mapping[str, Floor]
    ollama_name: str | None
    phone: Phone | None
    hub: Mapping[str, str]
    private: bool


def read_recipe(path: Path, settings: Sequence[str] = (), source: str | None = None) -> Recipe:
    """Read and check a recipe for `bake`; `settings` and `source` as for `open_recipe`.

    Raises:
        UsageError: as `open_recipe`. Also: a key or a file is missing; the recipe has no format; a type of [phone] is
            not converted. The message names file and line.
    """
    opened = open_recipe(path, settings, source)
    model = opened.get("model") or {}
    for key in ("name", "source"):
        if key not in model:
            opened.fail(("model", key), f"[model] lacks the key {key}; add it")
    source = model["source"]
    if is_path(source) and not path_is(Path(source), Path.is_dir):
        opened.fail(("model", "source"), f"source of [model]: folder {source} not found; check the path")
    template = model.get("chat_template")
    if template is not None and is_path(template) and not path_is(Path(template), Path.is_file):
        opened.fail(("model", "chat_template"), f"chat_template of [model]: file {template} not found; check the path")
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
        ollama_name=_ollama_name(opened),
        phone=_phone(opened, formats),
        hub={key: value for key, value in (opened.get("hub") or {}).items() if key != "private"},
        private=bool(opened.get("hub", "private")),
    )


def _ollama_name(opened: Opened) -> str | None:
    name: str | None = opened.get("ollama", "name")
    if opened.get("ollama") and name is None:
        opened.fail(("ollama", "name"), "[ollama] lacks the key name; add it")
    return name


def _published_as(opened: Opened) -> str | None:
    sources = (layer.table.get("model", {}).get("source", ".") for layer in opened.layers)
    ids = (source.partition("@")[0] for source in sources if not is_path(source) and not path_is(Path(source)))
    return next(ids, None)


def _formats(opened: Opened) -> Formats:
    table = opened.get("formats") or {}
    packed: dict[str, PackedFormat] = {}
    for method in FOLDERS:
        value = table.get(method, False)
        if value is not False:
            options: Mapping[str, Any] = {} if value is True else value
            usual = None if FORMATS[method].group_sizes == () else FORMATS[method].group or GROUP_SIZE
            packed[method] = PackedFormat(options.get("group_size", usual), tuple(options.get("skip", ())))
    gguf = tuple(dict.fromkeys(file_type(name).name for name in table.get("gguf", ())))
    if not gguf and not packed:
        opened.fail(("formats",), 'the recipe has no format; write gguf = ["q4_0"] or awq = true under [formats]')
    for name in gguf:
        if file_type(name).needs_imatrix and not table.get("imatrix", True):
            opened.fail(("formats", "imatrix"), f"{name} needs an importance matrix; remove imatrix = false")
    mmproj = table.get("mmproj")
    if mmproj is not None and not gguf:
        opened.fail(("formats", "mmproj"), "mmproj of [formats] needs a GGUF type; add gguf, or remove mmproj")
    return Formats(gguf, packed, table.get("imatrix", True), mmproj)


def _calibration(opened: Opened) -> Calibration:
    table = opened.get("calibration") or {}
    text = table.get("text", ())
    texts = (text,) if isinstance(text, str) else tuple(text)
    for text in texts:
        if is_path(text) and not path_is(Path(text), Path.is_file):
            opened.fail(("calibration", "text"), f"text of [calibration]: file {text} not found; check the path")
    own = texts == (DEFAULT,)
    return Calibration(
        () if own else texts, table.get("samples", SAMPLES), table.get("seq_len", SEQ_LEN), table.get("chat")
    )


def _measuring(opened: Opened) -> Measuring | None:
    table = opened.get("measure")
    if not table:
        if opened.get("floors"):
            opened.fail(("floors",), "[floors] needs a measurement; add [measure] with texts, or remove [floors]")
        return None
    if "texts" not in table:
        opened.fail(("measure", "texts"), "[measure] lacks the key texts; add it")
    for text in table["texts"]:
        if is_path(text) and not path_is(Path(text), Path.is_file):
            opened.fail(("measure", "texts"), f"texts of [measure]: file {text} not found; check the path")
    return Measuring(
        texts=tuple(table["texts"]),
        ctx=table.get("ctx", CTX),
        chunks=table.get("chunks"),
        gpu_layers=table.get("gpu_layers", GPU_LAYERS),
        memory_ctx=table.get("memory_ctx", MEMORY_CTX),
        speed=table.get("speed", False),
    )


def _floors(opened: Opened, formats: Formats) -> dict[str, Floor]:
    """The limits of each format: its own, and else those for all formats."""
    table = opened.get("floors") or {}
    common = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    limits_by_format = {_format(key): value for key, value in table.items() if isinstance(value, Mapping)}
    floors = {}
    for name in formats.names:
        limits = common | dict(limits_by_format.get(name, {}))
        if limits:
            floors[name] = Floor(
                delta=_limit(limits["max_delta"]) if "max_delta" in limits else None,
                kl=float(limits["max_kl"]) if "max_kl" in limits else None,
                top1=_limit(limits["min_top1"])[0] if "min_top1" in limits else None,
            )
    return floors


def _format(name: str) -> str:
    return name.lower() if name.lower() in FOLDERS else file_type(name).name


def _limit(value: Any) -> tuple[float, bool]:
    """(0.05, True) of "5%", (0.5, False) of 0.5."""
    text = str(value).strip()
    return (float(text.removesuffix("%")) / 100, True) if text.endswith("%") else (float(text), False)


def _phone(opened: Opened, formats: Formats) -> Phone | None:
    table = opened.get("phone")
    if table is None:
        return None
    types = tuple(dict.fromkeys(file_type(name).name for name in table.get("types", formats.gguf)))
    missing = next((name for name in types if name not in formats.gguf), None)
    if missing:
        opened.fail(("phone", "types"), f"types of [phone]: {missing} is not converted; add it to gguf of [formats]")
    return Phone(types, table.get("memory"))
