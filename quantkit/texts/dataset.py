"""Calibration text from a dataset of the hub. The client is huggingface_hub, with its cache, token and endpoint.

Only text files are downloaded, and only as many as needed. A dataset that has only a loading script raises an error.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

from quantkit.checkpoint.bounded import bounded_answers
from quantkit.checkpoint.folder import SMALL_FILE
from quantkit.checkpoint.hub_errors import UnreachableError, explain, is_transient, not_cached
from quantkit.checkpoint.huggingface import bounded_bar
from quantkit.errors import CalibrationError, QuantkitError
from quantkit.files import free_space
from quantkit.texts.dataset_name import ENDINGS, Dataset

# Files that are not text, although their names end like text files.
_NOT_TEXT = re.compile(r"(^|/)(README|LICENSE|dataset_infos?|config|.*\.lock)[^/]*$|(^|/)\.", re.IGNORECASE)
_PAUSES = (1.0, 2.0)
_TIMEOUT = 20.0

T = TypeVar("T")


def dataset_files(dataset: Dataset, *, offline: bool = False) -> Iterator[Path]:
    """Local copies of the dataset's text files. A file is downloaded when the iterator reaches it.

    The default split is `train`. `split` may also be a folder, or a folder and a split (`NAME/test`).

    Raises:
        HubError: a download failed.
        CalibrationError: the dataset has no text files, or none for the split.
    """
    if offline or constants.HF_HUB_OFFLINE:
        yield from _cached(dataset, not_cached(dataset.repo_id, Path(constants.HF_HUB_CACHE)))
        return

    def listing() -> tuple[str, dict[str, int | None]]:
        info = HfApi().dataset_info(dataset.repo_id, revision=dataset.revision, files_metadata=True, timeout=_TIMEOUT)
        return info.sha or "main", {file.rfilename: file.size for file in info.siblings or ()}

    try:
        commit, sizes = _attempt(dataset, "its list of files", listing)
    except UnreachableError as error:
        yield from _cached(dataset, error)
        return
    for name in choose_files(list(sizes), dataset):
        size = sizes[name]
        most = free_space(Path(constants.HF_HUB_CACHE)) if size is None else size + SMALL_FILE
        bar = bounded_bar(lambda done: None, most, f"{name} of datasets/{dataset.repo_id}")

        def fetch(name: str = name, bar: type[Any] = bar) -> Path:
            # By the name of the revision, so that the cache finds the file under this name when offline.
            revision = dataset.revision or constants.DEFAULT_REVISION
            path = hf_hub_download(dataset.repo_id, name, repo_type="dataset", revision=revision, tqdm_class=bar)
            if Path(path).parts[-1 - len(Path(name).parts)] != commit:  # the branch moved
                path = hf_hub_download(dataset.repo_id, name, repo_type="dataset", revision=commit, tqdm_class=bar)
            return Path(path)

        yield _attempt(dataset, name, fetch)


def choose_files(names: Sequence[str], dataset: Dataset) -> list[str]:
    """The text files of the requested split, sorted by name. Raises CalibrationError when there are none."""
    texts = [name for name in sorted(names) if name.lower().endswith(ENDINGS) and not _NOT_TEXT.search(name)]
    if not texts:
        kinds = ", ".join(sorted({Path(name).suffix or name for name in names}))[:80]
        raise CalibrationError(
            f"the dataset {dataset.repo_id} has no Parquet, JSON or text files (only {kinds}); pass a text file instead"
        )
    split = dataset.split or "train"
    whole_words = re.compile(rf"(^|[/._-]){re.escape(split)}([/._-]|$)")
    chosen = [name for name in texts if whole_words.search(name)]
    if chosen or dataset.split is None:
        return chosen or texts
    raise CalibrationError(
        f"the dataset {dataset.repo_id} has no file for split {split!r}; choose from {', '.join(texts)[:200]}"
    )


def _cached(dataset: Dataset, unavailable: Exception) -> Iterator[Path]:
    """The files from the cache; raises `unavailable` when the cache has none."""
    try:
        folder = Path(
            snapshot_download(dataset.repo_id, repo_type="dataset", revision=dataset.revision, local_files_only=True)
        )
    except LocalEntryNotFoundError:
        raise unavailable from None
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    if not names:
        raise unavailable
    yield from (folder / name for name in choose_files(names, dataset))


def _attempt(dataset: Dataset, item: str, call: Callable[[], T]) -> T:
    """The result of `call`, retried after transient errors. Other errors become a HubError of one sentence."""
    for pause in (*_PAUSES, None):
        disable_progress_bars()
        try:
            with bounded_answers():
                return call()
        except QuantkitError:
            raise
        except Exception as error:  # the client and its libraries may raise any exception
            if pause is None or not is_transient(error):
                where = f"datasets/{dataset.repo_id}"
                raise explain(error, where, dataset.revision, item, Path(constants.HF_HUB_CACHE)) from error
            time.sleep(pause)
        finally:
            enable_progress_bars()
    raise AssertionError("the last attempt returns or raises")
