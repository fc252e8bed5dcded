"""The fingerprint of a conversion: only a run with the same one is resumed."""

import hashlib
import json
from dataclasses import asdict

from quantkit import __version__
from quantkit.checkpoint import Checkpoint
from quantkit.checkpoint.modules import name_of
from quantkit.outputs.calibration import CalibrationPlan, ImatrixOutput
from quantkit.outputs.callback import CallbackPlan
from quantkit.outputs.gguf_files import GgufPlan
from quantkit.outputs.model import Model, origin_of, weight_files_of
from quantkit.outputs.packed_folders import FolderPlan
from quantkit.quant.factor import ROUNDING_VERSION
from quantkit.quant.feedback import SOLVER_VERSION


def conversion_fingerprint(
    source: Checkpoint | Model,
    calibration: CalibrationPlan | CallbackPlan | None,
    folders: tuple[FolderPlan, ...],
    passes: tuple[GgufPlan | None, GgufPlan | None],
    imatrix: ImatrixOutput | None,
) -> str:
    """A hash of the source and of all that decides the bytes of the outputs.

    `passes`: over the text model and over the projector.
    """
    gguf, projectors = passes
    stamps = {name_of(path): path.stat() for path in weight_files_of(source) if path.exists()}
    if isinstance(source, Checkpoint):
        source.require_complete()
    matrix = None if gguf is None or gguf.request.calibrate else gguf.request.imatrix
    facts = {
        "version": __version__,
        "origin": dict(origin_of(source)),
        "weights": {name: [status.st_size, status.st_mtime_ns] for name, status in stamps.items()},
        "calibration": calibration
        and [
            calibration.native.config if isinstance(calibration, CalibrationPlan) else "llama.cpp",
            hashlib.sha256(calibration.samples.tokens.tobytes()).hexdigest(),
            isinstance(calibration, CalibrationPlan) and calibration.propagate,
        ],
        "folders": [[asdict(folder.request), ROUNDING_VERSION] for folder in folders],
        "imatrix": [matrix and matrix.sha256, imatrix and imatrix.path.name],
        "target": gguf and gguf.request.target and [gguf.request.target.size, gguf.request.target.bits],
        "solver": gguf
        and gguf.request.solver == "feedback"
        and [
            SOLVER_VERSION,
            gguf.request.sweeps,
            gguf.request.reorder,
            gguf.request.asymmetric,
        ],
        "files": [
            [file.name, file.size, hashlib.sha256(file.header).hexdigest()]
            for plan in (gguf, projectors)
            if plan is not None
            for output in plan.outputs
            for file in output.files
        ],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
