"""A tag plan carried out on an Ollama server: every blob sent once, every tag created and checked, every tag pushed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from quantkit.errors import PublishError
from quantkit.progress import SILENT, Progress
from quantkit.publish.ollama.bundle import REFUSED, Bundle, jinja_features
from quantkit.publish.ollama.facts import Facts
from quantkit.publish.ollama.modelfile import Modelfile
from quantkit.publish.ollama.rendering import check_stored, renders_jinja, replaced
from quantkit.publish.ollama.server import Server, create_request, digest_of
from quantkit.publish.ollama.tags import Quantization, TagPlan
from quantkit.publish.ollama.template_index import BuiltInTemplate, Replacement, replacement


@dataclass(frozen=True)
class Item:
    """One quantization of the plan, its file's facts and its Modelfiles.

    `replacement`: the built-in template that `create` would store in place of the GGUF's own, if that is known.
    `projector`: the file with which the model sees images, the last FROM line. `adapter`: the file of ADAPTER.
    """

    plan: Quantization
    facts: Facts
    bundle: Bundle
    replacement: Replacement | None = None
    projector: Path | None = None
    adapter: Path | None = None

    @property
    def sent_files(self) -> tuple[Path, ...]:
        """The files that the server needs: the model's, the projector and the adapter."""
        return (*self.facts.files, *(file for file in (self.projector, self.adapter) if file))


@dataclass(frozen=True)
class Created:
    """The names of the created tags, notes about them, and the bytes that were sent or already on the server."""

    tags: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sent: int = 0
    kept: int = 0


def foresee_replacement(facts: Facts, bundle: Bundle, index: tuple[BuiltInTemplate, ...]) -> Replacement | None:
    """The built-in template of `index` that `create` stores because the Modelfile has no TEMPLATE, or None."""
    if bundle.template != REFUSED or facts.chat_template is None:
        return None
    return replacement(facts.chat_template, index)


def create_all(
    server: Server,
    plan: TagPlan,
    items: Sequence[Item],
    progress: Progress = SILENT,
) -> Created:
    """Create every tag on the server and compare what it stored with what was sent.

    A second run sends only the blobs that the server does not have. `progress` counts the bytes of each file twice:
    hashed, then sent or already on the server.

    Raises:
        PublishError: no server, it refuses, it goes away, or prompts of a tag would not be those of its Modelfile.
    """
    version = server.version()
    for item in items:
        # A server that renders Jinja may prefer the GGUF's own to the built-in it stored: that is read back.
        may_prefer_own = renders_jinja(version) and jinja_features(item.facts.chat_template or "")
        if item.replacement is not None and not may_prefer_own:
            action = f"would store its built-in template {item.replacement.name!r}"
            raise PublishError(replaced(action, plan.name.tagged(item.plan.tags[0]), item.facts))
    total = 2 * sum(file.stat().st_size for item in items for file in item.sent_files)
    progress.start("publishing", total)
    tags: list[str] = []
    notes: list[str] = []
    if not renders_jinja(version) and any(item.bundle.template == REFUSED for item in items):
        notes.append(
            f"this server is Ollama {version}, which ignores the GGUF's own template; it can make and push the tags"
        )
    sent = kept = 0
    for item in items:
        digests, sent_bytes, kept_bytes = _send_files(server, item.sent_files, progress)
        sent, kept = sent + sent_bytes, kept + kept_bytes
        for group, modelfile, files in (
            (item.plan.tags, item.bundle.modelfile, digests),
            (item.plan.gpu_tags, item.bundle.gpu, None),
        ):
            if group:
                names = [plan.name.tagged(tag) for tag in group]
                note = _create_and_check(server, names[0], modelfile, files, item, progress)
                notes += [note] if note else []
                for copy in names[1:]:
                    # The same manifest, so a copy cannot differ.
                    server.copy(names[0], copy)
                tags += names
    return Created(tags, list(dict.fromkeys(notes)), sent, kept)


def _send_files(server: Server, files: Sequence[Path], progress: Progress) -> tuple[dict[str, str], int, int]:
    """The digests of files by name, the bytes sent, and the bytes the server already had."""
    digests: dict[str, str] = {}
    sent = kept = 0
    for file in files:
        digest = digests[file.name] = digest_of(file, progress)
        size = file.stat().st_size
        if server.has_blob(digest):
            kept += size
            progress.advance(size, file.name)
        else:
            server.send_blob(file, digest, progress)
            sent += size
    return digests, sent, kept


def _create_and_check(
    server: Server, name: str, modelfile: Modelfile, files: dict[str, str] | None, item: Item, progress: Progress
) -> str | None:
    request = create_request(name, modelfile, files)
    built_in = server.create(request, lambda text: progress.advance(0, text))
    return check_stored(name, server.show(name), item.facts, item.bundle, built_in)


def push_all(
    server: Server,
    plan: TagPlan,
    *,
    insecure: bool = False,
    progress: Progress = SILENT,
) -> list[str]:
    """Push every tag to the registry; returns the names. `progress` counts tags.

    Raises:
        PublishError: no server, the registry refuses, or the connection breaks.
    """
    names = [plan.name.tagged(tag) for tag in plan.tags()]
    progress.start("pushing", len(names))
    for name in names:

        def show(status: str, digest: str, completed: int, total: int, name: str = name) -> None:
            part = f" {100 * completed // total}%" if digest and total else ""
            progress.advance(0, f"{name}: {status}{part}")

        server.push(name, insecure=insecure, progress=show)
        progress.advance(1, name)
    return names
