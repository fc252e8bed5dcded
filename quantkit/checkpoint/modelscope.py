"""A repository on ModelScope, by its HTTP API, in the cache folders of ModelScope's own client.

API, as the package modelscope-hub 0.5 uses it: `api/v1/models/ORG/NAME/repo/files?Revision=R&Recursive=True` lists
files with sizes and sha256, `.../repo?Revision=R&FilePath=F` is a file, `.../revisions` lists branches and tags. Small
files come as they are, without ranges; weight files are redirected to a store.

Cache: `models/ORG--NAME/snapshots/STATE/FILE`. The client names STATE after the revision, quantkit after the commit or
the list, because a branch moves. A file that the client downloaded is linked if its sha256 is the listed one.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from huggingface_hub import constants
from huggingface_hub.utils import get_session

from quantkit.checkpoint.folder import stays_inside
from quantkit.checkpoint.hub_errors import UnreachableError, disk_sentence, is_transient, is_unreachable, reason
from quantkit.checkpoint.modelscope_token import stored_token
from quantkit.checkpoint.ranges import TIMEOUT, Ranges, RemoteFile, StatusError
from quantkit.checkpoint.repository import Listing, Report, longer_than_listed, most_bytes
from quantkit.errors import HubError
from quantkit.system.descriptors import lock

_DEFAULT_ENDPOINT, _DEFAULT_REVISION = "https://modelscope.cn", "master"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PIECE = 8 << 20
_WAIT = 0.5
_TOKENS = "set MODELSCOPE_API_TOKEN to an access token of an account that may read it"


@dataclass(frozen=True)
class ModelScope:
    """See `Repository`."""

    repo_id: str
    revision: str | None
    token: str | None = None
    cache_dir: Path | None = None
    hub: str = "ModelScope"
    cache_variable: str = "MODELSCOPE_CACHE"

    @property
    def cache(self) -> Path:
        named = self.cache_dir or os.environ.get("MODELSCOPE_CACHE")
        return Path(named).expanduser() if named else Path.home() / ".cache" / "modelscope"

    @property
    def offline(self) -> bool:
        return bool(constants.HF_HUB_OFFLINE)

    @property
    def endpoint(self) -> str:
        """The address of the hub."""
        text = os.environ.get("MODELSCOPE_ENDPOINT", "").strip() or _DEFAULT_ENDPOINT
        return (text if "://" in text else f"https://{text}").rstrip("/")

    def list_files(self, state: str | None = None) -> Listing:
        name = self._revision
        data = self._json(f"repo/files?{urlencode({'Revision': name, 'Recursive': 'True'})}")
        entries = data.get("Files") if isinstance(data, dict) else None
        if not isinstance(entries, list):
            raise HubError(
                f"{self.endpoint} does not answer like ModelScope for {self.repo_id}; check MODELSCOPE_ENDPOINT"
            )
        files = [entry for entry in entries if isinstance(entry, dict) and entry.get("Type") != "tree"]
        if not files:
            self._require_revision()
            raise HubError(f"{self.repo_id} has no files on ModelScope at revision {name!r}; check the name")
        sizes: dict[str, int | None] = {}
        hashes: dict[str, str] = {}
        for entry in files:
            path, size, sha256 = entry.get("Path"), entry.get("Size"), entry.get("Sha256")
            if not isinstance(path, str) or not stays_inside(path):
                raise HubError(f"ModelScope lists {path!r} in {self.repo_id}, which is not a file name; do not use it")
            sizes[path] = size if type(size) is int and size >= 0 else None
            if isinstance(sha256, str) and re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
                hashes[path] = sha256.lower()
        committer = data.get("LatestCommitter")
        commit = committer.get("Id") if isinstance(committer, dict) else None
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            lines = sorted(f"{path} {sizes[path]} {hashes.get(path)}" for path in sizes)
            commit = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:40]
        return Listing(commit, sizes, hashes)

    def download(self, listing: Listing, name: str, report: Report, *, by_user_revision: bool = False) -> Path:
        path = self._snapshot(listing) / name
        if self.cached(listing, name) is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fetch(listing, name, path, report)
        if by_user_revision:
            reference = self._reference
            reference.parent.mkdir(parents=True, exist_ok=True)
            reference.write_text(listing.state, encoding="utf-8")
        return path

    def _fetch(self, listing: Listing, name: str, path: Path, report: Report) -> None:
        """Fetch a file to `path`, continuing an unfinished download of the same content."""
        content = listing.sha256.get(name) or hashlib.sha256(f"{listing.state} {name}".encode()).hexdigest()
        partial = self._folder / "unfinished" / content
        partial.parent.mkdir(parents=True, exist_ok=True)
        remote, ranges = self.remote(listing, name), Ranges(self.repo_id, self.check)
        with partial.open("a+b") as file:
            _lock(file.fileno())
            if self.cached(listing, name) is not None:  # another process has fetched it meanwhile
                return
            digest, done = _digest(partial)
            size = listing.sizes[name]
            if size is None or done > size:
                file.truncate(0)
                digest, done = hashlib.sha256(), 0
            report(done)
            # without a listed size: the whole answer
            pieces = self._whole(remote) if size is None else ranges.pieces(remote, done, size)
            most = most_bytes(listing, name, self.cache)
            for chunk in pieces:
                if done + len(chunk) > most:
                    raise longer_than_listed(f"{name} of {self.repo_id}", most)
                file.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                report(done)
            file.flush()
            os.fsync(file.fileno())
            expected = listing.sha256.get(name)
            if expected is not None and digest.hexdigest() != expected:
                partial.unlink()
                raise HubError(
                    f"{name} of {self.repo_id} is not the file that ModelScope lists (wrong sha256); it may have"
                    " changed just now, run the same command again"
                )
            partial.replace(path)

    def _whole(self, remote: RemoteFile) -> Iterator[bytes]:
        with get_session().stream(
            "GET", remote.url, headers=dict(remote.headers), follow_redirects=True, timeout=TIMEOUT
        ) as response:
            self.check(response)
            yield from response.iter_bytes()

    def cached(self, listing: Listing, name: str) -> Path | None:
        path, size, sha256 = self._snapshot(listing) / name, listing.sizes.get(name), listing.sha256.get(name)
        if path.is_file() and size in (None, path.stat().st_size):
            return path
        if sha256 is None:
            return None
        for folder in self._client_folders():
            other = folder / name
            if other.is_file() and other.stat().st_size == size and _digest(other)[0].hexdigest() == sha256:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.unlink(missing_ok=True)
                try:
                    path.hardlink_to(other)
                except OSError:
                    path.symlink_to(other)
                return path
        return None

    def cached_by_user_revision(self, name: str) -> Path | None:
        folders = [self._folder / "snapshots" / quote(self._revision, safe="")]
        with suppress(OSError, UnicodeDecodeError):
            state = self._reference.read_text(encoding="utf-8").strip()
            if _COMMIT.fullmatch(state):
                folders.insert(0, self._folder / "snapshots" / state)
        return next((folder / name for folder in folders if (folder / name).is_file()), None)

    def remote(self, listing: Listing, name: str) -> RemoteFile:
        url = f"{self._api}/repo?{urlencode({'Revision': self._revision, 'FilePath': name})}"
        return RemoteFile(name, url, self._headers(), listing.sizes[name], listing.sha256.get(name))

    def check(self, response: Any) -> None:
        if response.status_code >= 400:
            raise StatusError(response)

    def explain(self, error: Exception, item: str) -> HubError:
        if isinstance(error, StatusError):
            return HubError(self._status_sentence(error.response.status_code, item))
        if is_unreachable(error):
            return UnreachableError(
                f"ModelScope at {self.endpoint} cannot be reached for {self.repo_id} ({reason(error)}); check the"
                " network, or give a local folder"
            )
        if is_transient(error):
            return HubError(
                f"the connection dropped while getting {item} of {self.repo_id} ({reason(error)}) and trying again did"
                " not help; run the same command once more, finished bytes are kept"
            )
        if isinstance(error, OSError) and (
            sentence := disk_sentence(error, self.cache, self.cache_variable, f"{item} of {self.repo_id}")
        ):
            return HubError(sentence)
        return HubError(f"{item} of {self.repo_id} could not be fetched from ModelScope ({reason(error)}); try again")

    def not_cached(self) -> HubError:
        return HubError(
            f"{self.repo_id} is not in the ModelScope cache {self.cache} and offline mode is on; fetch it once online"
            " (without --offline and HF_HUB_OFFLINE), or give a local folder"
        )

    def _status_sentence(self, status: int, item: str) -> str:
        if status == 404:
            return (
                f"{self.repo_id} is not a model on ModelScope, or it has no {item}; check the name, or {_TOKENS} if it"
                " is private"
            )
        if status == 401:
            return f"ModelScope refused the credentials for {self.repo_id} (401); correct MODELSCOPE_API_TOKEN"
        if status == 403:
            return f"ModelScope denies access to {self.repo_id} (403); {_TOKENS}"
        if status == 429:
            return f"ModelScope asks to slow down (429) while getting {item} of {self.repo_id}; wait a few minutes"
        return f"ModelScope answered {status} for {item} of {self.repo_id}; try again later"

    @property
    def _revision(self) -> str:
        return self.revision or _DEFAULT_REVISION

    @property
    def _api(self) -> str:
        return f"{self.endpoint}/api/v1/models/{self.repo_id}"

    @property
    def _folder(self) -> Path:
        return self.cache / "models" / self.repo_id.replace("/", "--")

    def _snapshot(self, listing: Listing) -> Path:
        return self._folder / "snapshots" / listing.state

    @property
    def _reference(self) -> Path:
        """The file that names the newest cached state of the user's revision."""
        return self._folder / "refs" / quote(self._revision, safe="")

    def _client_folders(self) -> Iterator[Path]:
        """Where ModelScope's own client keeps this revision: today's layout, and those before modelscope 1.38."""
        yield self._folder / "snapshots" / self._revision
        owner, _, name = self.repo_id.partition("/")
        for base in (self.cache / "models", self.cache / "hub" / "models"):
            yield base / owner / name.replace(".", "___")

    def _headers(self) -> dict[str, str]:
        token = self.token or stored_token()
        # older servers read the cookie, newer ones the header; the client sends both
        credentials = {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"} if token else {}
        return {"User-Agent": "quantkit", **credentials}

    def _json(self, path: str) -> Any:
        """`Data` of the API's answer. Raises StatusError."""
        response = get_session().get(f"{self._api}/{path}", headers=self._headers(), timeout=TIMEOUT)
        if response.status_code == 404 and not path.startswith("revisions"):
            self._require_revision()
        self.check(response)
        try:
            document = response.json()
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
            return None
        return document.get("Data") if isinstance(document, dict) else None

    def _require_revision(self) -> None:
        """Raise HubError if the model exists and lacks the user's revision."""
        try:
            names = self._json("revisions").get("RevisionMap")
            known = [str(entry["Revision"]) for kind in ("Branches", "Tags") for entry in names.get(kind) or ()]
        except (StatusError, AttributeError, KeyError, TypeError):
            return
        if self._revision not in known and not _COMMIT.fullmatch(self._revision):
            raise HubError(
                f"{self.repo_id} has no revision {self._revision!r} on ModelScope; it has {', '.join(known[:10])};"
                " name one of them after the @"
            )


def _lock(descriptor: int) -> None:
    """Lock a file, after another process that downloads it has finished."""
    while True:
        try:
            lock(descriptor)
            return
        except BlockingIOError:
            time.sleep(_WAIT)


def _digest(path: Path) -> tuple[Any, int]:
    """The running sha256 of a file's bytes, and their number."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_PIECE):
            digest.update(chunk)
            done += len(chunk)
    return digest, done
