"""The notebook for Colab and Kaggle, run by nbclient in an environment of its own, offline, on real weights."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from tests.helpers.cached_environment import ROOT, cached_environment, dependencies, outside
from tests.helpers.real import smollm2_or_skip

NOTEBOOK = ROOT / "notebooks" / "quantkit.ipynb"
# what the notebook's own `pip install` needs beyond the checkout; it then runs without an index
PACKAGES = ("nbclient==0.11.0", "ipykernel==7.4.0", "nbformat==5.11.1", "hatchling>=1.25")


def texts_of(cell: Any) -> str:
    return "".join("".join(output.get("text", "")) for output in cell["outputs"])


def test_the_notebook_is_small_and_holds_no_outputs() -> None:
    assert NOTEBOOK.stat().st_size < 50_000
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 5
    for cell in code:
        assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """What each code cell printed, and the folder that the notebook wrote."""
    python = cached_environment("notebook", [*PACKAGES, *dependencies("run")])
    folder = tmp_path_factory.mktemp("notebook")
    variables = outside(
        python,
        HF_HUB_OFFLINE="1",
        PIP_NO_INDEX="1",
        PIP_NO_BUILD_ISOLATION="0",  # pip reads this variable inverted: 0 builds with what is installed
        PIP_DISABLE_PIP_VERSION_CHECK="1",
        JUPYTER_PATH=str(python.parents[1] / "share" / "jupyter"),
        IPYTHONDIR=str(folder / "ipython"),
    )
    out = folder / "executed.ipynb"
    program = Path(__file__).with_name("run_notebook.py")
    settings = [f"MODEL={smollm2_or_skip()}", f"OUT={folder / 'out'}"]
    command = [python, program, NOTEBOOK, NOTEBOOK.parent, out, *settings]
    done = subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    cells = json.loads(out.read_text("utf-8"))["cells"]
    return [texts_of(cell) for cell in cells if cell["cell_type"] == "code"], folder / "out"


@pytest.mark.full
@pytest.mark.timeout(600)
def test_the_notebook_installs_the_checkout_and_converts_both_types(executed: tuple[list[str], Path]) -> None:
    (settings, _, converted, *_), out = executed
    assert settings.strip() == f"{ROOT}[run]"
    assert len(re.findall(r"\d+ passed", converted)) == 2
    # the numbers of llama.h's LLAMA_FTYPE_MOSTLY_Q4_K_M and LLAMA_FTYPE_MOSTLY_Q2_K
    for label, number in (("Q4_K_M", 15), ("Q2_K", 10)):
        (path,) = out.rglob(f"*-{label}.gguf")
        assert GGUFReader(path).fields["general.file_type"].contents() == number


@pytest.mark.full
def test_the_notebook_measures_plans_and_chats(executed: tuple[list[str], Path]) -> None:
    (_, _, _, measured, planned, answered), out = executed
    assert "q4_k_m" in measured
    report = json.loads((out / "report" / "report.json").read_text("utf-8"))
    candidates = [model for model in report["models"] if model["role"] == "candidate"]
    divergence = {model["label"]: model["quality"][0]["kl"]["mean"] for model in candidates}
    assert set(divergence) == {"q4_k_m", "q2_k"}
    assert 0 < divergence["q4_k_m"] < divergence["q2_k"]
    for label in ("q2_k", "q4_k_m", "q8_0"):
        assert label in planned
    assert "atmosphere" in answered and "tokens/s" in answered
