"""Writes the folder of a quantized model, in any order, under NAME.partial; it is renamed when it is complete.

Beside the weights it contains config.json and the index of shards. It has copies of the checkpoint's tokenizer,
generation, template and licence files, and of the Python files that its configs name (`checkpoint.remote_code`).
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint.remote_code import remote_code
from quantkit.checkpoint.tensor import FLOAT8, NUMPY_DTYPES, all_finite
from quantkit.errors import CheckpointError, OutputError, UnsupportedError
from quantkit.files import cannot_write, make_partial_folder, open_partial, partial_path, sync
from quantkit.packed.layout import INDEX, Place, Shard, index_json, total_bytes
from quantkit.system import descriptors

# files that are not weights or pickles, nor code by their names, and belong to the model in any weight format
_SMALL = re.compile(
    r"(?:generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template)\.json"
    r"|merges\.txt|vocab\.txt|chat_template\.jinja|(?:tokenizer|spiece|sentencepiece\.bpe|spm)\.model"
    r"|[\w.-]+\.tiktoken|(?:LICEN[CS]E|NOTICE|COPYRIGHT|USE_POLICY)(?:[._-][\w.-]*)?",
    re.IGNORECASE | re.ASCII,
)
_CODE = (".py", ".bin", ".pt", ".pth", ".pkl", ".safetensors", ".gguf", ".h5")
_TEMPLATES = "additional_chat_templates"


class FolderWriter:
    """The weight files of a folder, open at their full sizes; tensors are written at their offsets, in any order.

    `resumed`: every file existed with the size and header of this layout and was kept. Otherwise all files are new.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard], *, keep: bool = False) -> None:
        """Open or create the files of `shards` in `folder`; without `keep` they are created again.

        Raises OutputError: the folder cannot be written, or the disk is too small.
        """
        self.folder, self.shards = folder, tuple(shards)
        self._places: dict[str, tuple[int, Place]] = {}
        self._hashes: dict[str, tuple[Any, int]] = {}
        self._files: list[int] = []
        try:
            make_partial_folder(folder)
            self.resumed = keep and all(_as_planned(folder / shard.name, shard) for shard in shards)
            if not self.resumed:
                for leftover in folder.glob("model*.safetensors*"):
                    leftover.unlink()
            for shard in shards:
                file = open_partial(folder / shard.name, keep=self.resumed)
                self._files.append(file)
                if not self.resumed:
                    descriptors.reserve(file, shard.size)
                    descriptors.write_at(file, shard.header, 0)
                self._places.update({place.name: (file, place) for place in shard.places})
        except OSError as error:
            self.close()
            raise cannot_write(f"{total_bytes(shards) / 1e6:.0f} MB of weights into {folder}", error) from error

    def write(self, name: str, values: NDArray[Any], first_row: int = 0) -> None:
        """Write a tensor, or its rows from `first_row` of the first axis on, in order.

        Floats of any width are rounded to the planned dtype. Matrices of a stack (see `matrix_name`) have their own
        rows, and threads may write them in any order.

        Raises:
            CheckpointError: a value is NaN or infinite.
            UnsupportedError: a value does not fit float16.
            OutputError: the file cannot be written.
        """
        file, place = self._place(name)
        rows, values = place.shape[0] if place.shape else 1, np.atleast_1d(values)
        if values.shape[1:] != place.shape[1:] or first_row + len(values) > rows:
            raise ValueError(f"{name} is {place.shape}, not {values.shape} at row {first_row}")
        row_bytes = place.nbytes // max(rows, 1)
        data = _as_stored(name, values, place.dtype).reshape(-1).view(np.uint8).data
        digest, hashed = self._hashes.get(name, (None, 0)) if first_row else (hashlib.sha256(), 0)
        if digest is not None and hashed == first_row:
            digest.update(data)
            self._hashes[name] = (digest, first_row + len(values))
        try:
            descriptors.write_at(file, data, place.offset + first_row * row_bytes)
        except OSError as error:
            raise cannot_write(f"tensor {name} into {self.folder}", error) from error

    def as_stored(self, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The values of a tensor as its planned dtype rounds them. Raises as `write` does."""
        return _as_stored(name, values, self._place(name)[1].dtype).astype(np.float32)

    def sha256(self, name: str) -> str:
        """The sha256 of the bytes of a tensor, or of a matrix of a stack, as this writer wrote them.

        Raises ValueError if they are not complete.
        """
        digest, rows = self._hashes[name]
        _, place = self._place(name)
        if rows != (place.shape[0] if place.shape else 1):
            raise ValueError(f"{name} is incomplete: {rows} rows were written")
        return str(digest.hexdigest())

    def flush(self) -> None:
        """Flush the weight files to the disk."""
        for file in self._files:
            descriptors.flush(file)

    def finish(
        self,
        config: Mapping[str, Any],
        checkpoint: Path,
        more: Mapping[str, bytes] | None = None,
        *,
        flush: bool = True,
    ) -> None:
        """Write the other files: config.json, the index, copies of the small files of `checkpoint`, and `more`.

        Without `flush` the caller flushes the weight files.
        """
        files = {"config.json": json_bytes(config), **(more or {})}
        index = index_json(self.shards)
        if index is not None:
            files[INDEX] = index
        try:
            for name, source in (small_files(checkpoint) | dict(remote_code(checkpoint, config).files)).items():
                target = self.folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
            for name, data in files.items():
                (self.folder / name).write_bytes(data)
            if flush:
                self.flush()
            for path in (*(self.folder / name for name in files), self.folder):
                sync(path)
        except OSError as error:
            raise cannot_write(getattr(error, "filename", None) or self.folder, error) from error

    def close(self) -> None:
        """Close the files; an incomplete folder keeps its partial name."""
        while self._files:
            os.close(self._files.pop())

    def __enter__(self) -> "FolderWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _place(self, name: str) -> tuple[int, Place]:
        if name in self._places:
            return self._places[name]
        stack, _, index = name.removesuffix("]").rpartition("[")
        file, place = self._places[stack]
        return file, place.matrix(int(index))


def small_files(checkpoint: Path) -> dict[str, Path]:
    """The files of a checkpoint's folder that are copied, by their names below it."""
    files = {
        path.name: path
        for path in sorted(checkpoint.iterdir())
        if path.is_file() and _SMALL.fullmatch(path.name) and not path.name.lower().endswith(_CODE)
    }
    templates = checkpoint / _TEMPLATES
    if templates.is_dir():
        files |= {f"{_TEMPLATES}/{path.name}": path for path in sorted(templates.glob("*.jinja")) if path.is_file()}
    return files


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """A small JSON file as transformers writes its configs."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def publish(folder: Path) -> None:
    """Give the complete `NAME.partial` its final name; an existing folder of that name is removed.

    At every moment one of the two is complete as NAME, NAME.partial or NAME.replaced. A call after a kill finishes the
    renaming.
    """
    partial, replaced = partial_path(folder), folder.with_name(f"{folder.name}.replaced")
    try:
        if partial.exists():
            if folder.exists():
                shutil.rmtree(replaced, ignore_errors=True)
                folder.rename(replaced)
            partial.rename(folder)
            sync(folder.parent)
        if replaced.exists() and folder.exists():
            shutil.rmtree(replaced)
    except OSError as error:
        raise OutputError(
            f"cannot rename {partial} to {folder.name}: {error.strerror or error}; check the disk and run the command"
            " again"
        ) from error


def _as_stored(name: str, values: NDArray[Any], dtype: str) -> NDArray[Any]:
    if dtype in FLOAT8:
        dtype = "U8"  # the bytes of 8-bit floats, made and checked by their format
    stored = NUMPY_DTYPES[dtype]
    if stored.kind in "iu":
        if values.dtype != stored:
            raise ValueError(f"{name} is stored as {dtype}, not {values.dtype}")
        return np.ascontiguousarray(values)
    if not _finite(values):
        raise CheckpointError(
            f"tensor {name} would contain NaN or infinity; the source is damaged or states a wrong dtype,"
            " download it again"
        )
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray(values.astype(stored, copy=False))
    if stored.itemsize == 2 and stored != values.dtype and not all_finite(dtype, rounded.reshape(-1).view(np.uint8)):
        largest = float(np.abs(values.astype(np.float32, copy=False)).max())
        raise UnsupportedError(
            f"tensor {name} has the value {largest:.6g}, out of the range of {stored.name}; add --dtype bfloat16"
        )
    return rounded


def _finite(values: NDArray[Any]) -> bool:
    name = next((name for name, dtype in NUMPY_DTYPES.items() if dtype == values.dtype), None)
    if name is None:
        return bool(np.isfinite(values).all())
    return all_finite(name, np.ascontiguousarray(values).reshape(-1).view(np.uint8))


def _as_planned(path: Path, shard: Shard) -> bool:
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_size == shard.size and file.read(len(shard.header)) == shard.header
    except FileNotFoundError:
        return False
