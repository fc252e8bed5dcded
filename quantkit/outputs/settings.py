"""The options of a conversion in the words of the command line: they tell an unfinished run from another one."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from quantkit import __version__
from quantkit.checkpoint import Checkpoint
from quantkit.checkpoint.modules import name_of
from quantkit.gguf.file_types import FileType
from quantkit.journal import Settings
from quantkit.outputs.gguf_files import GgufRequest
from quantkit.outputs.model import Model, origin_of, weight_files_of
from quantkit.outputs.plan import ConversionRequest
from quantkit.packed.formats import FolderRequest
from quantkit.texts.samples import DEFAULT_NAME, Samples
from quantkit.units import size_argument


def conversion_settings(source: Checkpoint | Model, request: ConversionRequest, samples: Samples | None) -> Settings:
    """All that decides the bytes of the outputs, for `Journal`; `samples` of the calibration."""
    gguf, origin = request.gguf, origin_of(source)
    folders = [folder.method for folder in request.folders]
    types = [*_names(gguf.types if gguf else ()), *folders, *(["imatrix"] if request.imatrix else [])]
    adapters = origin.get("adapters", ())
    settings: dict[str, str | None] = {
        "the source": _joined((origin["source"], origin.get("revision")), "@"),
        "--base": origin.get("base"),
        "--adapter": _joined(adapter["source"] for adapter in adapters),
        "--adapter-scale": _joined(f"{adapter['scale']:g}" for adapter in adapters),
        "--type": _joined(types),
        "--mmproj": _joined(_names(request.projectors)),
        "quantkit": __version__,
        "another adapter": _digest(adapters),
        "another converter": _digest(origin.get("converter")),
        "other files of the source": _digest(_stamps(source)),
    }
    if request.imatrix:
        settings["imatrix:--output"] = str(request.imatrix_file or "") or None
    if gguf is not None:
        settings |= {f"gguf:{name}": value for name, value in _gguf(gguf).items()}
    for folder in request.folders:
        settings |= {f"{folder.method}:{name}": value for name, value in _folder(folder).items()}
    if samples is not None:
        settings |= {f"calibration:{name}": value for name, value in _samples(samples).items()}
        settings["calibration:--propagate"] = "quantized" if request.calibration.propagate else "float"
    return settings


def _gguf(request: GgufRequest) -> Settings:
    mix, target = request.mix, request.target
    quality = "best" if request.asymmetric else "high" if request.solver == "feedback" else "standard"
    return {
        "--quality": quality,
        "--reorder-neurons": _flag(request.reorder),
        "--calibrate": _flag(request.calibrate),
        "--imatrix": None if request.calibrate else request.imatrix_name,
        "another importance matrix": None if request.imatrix is None else request.imatrix.sha256,
        "--target-size": size_argument(target.size) if target and target.size else None,
        "--target-bpw": str(target.bits) if target and target.bits else None,
        "--tensor-type": _joined(f"{pattern}={kind.name.lower()}" for pattern, kind in mix.tensor_types),
        "--output-type": None if mix.output_type is None else mix.output_type.name.lower(),
        "--embedding-type": None if mix.embedding_type is None else mix.embedding_type.name.lower(),
        "--leave-output-tensor": _flag(mix.leave_output),
        "--pure": _flag(mix.pure),
        "--split-max-size": size_argument(request.split_max_size) if request.split_max_size else None,
        "--mtp": request.mtp,
        "--pre": request.pre,
        "another --chat-template": None if request.chat_template is None else _digest([request.chat_template.text]),
    }


def _folder(request: FolderRequest) -> Settings:
    grid = request.grid
    return {
        "--bits": str(grid.bits),
        "--group-size": str(grid.group),
        "--skip": _joined(request.skip),
        "--dtype": request.dtype,
        "--max-shard-size": size_argument(request.max_shard),
        "--algorithm": request.algorithm,
        "--rounding": request.rounding,
        "--quality": "best" if request.follows_rounded else "standard",
        "--sym": "--sym" if grid.symmetric else "--asym",
        "--damp": None if request.damp is None else str(request.damp),
        "--act-order": "--act-order" if request.act_order else "--no-act-order",
        "--static-groups": "--static-groups" if request.static_groups else "--no-static-groups",
    }


def _samples(samples: Samples) -> Settings:
    count, length = samples.tokens.shape
    return {
        "--calibration": _joined("default" if name == DEFAULT_NAME else name for name in samples.names),
        "--samples": str(count),
        "--seq-len": str(length),
        "--chat": "--chat" if samples.chat else "--raw",
        "another calibration text": hashlib.sha256(samples.tokens.tobytes()).hexdigest(),
    }


def _stamps(source: Checkpoint | Model) -> Mapping[str, list[int]]:
    stamps = {name_of(path): path.stat() for path in weight_files_of(source) if path.exists()}
    return {name: [status.st_size, status.st_mtime_ns] for name, status in stamps.items()}


def _names(types: Iterable[FileType]) -> list[str]:
    return [kind.name for kind in types]


def _flag(is_set: bool) -> str | None:
    return "given" if is_set else None


def _joined(parts: Iterable[object], between: str = ", ") -> str | None:
    return between.join(str(part) for part in parts if part is not None) or None


def _digest(value: Any) -> str | None:
    return None if value is None else hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()
