"""C code of quantkit: out of a wheel that holds it compiled, or compiled with this machine's compiler and kept.

A wheel built with QUANTKIT_KERNELS=1 holds each library for several processors (hatch_build.py). Otherwise the first
use compiles it into the user's cache folder (about two seconds), and later uses load it from there. The cached library
is loaded only if no other user can have written it (private_cache.py) and its sha256 is the recorded one. Otherwise the
code is compiled again, in a private temporary folder if the cache folder is not private.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from quantkit.private_cache import private_cache_folder, read_private
from quantkit.scratch import scratch_folder
from quantkit.system import processor

HEADERS = Path(__file__).parent / "c"
BUILT = Path(__file__).parent / "built"
# The levels of the x86-64 ABI, by the features that Linux lists; the levels below are implied.
_LEVELS = {
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx2", "fma", "bmi2"},
    "x86-64-v3": {"avx2", "fma", "f16c", "bmi1", "bmi2", "abm", "movbe"},
    "x86-64": set(),
}
# No fused multiply-add: it rounds once where ggml's code rounds twice.
_FLAGS = ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_COMPILE_SECONDS = 300  # an emulated or busy ARM needs over a minute; without the kernels its bytes are its own ggml's


def compiled(*sources: Path, optimize: Sequence[str] = ("-O3",)) -> ctypes.CDLL:
    """The library of C files: the wheel's, the cache's or newly compiled. `optimize`: options of the compiler.

    Raises OSError (no compiler, no writable folder) or subprocess.SubprocessError (the source does not compile).
    """
    library = built(sources[0].stem)
    if library is not None:
        return library
    compiler = next(filter(None, map(shutil.which, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")))), None)
    if compiler is None:
        raise FileNotFoundError("no C compiler")
    command = [compiler, *optimize, *_FLAGS, *(("-march=native",) if platform.machine() in ("x86_64", "AMD64") else ())]
    texts = [path.read_bytes() for path in (*sources, *sorted(HEADERS.glob("*.h")))]
    identity = [*texts, " ".join(command[1:]).encode(), str(Path(compiler).resolve()).encode()]
    # -march=native compiles for this processor; different machines may share the cache folder
    identity.append(processor.identity())
    name = f"{sources[0].stem}-{hashlib.sha256(b'|'.join(identity)).hexdigest()[:16]}.so"
    cache = private_cache_folder()
    if cache is None:
        with scratch_folder() as folder:
            return ctypes.CDLL(str(_compile(command, sources, folder / name)))
    library = load_trusted(cache / name)
    if library is None:
        with scratch_folder(str(cache)) as folder:
            compiled_file = _compile(command, sources, folder / name)
            digest = compiled_file.with_suffix(".sha256")
            digest.write_text(hashlib.sha256(compiled_file.read_bytes()).hexdigest())
            for path in (compiled_file, digest):
                path.chmod(0o644)
                path.replace(cache / path.name)
        library = load_trusted(cache / name)
        if library is None:
            raise OSError(f"{cache / name} changed while it was compiled")
    return library


def built(stem: str) -> ctypes.CDLL | None:
    """The wheel's own library for this processor; None without one."""
    levels = ["any"]
    if platform.machine() in ("x86_64", "AMD64"):
        features = processor.features()
        levels = [level for level, needed in _LEVELS.items() if needed <= features]
    path = next((path for level in levels if (path := BUILT / f"{stem}-{level}.so").is_file()), None)
    return ctypes.CDLL(str(path)) if path is not None else None


def load_trusted(path: Path) -> ctypes.CDLL | None:
    """The library at `path`; None when it is missing, incomplete, or another user may have written it."""
    try:
        recorded = read_private(path.with_suffix(".sha256"))
        data = read_private(path)
    except OSError:
        return None
    if hashlib.sha256(data).hexdigest().encode() != recorded.strip():
        return None
    return ctypes.CDLL(str(path))


def _compile(command: Sequence[str], sources: Sequence[Path], library: Path) -> Path:
    # the compiler's own temporary files stay there too, should it be killed
    environment = {**os.environ, "TMPDIR": str(library.parent)}
    subprocess.run(
        [*command, f"-I{HEADERS}", "-o", str(library), *map(str, sources), "-lm"],
        check=True,
        capture_output=True,
        timeout=_COMPILE_SECONDS,
        env=environment,
    )
    return library
