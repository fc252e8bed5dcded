"""The settings of the Termux script for a model: from a GGUF file, from a GGUF at a URL, or from a name."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from quantkit.errors import CheckpointError, UnsupportedError, UsageError
from quantkit.files import user_path
from quantkit.planning.phones import Phone, phone_memory
from quantkit.planning.sources import open_source
from quantkit.progress import SILENT, Progress
from quantkit.publish.ollama.bundle import make_bundle
from quantkit.publish.ollama.facts import facts_of_gguf
from quantkit.publish.ollama.overrides import Overrides
from quantkit.publish.ollama.server import digest_of
from quantkit.publish.remote_gguf import check_url, fetch_header, file_name
from quantkit.publish.termux import (
    Settings,
    check_parameters,
    llama_flags,
    modelfile_of_name,
    without_phone_parameters,
)
from quantkit.scratch import scratch_folder

BESIDE_WEIGHTS = 500_000_000
"""Bytes for KV cache, buffers and the process if only the size of the file is known; the script has the same value."""
_CONTEXTS = ((1024, 128), (2048, 128), (4096, 512))
"""(context, batch) in tokens if only the memory is known."""


@dataclass(frozen=True)
class ScriptRequest:
    """The options of a script.

    Attributes:
        overrides: parameters, system message and chat template.
        name: the model to pull, or the Ollama name for the GGUF.
        gguf: URL or file of the GGUF to run.
        figures: URL or file of the GGUF behind `name`; it gives sizes only.
        size, memory: bytes that replace the figures of the GGUF.
        offline: do not read a URL.
    """

    overrides: Overrides
    name: str = ""
    gguf: str | None = None
    figures: str | None = None
    size: int | None = None
    memory: int | None = None
    offline: bool = False

    @property
    def ctx(self) -> int | None:
        """The context length of the parameters, in tokens; None without num_ctx."""
        return next((int(value) for key, value in self.overrides.parameters if key == "num_ctx"), None)


@dataclass(frozen=True)
class PhoneModel:
    """The facts of a model for the script; `notes` and `warnings` are for the user of quantkit.

    Attributes:
        size: bytes of the file.
        memory: (context in tokens, batch in tokens, bytes), smallest first.
        flags: the parameters as flags of llama-server.
    """

    file: str = ""
    size: int | None = None
    sha256: str = ""
    memory: tuple[tuple[int, int, int], ...] = ()
    modelfile: str = ""
    flags: str = ""
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def script_settings(request: ScriptRequest, progress: Progress = SILENT) -> tuple[Settings, PhoneModel]:
    """The settings of the script, and the facts of the model.

    Raises:
        UsageError: the request has no model, has options that exclude each other, or sets what the phone chooses.
        CheckpointError, HubError: the GGUF is missing, damaged or cannot be fetched.
    """
    if not request.name and request.gguf is None:
        raise UsageError("no model is given; write quantkit termux --model NS/MODEL, or --gguf URL|FILE")
    if request.figures is not None and request.gguf is not None:
        raise UsageError("--figures is for a model that is pulled by name; remove it, because --gguf has the figures")
    overrides, ctx = request.overrides, request.ctx
    check_parameters(overrides.parameters)
    if request.gguf is not None:
        model = _gguf_model(request, progress)
    elif overrides.chat_template is not None:
        raise UsageError("--chat-template is for --gguf; remove it, because a pulled model has its own template")
    else:
        model = _sizes(request.figures, ctx) if request.figures is not None else PhoneModel()
        modelfile = modelfile_of_name(request.name, overrides.parameters, overrides.system)
        model = replace(model, modelfile=without_phone_parameters(modelfile))
    memory = model.memory
    if request.memory is not None:
        pairs = [(n_ctx, batch) for n_ctx, batch, _ in memory] or [(ctx or n_ctx, batch) for n_ctx, batch in _CONTEXTS]
        memory = tuple((n_ctx, batch, request.memory) for n_ctx, batch in pairs)
    settings = Settings(
        name=request.name or plain_name(model.file),
        gguf="" if request.gguf is None else request.gguf if is_url(request.gguf) else model.file,
        model_bytes=request.size or model.size,
        model_sha256=model.sha256,
        memory=memory,
        ctx=ctx,
        modelfile=model.modelfile,
        llama_flags=model.flags,
    )
    return settings, model


def is_url(text: str) -> bool:
    """Whether a text begins with a scheme such as https://."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def plain_name(file: str) -> str:
    """An Ollama name made from a file name, by the script's own rule."""
    name = re.sub(r"[^a-z0-9._-]", "-", file.lower().removesuffix(".gguf"))
    return re.sub(r"\.{2,}", ".", name.lstrip(".-"))[:80] or "model"


def choose(settings: Settings, phone: Phone) -> tuple[int, int, int] | None:
    """The (context, batch, bytes) that the script chooses on a phone without other apps; None if nothing fits."""
    fits = None
    for n_ctx, batch, need in settings.memory:
        if batch <= phone.n_batch and (settings.ctx or n_ctx <= phone.n_ctx) and need <= phone.room:
            fits = (n_ctx, batch, need)
    return fits


def _gguf_model(request: ScriptRequest, progress: Progress) -> PhoneModel:
    """The GGUF that the phone downloads or gets as a file, with its Modelfile, flags and sha256."""
    assert request.gguf is not None
    overrides, ctx = request.overrides, request.ctx
    if not is_url(request.gguf):
        path = _existing(request.gguf)
        model = _with_modelfile(_header(path, ctx), path, overrides)
        progress.start("hashing", path.stat().st_size)
        return replace(model, sha256=digest_of(path, progress).removeprefix("sha256:"))
    check_url(request.gguf)
    if request.offline:
        if overrides.chat_template is not None:
            raise UsageError("--chat-template needs the header of the GGUF; remove --offline")
        modelfile = modelfile_of_name("model", overrides.parameters, overrides.system)
        return PhoneModel(
            file=file_name(request.gguf),
            modelfile=without_phone_parameters(modelfile),
            flags=llama_flags(overrides.parameters),
        )
    with scratch_folder() as folder:
        remote = fetch_header(request.gguf, folder)
        model = _with_modelfile(_header(remote.path, ctx), remote.path, overrides)
        return replace(model, sha256=remote.sha256 or "")


def _sizes(gguf: str, ctx: int | None) -> PhoneModel:
    """The size and memory of a GGUF at a URL or in a file."""
    if not is_url(gguf):
        return _header(_existing(gguf), ctx)
    check_url(gguf)
    with scratch_folder() as folder:
        return _header(fetch_header(gguf, folder).path, ctx)


def _existing(gguf: str) -> Path:
    path = user_path(gguf)
    if not path.is_file():
        raise CheckpointError(f"file {gguf} not found; check the name")
    if path.suffix.lower() != ".gguf":
        raise CheckpointError(f"{gguf} is not a .gguf file; pass a GGUF, as quantkit gguf writes it")
    return path


def _header(path: Path, ctx: int | None) -> PhoneModel:
    """The size and memory from the header of `path`; the rest of the file can be empty."""
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", path.name):
        raise UsageError(f"{path.name} is one of several shards; join them into one file for a phone")
    model = PhoneModel(file=path.name, size=path.stat().st_size)
    try:
        source = open_source(str(path))
        try:
            return replace(model, memory=tuple(phone_memory(source, ctx)))
        finally:
            source.model.close()
    except UnsupportedError as error:
        assumption = f"the script assumes the file's size and {BESIDE_WEIGHTS / 1e6:.0f} MB more"
        return replace(model, warnings=(f"{error}; {assumption}",))


def _with_modelfile(model: PhoneModel, path: Path, overrides: Overrides) -> PhoneModel:
    """The model with the Modelfile and flags of the GGUF `path` under `overrides`."""
    bundle = make_bundle(facts_of_gguf(path), overrides, sources=("./model.gguf",), base="model")
    return replace(
        model,
        modelfile=without_phone_parameters(bundle.modelfile),
        flags=llama_flags(bundle.modelfile.parameters),
        notes=tuple(note for note in bundle.notes if not note.startswith("num_ctx is pinned")),
    )
