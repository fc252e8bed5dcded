"""A written importance matrix reloaded and compared with the sums it was made of."""

import numpy as np

from quantkit.errors import VerificationError
from quantkit.files import partial_path
from quantkit.imatrix.file import Imatrix, load_imatrix
from quantkit.outputs.calibration import ImatrixOutput
from quantkit.verify.check import Verified, guard


def verify_imatrix(output: ImatrixOutput, expected: Imatrix) -> Verified:
    """Check the file, still under its partial name: every value, and the text and chunks that it states."""
    path, hashes = partial_path(output.path), {}

    def compare() -> str:
        loaded = load_imatrix(path)
        hashes[output.path.name] = loaded.sha256
        if path.stat().st_size != output.size:
            raise VerificationError(f"{output.path.name} has {path.stat().st_size} bytes instead of {output.size}")
        stated = (loaded.datasets, loaded.chunks, loaded.chunk_size)
        if stated != (expected.datasets, expected.chunks, expected.chunk_size):
            raise VerificationError(f"{output.path.name} states another text or other chunks than were calibrated on")
        if loaded.values.keys() != expected.values.keys():
            name = min(loaded.values.keys() ^ expected.values.keys())
            raise VerificationError(f"tensor {name} is in {output.path.name} or in the calibration, but not in both")
        for name, values in expected.values.items():
            if not np.array_equal(loaded.values[name], values):
                raise VerificationError(f"{name} of {output.path.name} differs from what was calibrated")
        return f"{len(loaded.values)} tensors read back as calibrated"

    return Verified(output, (guard("values", compare),), hashes)
