"""The kernels by clang, for x86-64, for NEON under qemu-user, and for Windows: the recorded bytes of x86-64.

zig is clang with every target's headers, as a wheel; it is installed once under .cache/zig.
"""

import hashlib
import platform
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

from quantkit.gguf import c_kernels, compiled
from quantkit.gguf.lattice import LATTICE_KINDS
from quantkit.gguf.types import row_bytes

ROOT = Path(__file__).parents[2]
_ZIG = ROOT / ".cache" / "zig"
# rows and importances come in as files of floats; the bytes of every type go to stdout
_HARNESS = """
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#ifdef _WIN32
#include <fcntl.h>
#include <io.h>
#endif
typedef void quantize(const float *, uint8_t *, int64_t, int64_t, const float *, int);
%s
static float *load_floats(const char *path, long *count) {
    FILE *file = fopen(path, "rb");
    fseek(file, 0, SEEK_END);
    *count = ftell(file) / 4;
    rewind(file);
    float *values = malloc(*count * 4);
    if (fread(values, 4, *count, file) != (size_t)*count) exit(2);
    return values;
}
int main(int n, char **paths) {
    long count, columns;
    float *rows = load_floats(paths[1], &count), *weights[8];
    for (int i = 2; i < n; i++) weights[i - 2] = load_floats(paths[i], &columns);
    uint8_t *out = malloc(count * 4);
#ifdef _WIN32
    _setmode(1, _O_BINARY);
#endif
    struct { quantize *run; int bytes; } kinds[] = {%s};
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        for (int i = -1; i < n - 2; i++) {
            kinds[k].run(rows, out, count / 512, 512, i < 0 ? NULL : weights[i], 0);
            fwrite(out, 1, count / 512 * kinds[k].bytes, stdout);
        }
    return 0;
}
"""


@pytest.fixture(scope="module")
def zig() -> list[str]:
    python = _ZIG / "bin" / "python"
    if not python.exists():
        venv.create(_ZIG, with_pip=True)
    command = [str(python), "-m", "pip", "install", "-q", "ziglang"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("ziglang cannot be installed here")
    return [str(python), "-m", "ziglang", "cc"]


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="programs for Linux x86-64")
@pytest.mark.parametrize(
    ("target", "options", "runner"),
    [
        ("x86_64-linux-musl", ["-mcpu=x86_64_v4"], ""),
        ("x86_64-linux-musl", ["-mcpu=x86_64_v3"], ""),
        ("x86_64-linux-musl", ["-mcpu=x86_64"], ""),
        ("aarch64-linux-musl", [], "qemu-aarch64-static"),
        ("x86_64-windows-gnu", ["-mcpu=x86_64_v3"], "wine"),
    ],
)
def test_clang_makes_the_recorded_bytes(
    zig: list[str], target: str, options: list[str], runner: str, tmp_path: Path
) -> None:
    # the others need tables, and a library of their own
    kinds = [kind for kind in c_kernels.KINDS if kind not in LATTICE_KINDS]
    declared = "".join(f"quantize quantkit_{kind.name.lower()};\n" for kind in kinds)
    listed = ", ".join(f"{{quantkit_{kind.name.lower()}, {row_bytes(kind, 512)}}}" for kind in kinds)
    (tmp_path / "main.c").write_text(_HARNESS % (declared, listed))
    flags = [flag for flag in compiled._FLAGS if flag not in ("-shared", "-fPIC")]
    program = tmp_path / "kernels.exe"
    command = [*zig, "-target", target, *options, "-O2", *flags, f"-I{compiled.HEADERS}", "-o", str(program)]
    subprocess.run([*command, str(tmp_path / "main.c"), *map(str, c_kernels.SOURCES), "-lm"], check=True)
    if runner and not shutil.which(runner):
        pytest.skip(f"compiled, not run: {runner} is not installed")
    if options == ["-mcpu=x86_64_v4"] and "avx512vl" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("compiled, not run: this processor is below x86-64-v4")
    files = [tmp_path / str(index) for index in range(3)]
    rows = c_kernels.regular_rows()
    for path, values in zip(files, (rows, *c_kernels.awkward_importances()), strict=True):
        path.write_bytes(np.ascontiguousarray(values).tobytes())
    start = [runner, str(program)] if runner else [str(program)]
    data = subprocess.run([*start, *map(str, files)], stdout=subprocess.PIPE, check=True).stdout
    for kind in kinds:
        size = 3 * len(rows) * row_bytes(kind, 512)
        digest, data = hashlib.sha256(data[:size]).hexdigest()[:24], data[size:]
        assert digest == c_kernels.X86_64_BYTES[kind], kind.name
    assert not data
