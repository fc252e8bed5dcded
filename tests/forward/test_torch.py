"""The forward on torch's tensors, as `--device cuda` runs it, against itself on numpy's arrays."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from quantkit.errors import UsageError
from quantkit.families import reference_logits
from quantkit.forward.devices import find_device
from tests.families.models import TOKENS, all_cases
from tests.forward.test_architectures import NATIVE, native
from tests.helpers.peer import REPOSITORY, peer_converter


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_tensors_of_torch_give_the_logits_that_arrays_of_numpy_give(tmp_path: Path) -> None:
    models, out = tmp_path / "models", tmp_path / "logits.npz"
    models.mkdir()
    ours = {}
    for name in NATIVE:
        tensors, config = native(name)
        np.savez(models / f"{name}.npz", **tensors, **{"config.json": np.array(json.dumps(config))})
        ours[name] = reference_logits(tensors.__getitem__, config, TOKENS)
    script = REPOSITORY / "tests" / "forward" / "with_torch.py"
    peer = peer_converter()
    done = subprocess.run(
        [str(peer.python), str(script), str(models), str(out), json.dumps(list(TOKENS))],
        # what quantkit imports and the peer's environment lacks comes from this one, after its own packages
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "MORE_PACKAGES": str(Path(np.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    with np.load(out) as results:
        assert {name.removesuffix(" held") for name in results} == set(NATIVE) <= set(all_cases())
        off = {name: np.abs(results[name] - ours[name.removesuffix(" held")]).max() for name in results}
    allowed = {name: 1e-4 * ours[name.removesuffix(" held")].std() for name in off}
    assert {name: value for name, value in off.items() if not value <= allowed[name]} == {}


def test_the_cpu_is_numpys_and_auto_takes_it_where_there_is_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantkit.forward.devices._has_driver", lambda: False)
    assert find_device("cpu") is None
    assert find_device("auto") is None


def test_cuda_without_torch_is_refused_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr("quantkit.forward.devices._has_driver", lambda: True)
    assert find_device("auto") is None
    with pytest.raises(UsageError, match=r"pip install 'quantkit\[torch\]'"):
        find_device("cuda")
