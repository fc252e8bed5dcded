"""A tag plan carried out on an Ollama server: every blob sent once, every tag made, every tag pushed."""

from collections.abc import Sequence
from dataclasses import dataclass

from quantkit.progress import SILENT, Progress
from quantkit.publish.ollama.bundle import Bundle
from quantkit.publish.ollama.facts import Facts
from quantkit.publish.ollama.server import Server, create_request, digest_of
from quantkit.publish.ollama.tags import Quantization, TagPlan


@dataclass(frozen=True)
class Item:
    """One quantization of the plan, its file's facts and its Modelfiles."""

    plan: Quantization
    facts: Facts
    bundle: Bundle


@dataclass(frozen=True)
class Made:
    """The names of the created tags, and the bytes of the blobs that were sent and that the server already had."""

    tags: list[str]
    sent: int
    kept: int


def create_all(
    server: Server,
    plan: TagPlan,
    items: Sequence[Item],
    progress: Progress = SILENT,
) -> Made:
    """Create every tag on the server. A second run sends only the blobs that the server does not have.

    `progress` counts the bytes of each file twice: hashed, then sent or already on the server.

    Raises:
        PublishError: no server, it refuses, or it goes away.
    """
    server.version()
    total = 2 * sum(file.stat().st_size for item in items for file in item.facts.files)
    progress.start("publishing", total)
    tags: list[str] = []
    sent = kept = 0
    for item in items:
        digests: dict[str, str] = {}
        for file in item.facts.files:
            digest = digests[file.name] = digest_of(file, progress)
            size = file.stat().st_size
            if server.has_blob(digest):
                kept += size
                progress.advance(size, file.name)
            else:
                server.send_blob(file, digest, progress)
                sent += size
        first = plan.name.tagged(item.plan.tags[0])
        server.create(create_request(first, item.bundle.modelfile, digests), lambda text: progress.advance(0, text))
        tags += [first, *_copies(server, plan, item.plan.tags)]
        if item.plan.gpu_tags:
            first = plan.name.tagged(item.plan.gpu_tags[0])
            server.create(create_request(first, item.bundle.gpu), lambda text: progress.advance(0, text))
            tags += [first, *_copies(server, plan, item.plan.gpu_tags)]
    return Made(tags, sent, kept)


def _copies(server: Server, plan: TagPlan, tags: Sequence[str]) -> list[str]:
    """The further tags of one model, by copying the first: the same manifest, so nothing can differ."""
    source, copies = plan.name.tagged(tags[0]), [plan.name.tagged(tag) for tag in tags[1:]]
    for copy in copies:
        server.copy(source, copy)
    return copies


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
