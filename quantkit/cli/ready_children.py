"""llama.cpp's processes for the checks of a small model: they start with the command, beside its imports."""

from contextlib import AbstractContextManager, nullcontext

from quantkit.cli.conversion import Conversion
from quantkit.cli.conversion_options import RunOptions
from quantkit.files import user_path
from quantkit.gguf.file_types import FILE_TYPES

_SMALL = 4_000_000_000
"""Bytes of weights up to which the start counts. A conversion of more takes longer, and memory may be short."""
_CHECKED_AT_ONCE = 2


def children_for(source: str, conversion: Conversion, work: RunOptions) -> AbstractContextManager[None]:
    """A block in which the processes that will check the GGUF files of a small checkpoint are running."""
    gguf, folder = conversion.gguf, user_path(source)
    files = (
        gguf.preset
        or gguf.target_size
        or gguf.target_bpw
        or any(name.lower() in FILE_TYPES for name in conversion.types)
    )
    if work.dry_run or work.max_ram or not files or not (folder / "config.json").is_file():
        return nullcontext()
    if sum(path.stat().st_size for path in folder.glob("*.safetensors")) > _SMALL:
        return nullcontext()
    from quantkit.llamacpp import session

    alone = work.threads == 1 or conversion.output.logits is False
    return session.children_ready(1 if alone else _CHECKED_AT_ONCE)
