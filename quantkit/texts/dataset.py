"""Calibration text from a dataset of the hub, through huggingface_hub's own client: its cache, token and endpoint.

Only files of text are fetched, as many as are needed; a dataset that exists only as a loading script is refused.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

from quantkit.checkpoint.hub_errors import UnreachableError, explain, is_transient, not_cached
from quantkit.errors import CalibrationError, QuantkitError

_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([^:]+))?(?::(.+))?", re.ASCII)
_ENDINGS = (".parquet", ".jsonl", ".ndjson", ".json", ".txt", ".jsonl.gz", ".json.gz", ".txt.gz")
# What lies beside the text in many repositories.
_NOT_TEXT = re.compile(r"(^|/)(README|LICENSE|dataset_infos?|config|.*\.lock)[^/]*$|(^|/)\.", re.IGNORECASE)
_PAUSES = (1.0, 2.0)
_TIMEOUT = 20.0

T = TypeVar("T")


@dataclass(frozen=True)
class Dataset:
    """A dataset asked for: repository, revision (None: the default branch), and what its files' paths must name."""

    repo_id: str
    revision: str | None
    split: str | None


def parse_dataset(source: str) -> Dataset | None:
    """`ORG/NAME[@REVISION][:SPLIT]` taken apart; None where it can only be a path."""
    match = _ID.fullmatch(source)
    if match is None or (match[3] is None and source.lower().endswith(_ENDINGS)):
        return None
    return Dataset(match[1], match[2], match[3])


def dataset_files(asked: Dataset, *, offline: bool = False) -> Iterator[Path]:
    """Local copies of the dataset's text files, one after the other, each fetched when it is its turn.

    Of several splits `train` is taken; `SPLIT` may also name a folder, or a folder and a split (`NAME/test`). Raises
    HubError, or CalibrationError when no file of text is there.
    """
    if offline or constants.HF_HUB_OFFLINE:
        yield from _cached(asked, not_cached(asked.repo_id, Path(constants.HF_HUB_CACHE)))
        return

    def listing() -> tuple[str, list[str]]:
        info = HfApi().dataset_info(asked.repo_id, revision=asked.revision, timeout=_TIMEOUT)
        return info.sha or "main", [file.rfilename for file in info.siblings or ()]

    try:
        commit, names = _attempt(asked, "its list of files", listing)
    except UnreachableError as error:
        yield from _cached(asked, error)
        return
    for name in choose_files(names, asked):

        def fetch(name: str = name) -> Path:
            # By the revision's own name, so that the cache can answer for it when offline.
            revision = asked.revision or constants.DEFAULT_REVISION
            path = hf_hub_download(asked.repo_id, name, repo_type="dataset", revision=revision)
            if Path(path).parts[-1 - len(Path(name).parts)] != commit:  # the branch moved
                path = hf_hub_download(asked.repo_id, name, repo_type="dataset", revision=commit)
            return Path(path)

        yield _attempt(asked, name, fetch)


def choose_files(names: Sequence[str], asked: Dataset) -> list[str]:
    """Those of a repository's files that hold the text asked for, in order of names."""
    texts = [name for name in sorted(names) if name.lower().endswith(_ENDINGS) and not _NOT_TEXT.search(name)]
    if not texts:
        kinds = ", ".join(sorted({Path(name).suffix or name for name in names}))[:80]
        raise CalibrationError(
            f"the dataset {asked.repo_id} has no Parquet, JSON or text files (only {kinds}); pass a text file instead"
        )
    split = asked.split or "train"
    whole_words = re.compile(rf"(^|[/._-]){re.escape(split)}([/._-]|$)")
    chosen = [name for name in texts if whole_words.search(name)]
    if chosen or asked.split is None:
        return chosen or texts
    raise CalibrationError(
        f"the dataset {asked.repo_id} has no file for split {split!r}; choose from {', '.join(texts)[:200]}"
    )


def _cached(asked: Dataset, otherwise: Exception) -> Iterator[Path]:
    try:
        folder = Path(
            snapshot_download(asked.repo_id, repo_type="dataset", revision=asked.revision, local_files_only=True)
        )
    except LocalEntryNotFoundError:
        raise otherwise from None
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    if not names:
        raise otherwise
    yield from (folder / name for name in choose_files(names, asked))


def _attempt(asked: Dataset, what: str, call: Callable[[], T]) -> T:
    """The call's result, tried again after what may pass; other failures become a HubError of one sentence."""
    for pause in (*_PAUSES, None):
        disable_progress_bars()
        try:
            return call()
        except QuantkitError:
            raise
        except Exception as error:  # whatever the client and the libraries under it may raise
            if pause is None or not is_transient(error):
                where = f"datasets/{asked.repo_id}"
                raise explain(error, where, asked.revision, what, Path(constants.HF_HUB_CACHE)) from error
            time.sleep(pause)
        finally:
            enable_progress_bars()
    raise AssertionError("the last attempt returns or raises")
