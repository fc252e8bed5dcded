"""What a hub of models offers: the list of a repository's files, its cache, and a file's address for ranges."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from quantkit.checkpoint.folder import SMALL_FILE
from quantkit.checkpoint.ranges import RemoteFile
from quantkit.errors import HubError
from quantkit.files import free_space

Report = Callable[[int], object]
"""Receives the bytes of a file that are there so far."""
_WEIGHTS = (".safetensors", ".bin", ".gguf")
_SPARE = 1 << 30
"""Bytes of the disk that a file without a listed size leaves free."""


@dataclass(frozen=True)
class Listing:
    """The files of a repository at one state.

    `state`: the commit, or a digest of the list where the hub does not name the commit; it is the name of the snapshot
    folder. `sizes` in bytes. `sha256` of the files whose hash the hub states.
    """

    state: str
    sizes: Mapping[str, int | None]
    sha256: Mapping[str, str] = field(default_factory=dict)


def most_bytes(listing: Listing, name: str, cache: Path) -> int:
    """Bytes of a file after which its download is cut off: its listed size, or what can be without one."""
    size = listing.sizes.get(name)
    if size is not None:
        return size
    return free_space(cache) - _SPARE if name.endswith(_WEIGHTS) else SMALL_FILE


def longer_than_listed(item: str, most: int) -> HubError:
    """The error for a file that goes on after `most` bytes."""
    return HubError(
        f"the server sends more than the {most} bytes that {item} can have; check the address of the hub, or tell the"
        " owner of the repository"
    )


class Repository(Protocol):
    """One repository on a hub, at the revision that the user named."""

    @property
    def repo_id(self) -> str:
        """ORG/NAME, as messages name it."""

    @property
    def hub(self) -> str:
        """The hub, as messages name it."""

    @property
    def cache(self) -> Path:
        """The folder of the cache."""

    @property
    def cache_variable(self) -> str:
        """The environment variable that moves the cache."""

    @property
    def revision(self) -> str | None:
        """The revision that the user named; None for the default branch."""

    @property
    def offline(self) -> bool:
        """Whether the environment turns the network off."""

    def list_files(self, state: str | None = None) -> Listing:
        """The files at the user's revision, or at a state of an earlier list."""

    def download(self, listing: Listing, name: str, report: Report, *, by_user_revision: bool = False) -> Path:
        """Fetch a file into the cache, resumed where an earlier download broke; its path in the snapshot folder.

        `by_user_revision`: the cache then finds the snapshot by the user's name of the revision.
        """

    def cached(self, listing: Listing, name: str) -> Path | None:
        """A file of this state in the cache."""

    def cached_by_user_revision(self, name: str) -> Path | None:
        """A file of the newest cached state of the user's revision."""

    def remote(self, listing: Listing, name: str) -> RemoteFile:
        """A file for reading ranges."""

    def check(self, response: Any) -> None:
        """Raise for an error status of the hub."""

    def explain(self, error: Exception, item: str) -> HubError:
        """The sentence for a failure to get `item`; UnreachableError if no connection could be made."""

    def not_cached(self) -> HubError:
        """The sentence for an offline run without the repository in the cache."""
