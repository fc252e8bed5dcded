"""Open SOURCE of the command line: a folder, or ORG/NAME[@REVISION] on the hub, or modelscope:ORG/NAME[@REVISION]."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from quantkit.checkpoint.checkpoint import Checkpoint, Origin
from quantkit.checkpoint.folder import GIT_LFS, parse_config, read_small_file, refuse_pointer, unreadable
from quantkit.checkpoint.jsonfile import shown
from quantkit.checkpoint.weights import open_weights
from quantkit.errors import CheckpointError
from quantkit.files import user_path
from quantkit.progress import SILENT, Progress
from quantkit.system.addresses import check_endpoint

ConfigCheck = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Gets config.json before any other file is fetched or read, and returns it with its architecture filled in.

What it raises ends the opening.
"""


@dataclass(frozen=True)
class Checks:
    """What is checked before any weights are downloaded; what a check raises ends the opening.

    `tensors` gets a hub repository as the headers of its weights describe it, unless the cache holds them all.
    """

    config: ConfigCheck
    tensors: Callable[[Checkpoint], object] = lambda checkpoint: None


SETTINGS_FILES = (
    "generation_config.json",
    "tokenizer*",
    "*.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.tiktoken",
    "chat_template.*",
)
_HUB_ID = re.compile(r"(modelscope:)?([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(.+))?", re.ASCII)
_SNAPSHOT = re.compile(r"/models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})$")


@dataclass(frozen=True)
class HubId:
    """A repository of a hub; the revision is a branch, tag or commit, None for the default branch."""

    repo_id: str
    revision: str | None = None
    hub: Literal["huggingface", "modelscope"] = "huggingface"

    @property
    def recorded(self) -> str:
        """The repository as records of origin name it."""
        return self.repo_id if self.hub == "huggingface" else f"{self.hub}:{self.repo_id}"


def parse_source(source: str) -> Path | HubId:
    """The folder or hub repository `source` names; a path that exists wins. Raises CheckpointError for neither."""
    path = user_path(source)
    try:
        exists, is_folder = bool(source) and path.exists(), path.is_dir()
    except PermissionError as error:
        raise CheckpointError(f"{source} cannot be accessed ({error.strerror}); check its permissions") from error
    except (OSError, ValueError):  # a name too long for the file system, or with a null byte
        exists = is_folder = False
    if exists:
        if not is_folder:
            raise CheckpointError(
                f"{source} is a file, not a checkpoint folder or a .gguf; pass the folder that contains config.json"
            )
        try:
            str(path.absolute()).encode("utf-8")
        except UnicodeEncodeError as error:
            raise CheckpointError(f"the path {path.absolute()} is not UTF-8 text; rename the folder") from error
        return path
    match = _HUB_ID.fullmatch(source)
    if match is None:
        raise CheckpointError(
            f"{source!r} is neither an existing folder nor a hub id ([modelscope:]ORG/NAME[@REVISION]); check the name"
        )
    return HubId(match[2], match[3], "modelscope" if match[1] else "huggingface")


def _origin_of_folder(folder: Path, source: str) -> Origin:
    """A folder by the name the user gave it; a snapshot in a hub cache by its repository, since its own is a hash."""
    snapshot = _SNAPSHOT.search(folder.resolve().as_posix())
    if snapshot:
        org, name, commit = snapshot.groups()
        return Origin(name, source, folder.resolve(), f"{org}/{name}", commit)
    return Origin(Path(os.path.normpath(folder.absolute())).name, source, folder.resolve())


@dataclass(frozen=True)
class Access:
    """How a hub's files are read. Only the needed files are fetched. A folder is read as it is.

    Attributes:
        offline: use only the cache, as HF_HUB_OFFLINE does.
        headers_only: fetch only the safetensors headers of the weights, by range requests; rows cannot be read then.
        stream: read rows by range requests when they are asked for, unless the cache has the files.
        code: fetch the Python files that config.json names, too (see `remote_code`); they are copied, never executed.
        token: the user's token, in place of the stored one.
        cache_dir: a cache in place of the hub's standard one.
    """

    offline: bool = False
    headers_only: bool = False
    stream: bool = False
    code: bool = False
    token: str | None = None
    cache_dir: Path | None = None


def open_checkpoint(
    source: str, access: Access = Access(), *, progress: Progress = SILENT, checks: Checks | None = None
) -> Checkpoint:
    """A checkpoint, validated: headers, index and config are checked before this returns; no weights are in memory.

    `checks` come first, so a model that they refuse costs no download of weights. `progress`: one stage,
    "downloading", in bytes of all weight files.

    Raises:
        CheckpointError: a file is missing or malformed; HubError for a hub id.
        UnsupportedError: the weights are quantized already, or of an unknown dtype.
        MissingExtraError: the weights are torch files, and torch is not installed.
    """
    where = parse_source(source)
    if isinstance(where, Path):
        return open_folder(_origin_of_folder(where, source), checks)
    check_endpoint()
    # Imported here, because a local folder does not need the hub client, which is slow to import.
    from quantkit.checkpoint import hub

    return hub.open_from_hub(hub.Request(where, source, access, progress, checks))


def open_folder(origin: Origin, checks: Checks | None = None) -> Checkpoint:
    """The checkpoint in a local folder. Raises as `open_checkpoint` does."""
    where = origin.source
    try:
        empty = not any(origin.folder.iterdir())
    except OSError as error:
        raise CheckpointError(f"{where} cannot be listed ({error.strerror}); check its permissions") from error
    if empty:
        raise CheckpointError(f"{where} is empty; give a folder with config.json and model.safetensors")
    config = parse_config(read_small_file(origin.folder, "config.json", where), where)
    config, notes = checked_config(config, checks)
    check_small_files(origin.folder, where)
    weights = open_weights(origin.folder, where)
    try:
        return Checkpoint(origin, config, weights, notes)
    except BaseException:
        weights.close()
        raise


def checked_config(config: dict[str, Any], checks: Checks | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(config.json as `checks` complete it, the note on the changes)."""
    if checks is None:
        return config, ()
    completed = dict(checks.config(config))
    names = completed.get("architectures")
    if names == config.get("architectures"):
        return completed, ()
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    before = "names no architecture" if first is None else f"names the architecture {shown(str(first))}"
    return completed, (f"config.json {before}; {names[0] if names else None} is taken",)


def check_small_files(folder: Path, where: str) -> None:
    """Raise CheckpointError for a tokenizer or settings file that is a git-lfs pointer or not readable."""
    for path in sorted(folder.iterdir()):
        if not any(fnmatchcase(path.name, pattern) for pattern in SETTINGS_FILES) or not path.is_file():
            continue
        try:
            with path.open("rb") as file:
                start = file.read(len(GIT_LFS))
        except OSError as error:
            raise CheckpointError(unreadable(path.name, where, error)) from error
        refuse_pointer(start, f"{path.name} of {where}")
