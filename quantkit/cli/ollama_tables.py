"""What `quantkit ollama` prints: the table of tags, the warnings, and the JSON document."""

from collections.abc import Sequence
from typing import Any

from quantkit.cli.output import Out, printable
from quantkit.gguf.projector_file import doubt_of
from quantkit.publish.ollama.bundle import REFUSED, Bundle
from quantkit.publish.ollama.publication import parameter
from quantkit.publish.ollama.push import Item
from quantkit.publish.ollama.rendering import COMMENT_CHARACTERS
from quantkit.publish.ollama.tags import TagPlan
from quantkit.units import human_bytes

NO_INDEX = (
    "whether Ollama stores one of its built-in templates instead is checked only after --create: no `ollama` program"
    " with a template index is on PATH"
)


def show_plan(plan: TagPlan, items: Sequence[Item], out: Out) -> None:
    """Print the tags and the Modelfile of each."""
    rows = [
        (plan.name.tagged(tag), item.plan.type, "" if tag == tags[0] else f"= {tags[0]}", modelfile)
        for item in items
        for tags, modelfile in (
            (item.plan.tags, item.plan.modelfile),
            (item.plan.gpu_tags, item.plan.gpu_modelfile),
        )
        for tag in tags
    ]
    out.table((("tag", "left"), ("type", "left"), ("same as", "left"), ("from", "left")), rows)


def show_notes(items: Sequence[Item], out: Out, *, vram: int | None, index_read: bool) -> None:
    """Print the warnings and notes about the templates and parameters, each once."""
    for bundle in {item.bundle.reason: item.bundle for item in items if item.bundle.template == REFUSED}.values():
        out.warn(
            f"the tags get no TEMPLATE and need Ollama {bundle.modelfile.requires} or later, because no template of"
            f" Ollama's language gives the prompts of the GGUF's chat template: {bundle.reason or ''}"
        )
        if not index_read:
            out.note(NO_INDEX)
    for item in {item.replacement: item for item in items if item.replacement}.values():
        assert item.replacement is not None
        out.warn(
            f"Ollama would store its built-in template '{printable(item.replacement.name)}' in place of the GGUF's own"
            f" (distance {item.replacement.distance}, it replaces under 100); add a Jinja comment of"
            f" {COMMENT_CHARACTERS} characters to the chat template and convert with --chat-template FILE"
        )
    for projector, model in {item.projector: item.facts.files[0] for item in items if item.projector}.items():
        if doubt := doubt_of(model, projector):
            out.warn(doubt)
        out.note(f"{projector.name}, the projector, is the last FROM line; leave it out with --mmproj none")
    if vram is not None:
        for item in items:
            layers, n_ctx = parameter(item.bundle, "num_gpu"), parameter(item.bundle, "num_ctx")
            fits = f"num_gpu {layers} fits {human_bytes(vram)} with num_ctx {n_ctx}"
            out.note(f"{item.facts.files[0].name}: {fits}, by the plan")
    for note in dict.fromkeys(note for item in items for note in item.bundle.notes):
        out.note(printable(note))


def document(plan: TagPlan, items: Sequence[Item], dry_run: bool) -> dict[str, Any]:
    """The JSON document of the plan."""
    return {
        "command": "ollama",
        "name": str(plan.name),
        "dry_run": dry_run,
        "quantizations": [
            {
                "type": item.plan.type,
                "files": list(item.plan.files),
                "tags": list(item.plan.tags),
                "gpu_tags": list(item.plan.gpu_tags),
                "modelfile": item.plan.modelfile,
                "gpu_modelfile": item.plan.gpu_modelfile or None,
                **_described(item.bundle),
                "replaced_by": item.replacement.name if item.replacement else None,
                **({"projector": str(item.projector)} if item.projector else {}),
                **({"adapter": str(item.adapter)} if item.adapter else {}),
            }
            for item in items
        ],
    }


def _described(bundle: Bundle) -> dict[str, Any]:
    return {
        "template": bundle.template,
        "template_reason": bundle.reason,
        "requires": bundle.modelfile.requires,
        "parameters": [[key, value] for key, value in bundle.modelfile.parameters],
        "notes": list(bundle.notes),
    }
