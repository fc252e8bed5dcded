"""C code of quantkit, compiled with this machine's compiler and kept in the user's cache folder.

The first use compiles it (about two seconds); later uses load it from there. The cached library is loaded only if this
user alone can have written it (private_cache.py), and if it has the sha256 recorded at its compilation. Otherwise the
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
# No fused multiply-add: it rounds once where ggml's code rounds twice.
_FLAGS = ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_COMPILE_SECONDS = 60


def compiled(*sources: Path, optimize: Sequence[str] = ("-O3",)) -> ctypes.CDLL:
    """The library of C files, from the cache or newly compiled. `optimize`: options of the compiler.

    Raises OSError (no compiler, no writable folder) or subprocess.SubprocessError (the source does not compile).
    """
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
            made = _compile(command, sources, folder / name)
            digest = made.with_suffix(".sha256")
            digest.write_text(hashlib.sha256(made.read_bytes()).hexdigest())
            for path in (made, digest):
                path.chmod(0o644)
                path.replace(cache / path.name)
        library = load_trusted(cache / name)
        if library is None:
            raise OSError(f"{cache / name} changed while it was compiled")
    return library


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
