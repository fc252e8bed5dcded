"""The headers of a repository's safetensors files, by range requests."""

from concurrent.futures import ThreadPoolExecutor

from quantkit.checkpoint.folder import SAFETENSORS, Weights
from quantkit.checkpoint.ranges import Ranges
from quantkit.checkpoint.repository import Listing, Repository
from quantkit.checkpoint.safetensors_file import PREFIX_BYTES, Header, header_length, parse_header
from quantkit.errors import CheckpointError, HubError

_HEADER_THREADS = 8


def fetch_headers(
    repository: Repository, listing: Listing, ranges: Ranges, chosen: Weights, files: list[str]
) -> dict[str, Header]:
    """The headers of the chosen weight files, by ranges.

    Raises HubError: the files are pickles, or a request failed; CheckpointError: a header is malformed.
    """
    if chosen.kind != SAFETENSORS:
        raise HubError(
            f"{repository.repo_id} has only {files[0]}, whose contents cannot be listed without downloading it; "
            f"convert it without --dry-run, or take a repository with safetensors"
        )

    def fetch(file: str) -> Header:
        try:
            return _fetch_header(repository, listing, ranges, file)
        except CheckpointError:
            raise
        except Exception as error:  # the client and its libraries raise errors of many classes
            raise repository.explain(error, f"the header of {file}") from error

    with ThreadPoolExecutor(_HEADER_THREADS) as pool:
        return dict(zip(files, pool.map(fetch, files), strict=True))


def _fetch_header(repository: Repository, listing: Listing, ranges: Ranges, file: str) -> Header:
    """The header of a remote safetensors file: its length first, so that an absurd one is never fetched."""
    remote = repository.remote(listing, file)
    prefix = ranges.read(remote, 0, min(PREFIX_BYTES, remote.size or PREFIX_BYTES))
    size = ranges.size(remote) or 0
    length = header_length(prefix, file, size)
    header = ranges.read(remote, PREFIX_BYTES, length) if length else b""
    return parse_header(header, file, size)
