"""Upload of an output folder to the hub with huggingface_hub's client: its token, endpoint and transfer.

Files are sent one after the other. One commit publishes all, so readers never see half of a folder. The hub keeps sent
files for a while: after an interruption the same call sends the missing ones.
"""

import hashlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    build_hf_headers,
    disable_progress_bars,
    enable_progress_bars,
    get_session,
    hf_raise_for_status,
)

from quantkit import __version__
from quantkit.checkpoint.bounded import bounded_answers
from quantkit.errors import PublishError, UsageError
from quantkit.progress import SILENT, Progress
from quantkit.publish.card.metadata import is_hub_id
from quantkit.publish.hub_errors import LOGIN, explain

# Unfinished, failed, replaced and hidden files are never uploaded.
_PRIVATE = ("*.partial", "*.failed", "*.journal", "*.bak*", "*.tmp", "*.lock", ".*", "__pycache__")
_CARD = "README.md"
_PATHS_AT_ONCE = 100
_PIECE = 1 << 22


@dataclass(frozen=True)
class Pushed:
    """A file of the repository: its path and size."""

    path: str
    bytes: int


def push_folder(
    folder: Path, repo_id: str, *, private: bool = False, dry_run: bool = False, progress: Progress | None = None
) -> list[Pushed]:
    """Push every finished file of `folder` to the model repository `repo_id`, and return the files that were sent.

    The repository is created if it does not exist. Files that the hub already has are not sent and not returned.
    Unfinished files (`*.partial`), journals, `*.failed`, `*.bak`, hidden files and links out of the folder are never
    sent. Nothing on the hub is deleted. `private` creates a private repository, and refuses an existing public one.
    `dry_run` makes no request and returns every file of the folder. `progress` counts bytes; without it the client
    shows its own bars on a terminal.

    Raises:
        UsageError: the folder is missing or empty, or the repository's name is malformed.
        PublishError: a token, permission or space is missing; the hub rejects the card or cannot be reached.
    """
    if not is_hub_id(repo_id):
        raise UsageError(f"{repo_id!r} is not a hub repository; pass ORG/NAME with letters, digits, - _ and .")
    files = files_to_push(folder)
    if dry_run:
        return files
    if get_token() is None:
        raise PublishError(f"not logged in to the hub; {LOGIN}")
    with _quiet(progress is not None):
        try:
            return _push(HfApi(), folder, repo_id, files, private, progress or SILENT)
        except (PublishError, UsageError):
            raise
        except Exception as error:  # the client and its libraries raise errors of many kinds
            raise explain(error, repo_id) from error


def files_to_push(folder: Path) -> list[Pushed]:
    """The finished files of a folder, sorted by name.

    Raises:
        UsageError: the folder is missing or empty.
    """
    if not folder.is_dir():
        raise UsageError(f"folder {folder} is not found; pass an output folder")
    root, files = folder.resolve(), []
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _is_private(name)]
        for name in names:
            path = Path(where, name)
            if not _is_private(name) and path.is_file() and path.resolve().is_relative_to(root):
                files.append(Pushed(path.relative_to(folder).as_posix(), path.stat().st_size))
    if not files:
        raise UsageError(f"{folder} has no files to push; convert a model into it first")
    return sorted(files, key=lambda file: file.path)


def _push(
    api: HfApi, folder: Path, repo_id: str, files: Sequence[Pushed], private: bool, progress: Progress
) -> list[Pushed]:
    if (card := folder / _CARD).is_file():
        _check_card(card)
    api.create_repo(repo_id, private=private, exist_ok=True)
    if private and api.model_info(repo_id).private is not True:
        raise PublishError(f"{repo_id} exists and is public; make it private in its settings, or pass another name")
    on_hub = _on_the_hub(api, repo_id, files)
    missing = [file for file in files if not _same(folder / file.path, on_hub.get(file.path))]
    progress.start("sending", sum(file.bytes for file in missing))
    operations = []
    for file in missing:
        operation = CommitOperationAdd(path_in_repo=file.path, path_or_fileobj=folder / file.path)
        api.preupload_lfs_files(repo_id, additions=[operation], free_memory=False)
        operations.append(operation)
        progress.advance(file.bytes, file.path)
    if operations:
        message = f"{len(operations)} file{'s' if len(operations) > 1 else ''} by quantkit {__version__}"
        api.create_commit(repo_id, operations=operations, commit_message=message)
    return missing


def _check_card(path: Path) -> None:
    """Let the hub validate the card before any file is sent; only the hub knows its rules for metadata."""
    request = {"repoType": "model", "content": path.read_text("utf-8", "replace")}
    address = f"{constants.ENDPOINT}/api/validate-yaml"
    response = get_session().post(address, json=request, headers=build_hf_headers())
    if response.status_code != 400:
        hf_raise_for_status(response)
        return
    try:
        errors = [str(error["message"]) for error in response.json()["errors"]]
    except (ValueError, KeyError, TypeError):
        errors = [response.text]
    raise PublishError(f"the hub refuses the metadata of {path}: {'; '.join(errors)[:400] or 'it is malformed'}")


def _on_the_hub(api: HfApi, repo_id: str, files: Sequence[Pushed]) -> dict[str, RepoFile]:
    paths = [file.path for file in files]
    on_hub: dict[str, RepoFile] = {}
    for start in range(0, len(paths), _PATHS_AT_ONCE):
        for entry in api.get_paths_info(repo_id, paths[start : start + _PATHS_AT_ONCE]):
            if isinstance(entry, RepoFile):
                on_hub[entry.path] = entry
    return on_hub


def _same(path: Path, remote: RepoFile | None) -> bool:
    """Whether the hub's file has the same bytes: by SHA-256 for LFS files, by git's blob id for others."""
    size = path.stat().st_size
    if remote is None or remote.size != size:
        return False
    digest = hashlib.sha256() if remote.lfs else hashlib.sha1(b"blob %d\0" % size)
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return bool(digest.hexdigest() == (remote.lfs.sha256 if remote.lfs else remote.blob_id))


def _is_private(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in _PRIVATE) or ".journal." in name


@contextmanager
def _quiet(without_bars: bool) -> Iterator[None]:
    """huggingface_hub without log lines and warnings; failures are exceptions."""
    logger = logging.getLogger("huggingface_hub")
    level, bars = logger.level, not are_progress_bars_disabled()
    if not constants.HF_DEBUG:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), bounded_answers():
            warnings.simplefilter("ignore")
            if without_bars:
                disable_progress_bars()
            yield
    finally:
        if without_bars and bars:
            enable_progress_bars()
        logger.setLevel(level)
