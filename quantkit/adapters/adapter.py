"""An open adapter: a folder or a hub repository with adapter_config.json and adapter_model.safetensors."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.adapters.config import FILE, AdapterConfig, parse_adapter_config
from quantkit.adapters.names import parse_name
from quantkit.checkpoint import Access, TensorInfo
from quantkit.checkpoint.folder import GIT_LFS, read_small_file, refuse_pointer, unreadable
from quantkit.checkpoint.jsonfile import shown
from quantkit.checkpoint.safetensors_file import read_header
from quantkit.checkpoint.sources import HubId, parse_source
from quantkit.checkpoint.stored import read_exactly
from quantkit.checkpoint.tensor import NUMPY_DTYPES
from quantkit.errors import CheckpointError, UnsupportedError, UsageError
from quantkit.progress import SILENT, Progress
from quantkit.system.addresses import check_endpoint
from quantkit.system.descriptors import READ, read_at

WEIGHTS = "adapter_model.safetensors"
_PICKLES = ("adapter_model.bin", "adapter_model.pt")
_HASHED = 1 << 22
_FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class AdapterRequest:
    """An adapter to merge: a folder or a hub id, and a factor of what it adds."""

    source: str
    scale: float = 1.0


@dataclass(frozen=True, eq=False)
class Adapter:
    """An open adapter. `modules`: by module of the base model, its tensors by part (see `AdapterName`).

    `sha256` and `config_sha256` are those of the bytes of its two files. `scale` multiplies what the adapter adds.
    """

    name: str
    source: str
    folder: Path
    repo_id: str | None
    revision: str | None
    config: AdapterConfig
    modules: Mapping[str, Mapping[str, TensorInfo]]
    sha256: str
    config_sha256: str
    descriptor: int
    scale: float = 1.0

    @property
    def weights(self) -> Path:
        """The weight file."""
        return self.folder / WEIGHTS

    @property
    def record(self) -> dict[str, Any]:
        """The origin of the adapter, for the records of outputs."""
        return {
            "source": self.repo_id or self.folder.name,
            "revision": self.revision,
            "sha256": self.sha256,
            "config_sha256": self.config_sha256,
            "kind": self.config.kind,
            "rank": self.config.rank,
            "scale": self.scale,
            "base": self.config.base,
        }

    def read(self, tensor: TensorInfo) -> NDArray[np.float32]:
        """A tensor's values, float32, in its shape. Raises CheckpointError or ReadError."""
        data = read_exactly(self.descriptor, tensor, tensor.offset, tensor.nbytes, self.source)
        return data.view(NUMPY_DTYPES[tensor.dtype]).reshape(tensor.shape).astype(np.float32)

    def read_native(self, tensor: TensorInfo) -> NDArray[Any]:
        """A tensor's values as stored. Raises CheckpointError or ReadError."""
        data = read_exactly(self.descriptor, tensor, tensor.offset, tensor.nbytes, self.source)
        return data.view(NUMPY_DTYPES[tensor.dtype]).reshape(tensor.shape)

    def read_rows(self, tensor: TensorInfo, start: int, stop: int) -> NDArray[np.float32]:
        """Rows start..stop of a tensor seen as (prod(shape[:-1]), shape[-1]), float32."""
        width = tensor.row_length * NUMPY_DTYPES[tensor.dtype].itemsize
        data = read_exactly(self.descriptor, tensor, tensor.offset + start * width, (stop - start) * width, self.source)
        return data.view(NUMPY_DTYPES[tensor.dtype]).reshape(stop - start, tensor.row_length).astype(np.float32)

    def close(self) -> None:
        """Close the weight file."""
        os.close(self.descriptor)


def open_adapter(request: AdapterRequest, *, offline: bool = False, progress: Progress = SILENT) -> Adapter:
    """An adapter, with its config and the header of its weights checked. The caller closes it.

    From the hub adapter_config.json and the weight file are fetched into the hub's cache.

    Raises:
        CheckpointError, HubError: a file is missing or malformed.
        UnsupportedError: the adapter is not a LoRA, or its weights are a pickle.
        UsageError: the scale is not finite.
    """
    if not np.isfinite(request.scale):
        raise UsageError(f"--adapter-scale {request.scale} is not a finite number; pass a number such as 0.5")
    where = parse_source(request.source)
    if isinstance(where, HubId):
        folder, revision = _fetch(where, request.source, offline=offline, progress=progress)
        name, repo_id = where.repo_id.split("/")[-1], where.recorded
    else:
        folder, revision, repo_id = where.resolve(), None, None
        name = Path(os.path.normpath(where.absolute())).name
    settings = _config_bytes(folder, request.source)
    config = parse_adapter_config(settings, request.source)
    descriptor = _open_weights(folder, request.source)
    try:
        tensors = read_header(descriptor, WEIGHTS).tensors
        modules = _modules(tensors, request.source)
        return Adapter(
            name,
            request.source,
            folder,
            repo_id,
            revision,
            config,
            modules,
            _digest(descriptor),
            hashlib.sha256(settings).hexdigest(),
            descriptor,
            float(request.scale),
        )
    except BaseException:
        os.close(descriptor)
        raise


def _fetch(where: HubId, source: str, *, offline: bool, progress: Progress) -> tuple[Path, str]:
    check_endpoint()
    # Imported here, because a local folder does not need the hub client, which is slow to import.
    from quantkit.checkpoint import hub

    request = hub.Request(where, source, Access(offline=offline), progress)
    folder = hub.fetch_files(request, (FILE, WEIGHTS))
    return folder, folder.name


def _config_bytes(folder: Path, where: str) -> bytes:
    if not (folder / FILE).exists():
        raise CheckpointError(f"{where} has no {FILE}; pass the folder that PEFT's save_pretrained wrote")
    return read_small_file(folder, FILE, where)


def _open_weights(folder: Path, where: str) -> int:
    path = folder / WEIGHTS
    if not path.exists():
        pickle = next((name for name in _PICKLES if (folder / name).exists()), None)
        if pickle:
            raise UnsupportedError(
                f"{where} has its weights in {pickle}, a pickle that can run code; save the adapter as safetensors"
                " (PEFT's save_pretrained)"
            )
        raise CheckpointError(f"{where} has no {WEIGHTS}; pass the folder that PEFT's save_pretrained wrote")
    try:
        descriptor = os.open(path, READ)
        refuse_pointer(read_at(descriptor, len(GIT_LFS), 0), f"{WEIGHTS} of {where}")
    except OSError as error:
        raise CheckpointError(unreadable(WEIGHTS, where, error)) from error
    return descriptor


def _modules(tensors: Mapping[str, TensorInfo], where: str) -> dict[str, dict[str, TensorInfo]]:
    modules: dict[str, dict[str, TensorInfo]] = {}
    for name, tensor in tensors.items():
        parsed = parse_name(name)
        if parsed is None:
            raise UnsupportedError(
                f"tensor {shown(name)} of {where} is not part of a LoRA that quantkit knows; merge the adapter with"
                " PEFT's merge_and_unload first"
            )
        if tensor.dtype not in _FLOATS:
            raise UnsupportedError(
                f"tensor {shown(name)} of {where} is stored as {tensor.dtype}; save the adapter in f32, f16 or bf16"
            )
        parts = modules.setdefault(parsed.module, {})
        if parsed.part in parts:
            raise CheckpointError(
                f"{where} has two tensors for one part of {shown(parsed.module)} ({shown(parts[parsed.part].name)} and"
                f" {shown(name)}); save one adapter in a folder"
            )
        parts[parsed.part] = tensor
    if not modules:
        raise CheckpointError(f"{WEIGHTS} of {where} holds no tensors; save the adapter again")
    return modules


def _digest(descriptor: int) -> str:
    digest, position = hashlib.sha256(), 0
    while data := read_at(descriptor, _HASHED, position):
        digest.update(data)
        position += len(data)
    return digest.hexdigest()
