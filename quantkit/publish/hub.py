"""A folder of outputs to the hub, through huggingface_hub's own client: its token, endpoint and transfer.

Large files are sent one after the other and one commit ends it, so that nobody sees half of a folder. What was sent and
not committed is kept by the hub for a while: the same call after an interruption sends what is missing.
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

Progress = Callable[[str, int, int], object]
"""Called with what is being done, and the bytes of how many it is done for."""

# Never anybody else's business: what is not finished, what failed its checks, what was set aside, what is hidden.
_PRIVATE = ("*.partial", "*.failed", "*.journal", "*.bak*", "*.tmp", "*.lock", ".*", "__pycache__")
_CARD = "README.md"
_PATHS_AT_ONCE = 100
_PIECE = 1 << 22


@dataclass(frozen=True)
class Pushed:
    """A file of the repository: its path there and its size."""

    path: str
    bytes: int


def push_folder(
    folder: Path, repo_id: str, *, private: bool = False, dry_run: bool = False, progress: Progress | None = None
) -> list[Pushed]:
    """Push every finished file of `folder` to the model repository `repo_id`, made if it is not there; what was sent.

    What the hub already has as it is here is not sent, and not in the answer. Unfinished files (`*.partial`), journals,
    `*.failed`, `*.bak` and hidden files never leave, nor links that lead out of the folder. Nothing on the hub is
    deleted. `private` makes a new repository private, and refuses one that is there and public. `dry_run` asks nobody:
    the answer is every file that would be pushed, whether the hub has it or not. Without `progress` the client's own
    bars are shown where there is a terminal.

    Raises:
        UsageError: the folder is missing or has nothing to push, or the repository's name is malformed.
        PublishError: no token, no permission, no space, the hub refused the card or cannot be reached, or it was
            interrupted; the sentence says what to do.
    """
    if not is_hub_id(repo_id):
        raise UsageError(f"{repo_id!r} is not a repository of the hub; write ORG/NAME, in letters, digits, - _ and .")
    found = files_to_push(folder)
    if dry_run:
        return found
    if get_token() is None:
        raise PublishError(f"not logged in to the hub; {LOGIN}")
    with _quiet(progress is not None):
        try:
            return _push(HfApi(), folder, repo_id, found, private, progress or (lambda what, done, total: None))
        except (PublishError, UsageError):
            raise
        except Exception as error:  # whatever the client and the libraries under it may raise
            raise explain(error, repo_id) from error


def files_to_push(folder: Path) -> list[Pushed]:
    """The finished files of a folder, in the order of their names.

    Raises:
        UsageError: there is no such folder, or nothing in it.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder} to push")
    root, found = folder.resolve(), []
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _is_private(name)]
        for name in names:
            path = Path(where, name)
            if not _is_private(name) and path.is_file() and path.resolve().is_relative_to(root):
                found.append(Pushed(path.relative_to(folder).as_posix(), path.stat().st_size))
    if not found:
        raise UsageError(f"there is nothing to push in {folder}; convert a model into it first")
    return sorted(found, key=lambda each: each.path)


def _push(
    api: HfApi, folder: Path, repo_id: str, found: Sequence[Pushed], private: bool, progress: Progress
) -> list[Pushed]:
    if (card := folder / _CARD).is_file():
        _check_card(card)
    api.create_repo(repo_id, private=private, exist_ok=True)
    if private and api.model_info(repo_id).private is not True:
        raise PublishError(f"{repo_id} is there already and public; make it private in its settings, or take another")
    there = _on_the_hub(api, repo_id, found)
    missing = [each for each in found if not _same(folder / each.path, there.get(each.path))]
    total, done = sum(each.bytes for each in missing), 0
    operations = []
    for each in missing:
        progress(each.path, done, total)
        operation = CommitOperationAdd(path_in_repo=each.path, path_or_fileobj=folder / each.path)
        api.preupload_lfs_files(repo_id, additions=[operation], free_memory=False)
        operations.append(operation)
        done += each.bytes
        progress(each.path, done, total)
    if operations:
        message = f"{len(operations)} file{'s' if len(operations) > 1 else ''} by quantkit {__version__}"
        api.create_commit(repo_id, operations=operations, commit_message=message)
    return missing


def _check_card(path: Path) -> None:
    """Ask the hub whether it takes the card, before anything is sent: its rules for metadata are on its side only."""
    asked = {"repoType": "model", "content": path.read_text("utf-8", "replace")}
    address = f"{constants.ENDPOINT}/api/validate-yaml"
    response = get_session().post(address, json=asked, headers=build_hf_headers())
    if response.status_code != 400:
        hf_raise_for_status(response)
        return
    try:
        errors = [str(error["message"]) for error in response.json()["errors"]]
    except (ValueError, KeyError, TypeError):
        errors = [response.text]
    raise PublishError(f"the hub does not take the metadata of {path}: {'; '.join(errors)[:400] or 'it is malformed'}")


def _on_the_hub(api: HfApi, repo_id: str, found: Sequence[Pushed]) -> dict[str, RepoFile]:
    paths = [each.path for each in found]
    there: dict[str, RepoFile] = {}
    for start in range(0, len(paths), _PATHS_AT_ONCE):
        for each in api.get_paths_info(repo_id, paths[start : start + _PATHS_AT_ONCE]):
            if isinstance(each, RepoFile):
                there[each.path] = each
    return there


def _same(path: Path, there: RepoFile | None) -> bool:
    """Whether the hub's file has these bytes: by SHA-256 of a large one, by git's name of a small one's contents."""
    size = path.stat().st_size
    if there is None or there.size != size:
        return False
    digest = hashlib.sha256() if there.lfs else hashlib.sha1(b"blob %d\0" % size)
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return bool(digest.hexdigest() == (there.lfs.sha256 if there.lfs else there.blob_id))


def _is_private(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in _PRIVATE) or ".journal." in name


@contextmanager
def _quiet(without_bars: bool) -> Iterator[None]:
    """huggingface_hub without its log lines and warnings; what matters comes back as an exception."""
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
