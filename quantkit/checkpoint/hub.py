"""A checkpoint from a hub: Hugging Face's or ModelScope.

Small files come first, then the headers of the safetensors files by range requests. So an unsuitable model is refused
before its weights are fetched; then the weight files.
"""

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import constants

from quantkit.checkpoint.bounded import bounded_answers
from quantkit.checkpoint.checkpoint import Checkpoint, Origin
from quantkit.checkpoint.folder import (
    SAFETENSORS,
    SMALL_FILE,
    Weights,
    choose_weights,
    parse_config,
    read_small_file,
)
from quantkit.checkpoint.hub_errors import UnreachableError, is_transient
from quantkit.checkpoint.huggingface import HuggingFace
from quantkit.checkpoint.jsonfile import read_hints
from quantkit.checkpoint.modelscope import ModelScope
from quantkit.checkpoint.modules import module_files
from quantkit.checkpoint.not_checkpoint import describe_names
from quantkit.checkpoint.quantized.settings import BESIDE, is_possibly_stale
from quantkit.checkpoint.ranges import Ranges
from quantkit.checkpoint.remote_code import LARGEST, references, with_imports
from quantkit.checkpoint.remote_headers import fetch_headers
from quantkit.checkpoint.repository import Listing, Repository
from quantkit.checkpoint.sources import SETTINGS_FILES, Access, Checks, HubId, checked_config, open_folder
from quantkit.checkpoint.streamed import StreamedWeights
from quantkit.checkpoint.weights import combine, open_file, read_index, shard_names
from quantkit.errors import CheckpointError, HubError
from quantkit.files import free_space
from quantkit.progress import SILENT, Progress
from quantkit.units import human_bytes

# The files besides the weights that a conversion may need or copy.
_SMALL_FILES = (
    "config.json",
    *SETTINGS_FILES,
    *BESIDE,
    "README.md",
    "LICENSE*",
    "modules.json",
    "*processor_config.json",
)
# of an embedding model, which modules.json names
_MODULES = ("*_Pooling/config.json", "*_Dense/config.json")
_PAUSES = (1.0, 2.0)

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """A repository to open; `source` is the user's name of it."""

    where: HubId
    source: str
    access: Access
    progress: Progress = SILENT
    checks: Checks | None = None

    @cached_property
    def repository(self) -> Repository:
        """The repository on its hub."""
        hub = ModelScope if self.where.hub == "modelscope" else HuggingFace
        return hub(self.where.repo_id, self.where.revision, self.access.token, self.access.cache_dir)


def open_from_hub(request: Request) -> Checkpoint:
    """The checkpoint of a repository; see `open_checkpoint`. Raises HubError, or as `open_folder`.

    If the hub cannot be reached, a complete copy in the cache is used.
    """
    repository = request.repository
    with _quiet():
        if request.access.offline or repository.offline:
            return _from_cache(request, repository.not_cached())
        try:
            listing = _list_files(repository)
        except UnreachableError as error:
            return _from_cache(request, error)
        return _open_listed(request, listing)


def _open_listed(request: Request, listing: Listing) -> Checkpoint:
    """The small files, then the headers of the weights if they are needed or asked for, then the weights."""
    repository, access = request.repository, request.access
    folder, listing = _download_config(repository, listing)
    config = parse_config(read_small_file(folder, "config.json", request.source), request.source)
    completed, notes = checked_config(config, request.checks)
    for name in sorted(listing.sizes):
        if _is_small_file(name):
            _download(repository, listing, name)
    if access.code:
        _download_code(repository, listing, [config, read_hints(folder / "tokenizer_config.json")])
    chosen = choose_weights(listing.sizes, request.source)
    if chosen.index is not None:
        _download(repository, listing, chosen.index)
    weight_map = read_index(folder, chosen, request.source)
    files = _weight_files(request, listing, chosen, weight_map)
    origin = _origin(request, folder)
    # The headers show what the model lacks and whether it is quantized, before the weights are downloaded.
    checked = is_possibly_stale(config) is not None or request.checks is not None
    local = {file: path for file in files if (path := repository.cached(listing, file)) is not None}
    missing = len(local) < len(files)
    if access.stream and missing and chosen.kind != SAFETENSORS:
        raise HubError(
            f"{repository.repo_id} has only {files[0]}, a pickle, and --stream reads safetensors; leave out --stream"
        )
    ranges = Ranges(repository.repo_id, repository.check)
    if access.headers_only or (missing and access.stream) or (checked and missing and chosen.kind == SAFETENSORS):
        headers = fetch_headers(repository, listing, ranges, chosen, files)
        remote = Checkpoint(origin, completed, combine(headers, weight_map, chosen, request.source, None), notes)
        if access.headers_only:
            return remote
        if request.checks is not None:
            request.checks.tensors(remote)
        if access.stream:
            weights = combine(headers, weight_map, chosen, request.source, None)
            descriptors = {file: open_file(path, request.source) for file, path in local.items()}
            away = [tensor for tensor in weights.tensors.values() if tensor.file not in local]
            streamed = StreamedWeights(repository, listing, ranges, away)
            return Checkpoint(origin, completed, replace(weights, descriptors=descriptors, streamed=streamed), notes)
    _download_weights(request, listing, files)
    return open_folder(origin, request.checks)


def _download_config(repository: Repository, listing: Listing) -> tuple[Path, Listing]:
    """The snapshot folder with config.json, and the listing of the same commit. Raises HubError without a config."""
    if "config.json" not in listing.sizes:
        other = describe_names(listing.sizes)
        fault = other or f"has no config.json on {repository.hub}; take the model's Hugging Face checkpoint"
        raise HubError(f"{repository.repo_id} {fault}")
    # by the user's name of the revision, so that the cache finds it by the same name offline
    folder = _download(repository, listing, "config.json", by_user_revision=True).parent
    if folder.name != listing.state:  # the branch moved between the two requests
        listing = _list_files(repository, folder.name)
    return folder, listing


def _weight_files(
    request: Request, listing: Listing, chosen: Weights, weight_map: Mapping[str, str] | None
) -> list[str]:
    """The names of all weight files, those of Dense modules too. Raises CheckpointError for one that is not listed."""
    files = shard_names(chosen, weight_map)
    for file in files:
        if file not in listing.sizes:
            raise CheckpointError(f"{request.source} lacks its weight file {file}; tell the repository's owner")
    return [*files, *(module_files(listing.sizes) if chosen.kind == SAFETENSORS else ())]


def fetch_files(request: Request, names: Sequence[str]) -> Path:
    """The snapshot folder of a repository with those of `names` that it has; the first one must exist.

    If the hub cannot be reached, the copy in the cache is used. Raises HubError.
    """
    repository = request.repository
    with _quiet():
        if request.access.offline or repository.offline:
            return _cached_folder(repository, names[0], repository.not_cached())
        try:
            listing = _list_files(repository)
        except UnreachableError as error:
            return _cached_folder(repository, names[0], error)
        if names[0] not in listing.sizes:
            raise HubError(f"{repository.repo_id} has no {names[0]} on {repository.hub}; check the name")
        # by the user's name of the revision, so that the cache finds it by the same name offline
        folder = _download(repository, listing, names[0], by_user_revision=True).parent
        if folder.name != listing.state:
            listing = _list_files(repository, folder.name)
        for name in names[1:]:
            if name in listing.sizes:
                _download_weights(request, listing, [name])
        return folder


def _cached_folder(repository: Repository, name: str, otherwise: HubError) -> Path:
    """The snapshot folder in the cache that has the file `name`; raises `otherwise` without one."""
    cached = repository.cached_by_user_revision(name)
    if cached is None:
        raise otherwise
    return cached.parent


def _origin(request: Request, folder: Path) -> Origin:
    repository = request.repository
    return Origin(repository.repo_id.split("/")[-1], request.source, folder, request.where.recorded, folder.name)


def _is_small_file(name: str) -> bool:
    patterns = _SMALL_FILES if "/" not in name else _MODULES
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _from_cache(request: Request, otherwise: HubError) -> Checkpoint:
    """The repository from the cache; raises `otherwise` if the cache has no file of it."""
    folder = _cached_folder(request.repository, "config.json", otherwise)
    try:
        return open_folder(_origin(request, folder), request.checks)
    except CheckpointError as error:
        if isinstance(otherwise, UnreachableError):
            raise otherwise from error
        raise HubError(
            f"{request.repository.repo_id} is not complete in the hub cache and offline mode is on ({error});"
            " fetch it once online"
        ) from error


def _list_files(repository: Repository, state: str | None = None) -> Listing:
    return _attempt(repository, "its list of files", lambda: repository.list_files(state))


def _download(repository: Repository, listing: Listing, name: str, *, by_user_revision: bool = False) -> Path:
    """Fetch a small file. Raises HubError if the hub lists one that is too large for it."""
    size = listing.sizes.get(name) or 0
    if size > SMALL_FILE:
        raise HubError(
            f"{repository.hub} lists {human_bytes(size)} for {name} of {repository.repo_id}, far too large for what it"
            " is; tell the repository's owner"
        )
    return _attempt(
        repository,
        name,
        lambda: repository.download(listing, name, lambda done: None, by_user_revision=by_user_revision),
    )


def _download_code(repository: Repository, listing: Listing, configs: list[dict[str, Any]]) -> None:
    """Fetch the Python files that these configs name (auto_map), with what they import; nothing runs them."""

    def read(name: str) -> bytes | None:
        known = name in listing.sizes and (listing.sizes[name] or 0) <= LARGEST
        return _download(repository, listing, name).read_bytes() if known else None

    with_imports(references(configs)[0], read)


def _download_weights(request: Request, listing: Listing, files: list[str]) -> None:
    """Fetch the weight files into the cache, reporting bytes over all of them together."""
    repository = request.repository
    sizes = {file: listing.sizes[file] or 0 for file in files}
    missing = [file for file in files if repository.cached(listing, file) is None]
    need = sum(sizes[file] for file in missing)
    free = free_space(repository.cache)
    if need > free:
        raise HubError(
            f"the weights of {repository.repo_id} take {human_bytes(need)} but the hub cache {repository.cache} has"
            f" only {human_bytes(free)} free; free space, set {repository.cache_variable} to a larger disk, or convert"
            " with --stream"
        )
    request.progress.start("downloading", sum(sizes.values()))
    for file in files:
        request.progress.advance(0, file)
        counted = 0

        def count(done: int, file: str = file, size: int = sizes[file]) -> None:
            nonlocal counted
            request.progress.advance(min(done, size) - counted, file)
            counted = min(done, size)

        def fetch(file: str = file, count: Callable[[int], None] = count) -> Path:
            return repository.download(listing, file, count)

        _attempt(repository, file, fetch)
        count(sizes[file])


def _attempt(repository: Repository, item: str, call: Callable[[], T]) -> T:
    """The call's result, repeated after a transient failure; other failures become a HubError of one sentence."""
    for pause in (*_PAUSES, None):
        try:
            return call()
        except CheckpointError:
            raise
        except Exception as error:  # the client and its libraries raise errors of many classes
            if pause is None or not is_transient(error):
                raise repository.explain(error, item) from error
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the log lines and warnings of huggingface_hub, and bound its answers; its failures are exceptions."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    if not constants.HF_DEBUG:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), bounded_answers():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
