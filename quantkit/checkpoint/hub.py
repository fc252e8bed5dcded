"""A checkpoint from the hub by huggingface_hub: its cache, token, offline mode and endpoint.

Small files come first, then the headers of the safetensors files by range requests. So an unsuitable model is refused
before its weights are fetched; then the weight files.
"""

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status
from huggingface_hub.utils import tqdm as hub_tqdm

from quantkit.checkpoint.checkpoint import Checkpoint, Origin
from quantkit.checkpoint.folder import SAFETENSORS, Weights, choose_weights, parse_config, read_small_file
from quantkit.checkpoint.hub_errors import DroppedError, UnreachableError, explain, is_transient, not_cached
from quantkit.checkpoint.not_checkpoint import describe_names
from quantkit.checkpoint.quantized.settings import is_possibly_stale
from quantkit.checkpoint.safetensors_file import PREFIX_BYTES, Header, header_length, parse_header
from quantkit.checkpoint.sources import SETTINGS_FILES, Checks, checked_config, open_folder
from quantkit.checkpoint.weights import combine, read_index, shard_names
from quantkit.errors import CheckpointError, HubError
from quantkit.files import free_space
from quantkit.progress import SILENT, Progress

# The files besides the weights that a conversion may need or copy.
_SMALL_FILES = ("config.json", *SETTINGS_FILES, "README.md", "LICENSE*", "modules.json", "*processor_config.json")
# of an embedding model, which modules.json names
_POOLING = "*_Pooling/config.json"
_PAUSES = (1.0, 2.0)
_HEADER_THREADS = 8
_TIMEOUT = 20.0
"""Seconds without an answer before a request counts as failed."""

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """A repository to open; the revision is None for the default branch."""

    repo_id: str
    revision: str | None
    source: str
    token: str | None = None
    cache_dir: Path | None = None
    progress: Progress = SILENT
    checks: Checks | None = None

    @property
    def cache(self) -> Path:
        """The hub cache in use."""
        return self.cache_dir or Path(constants.HF_HUB_CACHE)


@dataclass(frozen=True)
class _Listing:
    commit: str
    sizes: Mapping[str, int | None]


def open_from_hub(request: Request, *, offline: bool, headers_only: bool) -> Checkpoint:
    """The checkpoint of a repository; see `open_checkpoint`. Raises HubError, or as `open_folder`.

    If the hub cannot be reached, a complete copy in the cache is used.
    """
    with _quiet():
        if offline or constants.HF_HUB_OFFLINE:
            return _from_cache(request, not_cached(request.repo_id, request.cache))
        try:
            listing = _list_files(request, request.revision)
        except UnreachableError as error:
            return _from_cache(request, error)
        if "config.json" not in listing.sizes:
            other = describe_names(listing.sizes)
            raise HubError(
                f"{request.repo_id} {other}"
                if other
                else f"{request.repo_id} has no config.json on the hub; take the model's Hugging Face checkpoint"
            )
        # The request has the user's name of the revision, so that the cache finds it by the same name offline.
        folder = Path(_download(request, request.revision, "config.json")).parent
        if folder.name != listing.commit:  # the branch moved between the two requests
            listing = _list_files(request, folder.name)
        config = parse_config(read_small_file(folder, "config.json", request.source), request.source)
        completed, notes = checked_config(config, request.checks)
        for name in sorted(listing.sizes):
            if _is_small_file(name):
                _download(request, listing.commit, name)
        chosen = choose_weights(listing.sizes, request.source)
        if chosen.index is not None:
            _download(request, listing.commit, chosen.index)
        weight_map = read_index(folder, chosen, request.source)
        files = shard_names(chosen, weight_map)
        for file in files:
            if file not in listing.sizes:
                raise CheckpointError(f"{request.source} lacks its weight file {file}; tell the repository's owner")
        origin = _origin(request, folder)
        # The headers show what the model lacks and whether it is quantized, before the weights are downloaded.
        checked = is_possibly_stale(config) is not None or request.checks is not None
        missing = any(_cached(request, listing.commit, file) is None for file in files)
        if headers_only or (checked and missing and chosen.kind == SAFETENSORS):
            headers = _fetch_headers(request, listing, chosen, files)
            remote = Checkpoint(origin, completed, combine(headers, weight_map, chosen, request.source, None), notes)
            if headers_only:
                return remote
            if request.checks is not None:
                request.checks.tensors(remote)
        _download_weights(request, listing, files)
        return open_folder(origin, request.checks)


def fetch_files(request: Request, names: Sequence[str], *, offline: bool) -> Path:
    """The snapshot folder of a repository with those of `names` that it has; the first one must exist.

    If the hub cannot be reached, the copy in the cache is used. Raises HubError.
    """
    with _quiet():
        if offline or constants.HF_HUB_OFFLINE:
            return _cached_folder(request, names[0], not_cached(request.repo_id, request.cache))
        try:
            listing = _list_files(request, request.revision)
        except UnreachableError as error:
            return _cached_folder(request, names[0], error)
        if names[0] not in listing.sizes:
            raise HubError(f"{request.repo_id} has no {names[0]} on the hub; check the name")
        # by the user's name of the revision, so that the cache finds it by the same name offline
        folder = Path(_download(request, request.revision, names[0])).parent
        for name in names[1:]:
            if name in listing.sizes:
                _download_weights(request, replace(listing, commit=folder.name), [name])
        return folder


def _cached_folder(request: Request, name: str, otherwise: HubError) -> Path:
    """The snapshot folder in the cache that has the file `name`; raises `otherwise` without one."""
    revision = request.revision or constants.DEFAULT_REVISION
    cached = try_to_load_from_cache(request.repo_id, name, cache_dir=request.cache, revision=revision)
    if not isinstance(cached, str):
        raise otherwise
    return Path(cached).parent


def _origin(request: Request, folder: Path) -> Origin:
    return Origin(request.repo_id.split("/")[-1], request.source, folder, request.repo_id, folder.name)


def _is_small_file(name: str) -> bool:
    patterns = _SMALL_FILES if "/" not in name else (_POOLING,)
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _from_cache(request: Request, otherwise: HubError) -> Checkpoint:
    """The repository from the cache; raises `otherwise` if the cache has no file of it."""
    revision = request.revision or constants.DEFAULT_REVISION
    try:
        cached = try_to_load_from_cache(request.repo_id, "config.json", cache_dir=request.cache, revision=revision)
    except HFValidationError as error:
        raise explain(error, request.repo_id, request.revision, "config.json", request.cache) from error
    if not isinstance(cached, str):
        raise otherwise
    try:
        return open_folder(_origin(request, Path(cached).parent), request.checks)
    except CheckpointError as error:
        if isinstance(otherwise, UnreachableError):
            raise otherwise from error
        raise HubError(
            f"{request.repo_id} is not complete in the hub cache and offline mode is on ({error}); fetch it once online"
        ) from error


def _list_files(request: Request, revision: str | None) -> _Listing:
    def call() -> _Listing:
        api = HfApi(token=request.token)
        info = api.model_info(request.repo_id, revision=revision, files_metadata=True, timeout=_TIMEOUT)
        if not info.sha:
            raise HubError(f"{constants.ENDPOINT} does not answer like a hub for {request.repo_id}; check HF_ENDPOINT")
        return _Listing(info.sha, {file.rfilename: file.size for file in info.siblings or ()})

    return _attempt(request, "its list of files", call)


def _download(request: Request, revision: str | None, name: str, bar: type | None = None) -> str:
    def call() -> str:
        path: str = hf_hub_download(
            request.repo_id,
            name,
            revision=revision,
            token=request.token,
            cache_dir=request.cache,
            tqdm_class=bar or _bar(lambda done: None),
        )
        return path

    return _attempt(request, name, call)


def _download_weights(request: Request, listing: _Listing, files: list[str]) -> None:
    """Fetch the weight files into the cache, reporting bytes over all of them together."""
    sizes = {file: listing.sizes[file] or 0 for file in files}
    missing = [file for file in files if not _cached(request, listing.commit, file)]
    need = sum(sizes[file] for file in missing)
    free = free_space(request.cache)
    if need > free:
        raise HubError(
            f"the weights of {request.repo_id} take {need / 1e9:.1f} GB but the hub cache {request.cache} has only "
            f"{free / 1e9:.1f} GB free; free space, or set HF_HUB_CACHE to a larger disk"
        )
    request.progress.start("downloading", sum(sizes.values()))
    for file in files:
        request.progress.advance(0, file)
        counted = 0

        def count(done: int, file: str = file, size: int = sizes[file]) -> None:
            nonlocal counted
            request.progress.advance(min(done, size) - counted, file)
            counted = min(done, size)

        _download(request, listing.commit, file, _bar(count))
        count(sizes[file])


def _cached(request: Request, commit: str, file: str) -> Path | None:
    cached = try_to_load_from_cache(request.repo_id, file, cache_dir=request.cache, revision=commit)
    return Path(cached) if isinstance(cached, str) else None


def _bar(report: Callable[[int], None]) -> type[Any]:
    """A progress bar class for huggingface_hub that draws nothing and reports the bytes of one file.

    A download may make several bars for one file (bytes received, bytes written): the furthest counts.
    """
    furthest = 0

    class Bar(hub_tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._done = int(kwargs.get("initial") or 0)
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            nonlocal furthest
            self._done += int(n or 0)
            if self._done > furthest:
                furthest = self._done
                report(furthest)

    return Bar


def _fetch_headers(request: Request, listing: _Listing, chosen: Weights, files: list[str]) -> dict[str, Header]:
    if chosen.kind != SAFETENSORS:
        raise HubError(
            f"{request.repo_id} has only {files[0]}, whose contents cannot be listed without downloading it; "
            f"convert it without --dry-run, or take a repository with safetensors"
        )

    def fetch(file: str) -> Header:
        return _attempt(request, f"the header of {file}", lambda: _fetch_header(request, listing, file))

    with ThreadPoolExecutor(_HEADER_THREADS) as pool:
        return dict(zip(files, pool.map(fetch, files), strict=True))


def _fetch_header(request: Request, listing: _Listing, file: str) -> Header:
    """The header of a remote safetensors file: its length first, so that an absurd one is never fetched."""
    url = hf_hub_url(request.repo_id, file, revision=listing.commit)
    known = listing.sizes[file]
    prefix, size = _fetch_range(request, url, 0, min(PREFIX_BYTES, known or PREFIX_BYTES))
    file_size = size or known or 0
    length = header_length(prefix, file, file_size)
    header, _ = _fetch_range(request, url, PREFIX_BYTES, length) if length else (b"", None)
    return parse_header(header, file, file_size)


def _fetch_range(request: Request, url: str, start: int, length: int) -> tuple[bytes, int | None]:
    """(bytes start..start+length of a remote file, the file's size as the server states it)."""
    headers = {
        **build_hf_headers(token=request.token),
        "Range": f"bytes={start}-{start + length - 1}",
        "Accept-Encoding": "identity",
    }
    with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT) as response:
        hf_raise_for_status(response)
        # A server may ignore the range and send the file from its start: the needed part is read, the rest is not.
        skip = 0 if response.status_code == 206 else start
        stated = response.headers.get("Content-Range", "").rpartition("/")[2] or response.headers.get(
            "Content-Length", ""
        )
        data = bytearray()
        for chunk in response.iter_bytes():
            data += chunk
            if len(data) >= skip + length:
                break
    if len(data) < skip + length:
        raise DroppedError(f"{len(data)} of {skip + length} bytes came")
    return bytes(data[skip : skip + length]), int(stated) if stated.isdigit() else None


def _attempt(request: Request, what: str, call: Callable[[], T]) -> T:
    """The call's result, repeated after a transient failure; other failures become a HubError of one sentence."""
    for pause in (*_PAUSES, None):
        try:
            return call()
        except CheckpointError:
            raise
        except Exception as error:  # the client and its libraries raise errors of many classes
            if pause is None or not is_transient(error):
                raise explain(error, request.repo_id, request.revision, what, request.cache) from error
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the log lines and warnings of huggingface_hub; its failures are exceptions."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    if not constants.HF_DEBUG:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
