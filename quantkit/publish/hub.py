"""The push of a folder of outputs to the hub, through huggingface_hub's client: its token, endpoint and transfer.

Large files are sent one after the other, and one commit ends the push, so the repository never shows half of a folder.
The hub keeps files that were sent but not committed for a while: the same call after an interruption sends the rest.
"""

import hashlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
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
from quantkit.errors import PublishError, UsageError
from quantkit.publish.card.metadata import is_hub_id
from quantkit.publish.hub_errors import LOGIN, explain

PushProgress = Callable[[str, int, int], object]
"""Called with the path of a file, the bytes that are done, and the bytes in all."""

# Files that never leave: unfinished ones, those that failed a check, backups, and hidden files.
_PRIVATE = ("*.partial", "*.failed", "*.journal", "*.bak*", "*.tmp", "*.lock", ".*", "__pycache__")
_CARD = "README.md"
_PATHS_AT_ONCE = 100
_PIECE = 1 << 22


@dataclass(frozen=True)
class Pushed:
    """A file of the repository: its path and its size in bytes."""

    path: str
    bytes: int


def push_folder(
    folder: Path, repo_id: str, *, private: bool = False, dry_run: bool = False, progress: PushProgress | None = None
) -> list[Pushed]:
    """Push every finished file of `folder` to the model repository `repo_id`, which is created if it does not exist.

    Returns the files that were sent. A file that the hub has with the same bytes is not sent. Unfinished files
    (`*.partial`), journals, `*.failed`, `*.bak`, hidden files and links out of the folder never leave. Nothing on the
    hub is deleted. `private` makes a new repository private, and refuses an existing public one. `dry_run` calls no
    server, and returns every file that could be pushed. Without `progress` the client shows its own bars on a terminal.

    Raises:
        UsageError: the folder is missing or has nothing to push, or the repository's name is malformed.
        PublishError: no token, no permission, no space, the hub refused the card or cannot be reached, or the push was
            interrupted; the message names the next step.
    """
    if not is_hub_id(repo_id):
        raise UsageError(
            f"{repo_id!r} is not the name of a hub repository; write ORG/NAME, in letters, digits, - _ and ."
        )
    files = files_to_push(folder)
    if dry_run:
        return files
    if get_token() is None:
        raise PublishError(f"not logged in to the hub; {LOGIN}")
    with _quiet(progress is not None):
        try:
            return _push(HfApi(), folder, repo_id, files, private, progress or (lambda path, done, total: None))
        except (PublishError, UsageError):
            raise
        except Exception as error:  # the client and its libraries raise many kinds
            raise explain(error, repo_id) from error


def files_to_push(folder: Path) -> list[Pushed]:
    """The finished files of a folder, in the order of their names.

    Raises:
        UsageError: the folder does not exist, or holds no finished file.
    """
    if not folder.is_dir():
        raise UsageError(f"folder {folder} not found; pass the folder to push")
    root, files = folder.resolve(), []
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _is_private(name)]
        for name in names:
            path = Path(where, name)
            if not _is_private(name) and path.is_file() and path.resolve().is_relative_to(root):
                files.append(Pushed(path.relative_to(folder).as_posix(), path.stat().st_size))
    if not files:
        raise UsageError(f"{folder} holds no finished file to push; convert a model into it first")
    return sorted(files, key=lambda file: file.path)


def _push(
    api: HfApi, folder: Path, repo_id: str, files: Sequence[Pushed], private: bool, progress: PushProgress
) -> list[Pushed]:
    if (card := folder / _CARD).is_file():
        _check_card(card)
    api.create_repo(repo_id, private=private, exist_ok=True)
    if private and api.model_info(repo_id).private is not True:
        raise PublishError(
            f"{repo_id} already exists and is public; make it private in its settings, or use another name"
        )
    on_hub = _files_on_hub(api, repo_id, files)
    missing = [file for file in files if not _same(folder / file.path, on_hub.get(file.path))]
    total, done = sum(file.bytes for file in missing), 0
    operations = []
    for file in missing:
        progress(file.path, done, total)
        operation = CommitOperationAdd(path_in_repo=file.path, path_or_fileobj=folder / file.path)
        api.preupload_lfs_files(repo_id, additions=[operation], free_memory=False)
        operations.append(operation)
        done += file.bytes
        progress(file.path, done, total)
    if operations:
        message = f"{len(operations)} file{'s' if len(operations) > 1 else ''} by quantkit {__version__}"
        api.create_commit(repo_id, operations=operations, commit_message=message)
    return missing


def _check_card(path: Path) -> None:
    """Ask the hub to validate the card before anything is sent: only the hub knows its rules for metadata."""
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
    raise PublishError(
        f"the hub refuses the metadata of {path} ({'; '.join(errors)[:400] or 'it is malformed'}); correct it there"
    )


def _files_on_hub(api: HfApi, repo_id: str, files: Sequence[Pushed]) -> dict[str, RepoFile]:
    paths = [file.path for file in files]
    on_hub: dict[str, RepoFile] = {}
    for start in range(0, len(paths), _PATHS_AT_ONCE):
        for entry in api.get_paths_info(repo_id, paths[start : start + _PATHS_AT_ONCE]):
            if isinstance(entry, RepoFile):
                on_hub[entry.path] = entry
    return on_hub


def _same(path: Path, on_hub: RepoFile | None) -> bool:
    """Whether the hub's file has the same bytes: by the SHA-256 of a large file, by the git blob id of a small one."""
    size = path.stat().st_size
    if on_hub is None or on_hub.size != size:
        return False
    digest = hashlib.sha256() if on_hub.lfs else hashlib.sha1(b"blob %d\0" % size)
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return bool(digest.hexdigest() == (on_hub.lfs.sha256 if on_hub.lfs else on_hub.blob_id))


def _is_private(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in _PRIVATE) or ".journal." in name


@contextmanager
def _quiet(without_bars: bool) -> Iterator[None]:
    """Run huggingface_hub without its log lines and warnings; its errors are exceptions."""
    logger = logging.getLogger("huggingface_hub")
    level, bars = logger.level, not are_progress_bars_disabled()
    if not constants.HF_DEBUG:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if without_bars:
                disable_progress_bars()
            yield
    finally:
        if without_bars and bars:
            enable_progress_bars()
        logger.setLevel(level)
