"""The wheel as a user installs it: every data file is in it, and it converts a model without the checkout."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.helpers.tiny import tiny_llama

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--disable-pip-version-check",
        "--no-deps",
        "-w",
        str(folder),
    ]
    done = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the wheel cannot be built here: {done.stderr.strip().splitlines()[-1:]}")
    (path,) = folder.glob("quantkit-*.whl")
    return path


@pytest.mark.full
def test_the_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "quantkit"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        missing = [name for name in tracked if name and name not in names]
        assert missing == []
        data = [name for name in tracked if name and not name.endswith(".py")]
        assert {Path(name).suffix for name in data} >= {".c", ".h", ".json", ".css", ".sh"}
        for name in data:
            assert archive.read(name) == (ROOT / name).read_bytes(), name
        assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.full
def test_the_installed_wheel_converts_a_model(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False, system_site_packages=False)
    python = tmp_path / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # the dependencies of this environment, without its link to the checkout
    packages = Path(pytest.__file__).parents[1]
    tiny_llama(tmp_path / "model", variant="llama3", hidden=64, intermediate=96)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PYTHONPATH"] = os.pathsep.join((site, str(packages)))
    words = ["-m", "quantkit", "gguf", "model", "-t", "q4_k_m", "--no-logits", "-o", "out"]
    subprocess.run([python, *words], cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert len(list((tmp_path / "out").rglob("*.gguf"))) == 1
    where = [python, "-c", "import quantkit; print(quantkit.__file__)"]
    printed = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert printed.startswith(site)


@pytest.mark.full
def test_a_wheel_with_compiled_kernels_uses_them_without_a_compiler(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)]
    done = subprocess.run(
        command, env={**os.environ, "QUANTKIT_KERNELS": "1"}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"the wheel cannot be built here: {done.stderr.strip().splitlines()[-1:]}")
    (wheel,) = tmp_path.glob("quantkit-*-py3-none-*.whl")
    assert not wheel.stem.endswith("-any")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "from quantkit.gguf import c_kernels, kernels, compiled\n"
        "assert all(map(compiled.built, ('k_quants', 'iq_grids', 'block_kernels', 'float8')))\n"
        "assert len(kernels.accelerated()) == len(c_kernels.KINDS), kernels.accelerated()\n"
    )
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "", "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, check=True, timeout=300)
