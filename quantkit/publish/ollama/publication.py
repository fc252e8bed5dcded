"""What one run publishes: the models, their tags and Modelfiles, and the files that say so."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quantkit.errors import ModelfileError, OutputError, UsageError
from quantkit.files import write_atomically
from quantkit.gguf.adapter_file import check_adapter
from quantkit.gguf.file_types import file_type
from quantkit.gguf.projector_file import choose_projector, named_projectors
from quantkit.planning.layers import layers_that_fit
from quantkit.publish.ollama.bundle import REFUSED, Bundle, make_bundle
from quantkit.publish.ollama.facts import Facts, facts_of_folder, facts_of_gguf
from quantkit.publish.ollama.modelfile import write_modelfile
from quantkit.publish.ollama.overrides import Overrides
from quantkit.publish.ollama.plan_file import FILE_NAME, read_plan
from quantkit.publish.ollama.push import Item, foresee_replacement
from quantkit.publish.ollama.tags import Name, TagPlan, plan_tags, size_tag
from quantkit.publish.ollama.template_index import BuiltInTemplate


@dataclass(frozen=True)
class Publication:
    """The tag plan, and the facts of each of its quantizations in the same order.

    FROM lines are relative to `folder`, where the Modelfiles are written.
    """

    plan: TagPlan
    facts: tuple[Facts, ...]
    folder: Path


def read_models(paths: Sequence[Path]) -> tuple[list[Facts], list[str]]:
    """The models of GGUF files and NAME-GGUF folders, each once, and a sentence for each file that was left out.

    Raises:
        CheckpointError: a file is not a sound GGUF or not a model, or a folder holds no model.
    """
    models: list[Facts] = []
    notes: list[str] = []
    for path in paths:
        if path.is_dir():
            folder_models, folder_notes = facts_of_folder(path)
            models += folder_models
            notes += folder_notes
        else:
            models.append(facts_of_gguf(path))
    return list({model.files[0].resolve(): model for model in models}.values()), notes


def plan_publication(
    models: Sequence[Facts], name: Name, *, size: str | None, default: str | None, folder: Path | None = None
) -> Publication:
    """The publication of `models` under `name`.

    `size` stands in the tags in place of the GGUF's size; `default` is the type that gets the short tags; `folder` is
    that of the first model if it is None.

    Raises:
        UsageError: the models have several sizes, one type twice, or no file of the default type.
    """
    folder = folder or models[0].files[0].parent
    sizes = dict.fromkeys(size_tag(model.size_label) for model in models)
    if size is None and name.tag is None and len(sizes) > 1:
        labels = ", ".join(f"{model.files[0].name} ({model.size_label or 'none'})" for model in models)
        raise UsageError(f"the files are of several sizes: {labels}; publish them one by one, or give --size")
    files = [(model.type, tuple(_relative(file, folder) for file in model.files)) for model in models]
    plan = plan_tags(name, files, size=size or next(iter(sizes)), default=file_type(default).name if default else None)
    by_type = {model.type: model for model in models}
    return Publication(plan, tuple(by_type[quantization.type] for quantization in plan.quantizations), folder)


def read_publication(plan_file: Path, folder: Path | None = None) -> Publication:
    """The publication that an edited tag plan describes.

    Raises:
        UsageError: the plan is not valid.
        CheckpointError: a file of the plan is not a sound GGUF.
    """
    plan = read_plan(plan_file)
    facts = tuple(facts_of_gguf(plan_file.parent / quantization.files[0]) for quantization in plan.quantizations)
    return Publication(plan, facts, folder or plan_file.parent)


def make_items(
    publication: Publication,
    overrides: Overrides,
    *,
    vram: int | None = None,
    mmproj: Path | None = None,
    sees: bool = True,
    adapter: Path | None = None,
) -> list[Item]:
    """Both Modelfiles of every quantization; with `vram` (bytes), num_gpu is the number of layers that fit.

    `mmproj`: the projector of the models; None for the one beside each, if there is one. Without `sees` there is none.
    `adapter`: the GGUF of a LoRA adapter that every tag loads.

    Raises:
        TemplateError: a chat template is missing or cannot be exact.
        UsageError: the projector or the adapter belongs to another model.
    """
    items = []
    for quantization, model in zip(publication.plan.quantizations, publication.facts, strict=True):
        projector = _projector(model, mmproj) if sees else None
        files = (*model.files, *([projector] if projector else []))
        sources = [_from_value(file, publication.folder) for file in files]
        base = publication.plan.name.tagged(quantization.tags[0])
        bundle = make_bundle(model, overrides, sources=sources, base=base)
        if vram is not None:
            free = vram - sum(file.stat().st_size for file in (projector, adapter) if file)
            layers = layers_that_fit(model.files[0], n_ctx=parameter(bundle, "num_ctx"), vram=max(free, 0))
            fitting = replace(overrides, parameters=(*overrides.parameters, ("num_gpu", layers)))
            bundle = make_bundle(model, fitting, sources=sources, base=base)
        if adapter is not None:
            check_adapter(adapter, model.files[0])
            line = _from_value(adapter, publication.folder)
            bundle = replace(bundle, modelfile=replace(bundle.modelfile, adapter=line))
        items.append(Item(quantization, model, bundle, projector=projector, adapter=adapter))
    return items


def _projector(model: Facts, requested: Path | None) -> Path | None:
    if requested is None and not named_projectors(model.files[0]):
        return None
    return choose_projector(model.files[0], requested)


def foresee(items: Sequence[Item], index: tuple[BuiltInTemplate, ...]) -> list[Item]:
    """The items with the built-in templates of `index` that `ollama create` would store in place of the GGUFs' own."""
    return [replace(item, replacement=foresee_replacement(item.facts, item.bundle, index)) for item in items]


def needs_index(items: Sequence[Item]) -> bool:
    """Whether a tag has no TEMPLATE, so that Ollama may take one of its built-in templates."""
    return any(item.bundle.template == REFUSED for item in items)


def parameter(bundle: Bundle, name: str) -> int:
    """The value of a whole-number parameter of the first Modelfile."""
    return int(dict(bundle.modelfile.parameters)[name])


def modelfile_texts(items: Sequence[Item], *, over_http: bool) -> tuple[dict[str, str], list[str]]:
    """The texts of all Modelfiles by file name, and notes.

    With `over_http`, a Modelfile that cannot express its values is left out with a note: Ollama's HTTP API carries
    them.

    Raises:
        ModelfileError: a Modelfile cannot express a value, and it is not `over_http`.
    """
    texts: dict[str, str] = {}
    notes: list[str] = []
    for item in items:
        files = [(item.plan.modelfile, item.bundle.modelfile)]
        if item.plan.gpu_tags:
            files.append((item.plan.gpu_modelfile, item.bundle.gpu))
        for name, modelfile in files:
            try:
                texts[name] = write_modelfile(modelfile)
            except ModelfileError as error:
                if not over_http:
                    raise
                notes.append(f"{name} is not written: {error}")
    return texts, notes


def write_texts(folder: Path, texts: Mapping[str, str], *, force: bool) -> list[Path]:
    """Write the files; one that has another content is replaced only with `force`, so no edited file is lost.

    Raises:
        OutputError: a file has another content, or the folder cannot be written.
    """
    paths = {folder / name: text.encode() for name, text in texts.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, data in paths.items():
            if not force and path.exists() and path.read_bytes() != data:
                raise OutputError(
                    f"{path} already exists with another content; overwrite it with --force, or pass another folder"
                    " with -o" + (f", or use it with --plan {path}" if path.name == FILE_NAME else "")
                )
        for path, data in paths.items():
            write_atomically(path, data)
    except OSError as error:
        raise OutputError(
            f"cannot write in {folder} ({error.strerror or error}); pass another folder with -o"
        ) from error
    return list(paths)


def _relative(file: Path, folder: Path) -> str:
    return Path(os.path.relpath(file.resolve(), folder.resolve())).as_posix()


def _from_value(file: Path, folder: Path) -> str:
    """A path that FROM cannot take for a model's name."""
    path = _relative(file, folder)
    return path if path.startswith("../") else f"./{path}"
