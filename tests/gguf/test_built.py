"""Compiled kernels in a wheel: the hook compiles what the package loads, and the processor decides which is loaded."""

import ast
import shutil
import subprocess
from pathlib import Path

import pytest

import quantkit
from quantkit.gguf import c_kernels, compiled
from quantkit.quant import block_kernels, float8_kernel
from quantkit.system import processor

ROOT = Path(__file__).parents[2]
V3 = {"avx2", "fma", "f16c", "bmi1", "bmi2", "abm", "movbe"}
V4 = V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


def test_the_hook_compiles_the_libraries_that_the_package_loads() -> None:
    lines = ast.parse((ROOT / "hatch_build.py").read_text()).body
    stated = {
        line.targets[0].id: ast.literal_eval(line.value)
        for line in lines
        if isinstance(line, ast.Assign)
        and isinstance(line.targets[0], ast.Name)
        and line.targets[0].id in ("LIBRARIES", "OPTIMIZE", "FLAGS")
    }
    package = Path(quantkit.__file__).resolve().parent
    loaded = (c_kernels.SOURCES, c_kernels.LATTICE_SOURCES, (block_kernels.SOURCE,), (float8_kernel.SOURCE,))
    assert stated["LIBRARIES"] == tuple(
        tuple(path.resolve().relative_to(package).as_posix() for path in sources) for sources in loaded
    )
    assert stated["FLAGS"] == compiled._FLAGS
    for module in (c_kernels, block_kernels, float8_kernel):
        assert stated["OPTIMIZE"] == module._OPTIMIZE


@pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler")
@pytest.mark.parametrize(
    ("machine", "features", "answer"),
    [
        ("x86_64", V4, 4),
        ("x86_64", V4 - {"avx512vl"}, 3),
        ("x86_64", V3 - {"fma"}, 1),
        ("aarch64", {"asimd"}, 8),
    ],
)
def test_the_library_of_a_wheel_is_the_one_for_this_processor(
    machine: str, features: set[str], answer: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "answer.c"
    for level, value in (("x86-64", 1), ("x86-64-v3", 3), ("x86-64-v4", 4), ("any", 8)):
        source.write_text(f"int answer(void) {{ return {value}; }}")
        subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / f"answer-{level}.so", source], check=True)
    monkeypatch.setattr(compiled, "BUILT", tmp_path)
    monkeypatch.setattr(compiled.platform, "machine", lambda: machine)
    monkeypatch.setattr(processor, "features", lambda: frozenset(features))
    monkeypatch.setenv("PATH", "")  # no compiler is needed
    assert compiled.compiled(source).answer() == answer
