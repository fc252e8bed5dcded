"""A repository on the Hugging Face hub, by huggingface_hub: its cache, token, offline mode and endpoint."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status
from huggingface_hub.utils import tqdm as hub_tqdm

from quantkit.checkpoint import hub_errors
from quantkit.checkpoint.folder import SMALL_FILE
from quantkit.checkpoint.ranges import TIMEOUT, RemoteFile
from quantkit.checkpoint.repository import Listing, Report, longer_than_listed, most_bytes
from quantkit.errors import HubError


@dataclass(frozen=True)
class HuggingFace:
    """See `Repository`."""

    repo_id: str
    revision: str | None
    token: str | None = None
    cache_dir: Path | None = None
    hub: str = "the hub"
    cache_variable: str = "HF_HUB_CACHE"

    @property
    def cache(self) -> Path:
        return self.cache_dir or Path(constants.HF_HUB_CACHE)

    @property
    def offline(self) -> bool:
        return bool(constants.HF_HUB_OFFLINE)

    def list_files(self, state: str | None = None) -> Listing:
        api = HfApi(token=self.token)
        info = api.model_info(self.repo_id, revision=state or self.revision, files_metadata=True, timeout=TIMEOUT)
        if not info.sha:
            raise HubError(f"{constants.ENDPOINT} does not answer like a hub for {self.repo_id}; check HF_ENDPOINT")
        files = info.siblings or ()
        hashes = {file.rfilename: file.lfs.sha256 for file in files if file.lfs is not None and file.lfs.sha256}
        return Listing(info.sha, {file.rfilename: file.size for file in files}, hashes)

    def download(self, listing: Listing, name: str, report: Report, *, by_user_revision: bool = False) -> Path:
        # the branch may have moved since the list
        most = SMALL_FILE if by_user_revision else most_bytes(listing, name, self.cache)
        path: str = hf_hub_download(
            self.repo_id,
            name,
            revision=self.revision if by_user_revision else listing.state,
            token=self.token,
            cache_dir=self.cache,
            tqdm_class=bounded_bar(report, most, f"{name} of {self.repo_id}"),
        )
        return Path(path)

    def cached(self, listing: Listing, name: str) -> Path | None:
        cached = try_to_load_from_cache(self.repo_id, name, cache_dir=self.cache, revision=listing.state)
        return Path(cached) if isinstance(cached, str) else None

    def cached_by_user_revision(self, name: str) -> Path | None:
        revision = self.revision or constants.DEFAULT_REVISION
        try:
            cached = try_to_load_from_cache(self.repo_id, name, cache_dir=self.cache, revision=revision)
        except HFValidationError as error:
            raise self.explain(error, name) from error
        return Path(cached) if isinstance(cached, str) else None

    def remote(self, listing: Listing, name: str) -> RemoteFile:
        url = hf_hub_url(self.repo_id, name, revision=listing.state)
        headers = build_hf_headers(token=self.token)
        return RemoteFile(name, url, headers, listing.sizes[name], listing.sha256.get(name))

    def check(self, response: Any) -> None:
        hf_raise_for_status(response)

    def explain(self, error: Exception, item: str) -> HubError:
        return hub_errors.explain(error, self.repo_id, self.revision, item, self.cache)

    def not_cached(self) -> HubError:
        return hub_errors.not_cached(self.repo_id, self.cache)


def bounded_bar(report: Callable[[int], object], most: int, item: str) -> type[Any]:
    """A progress bar class for huggingface_hub that draws nothing and reports the bytes of one file.

    A download may make several bars for one file (bytes received, bytes written): the furthest counts. The client
    compares sizes after the last byte; the bar raises HubError at the first one beyond `most`.
    """
    furthest = 0

    class Bar(hub_tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._done = int(kwargs.get("initial") or 0)
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            nonlocal furthest
            self._done += int(n or 0)
            if self._done > most:
                raise longer_than_listed(item, most)
            if self._done > furthest:
                furthest = self._done
                report(furthest)

    return Bar
