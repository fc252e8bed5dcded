"""llama.cpp's program llama-imatrix, whole: its main, its options and its common library, linked with libllama.

It is compiled from the llama-cpp-python sdist against the installed libllama on first use: 60 files without
optimization, five minutes of CPU. The sums are those of tools/imatrix/imatrix.cpp, which is optimized.
"""

import fcntl
import re
import subprocess
from pathlib import Path

from tests.helpers.imatrix_peer import Entry, read_entries
from tests.helpers.llama_tools import SOURCE
from tests.helpers.packages import CACHE, fetch_sdist_parts
from tests.helpers.peer import installed_libraries

_TREE = "vendor/llama.cpp/"
_PARTS = ("common/", "ggml/include/", "include/", "src/llama-ext.h", "tools/imatrix/", "vendor/")
_INCLUDE = ("common", "include", "ggml/include", "vendor", "vendor/nlohmann", "vendor/sheredom", "vendor/cpp-httplib")
_SOURCES = ("tools/imatrix/*.cpp", "common/*.cpp", "common/jinja/*.cpp", "common/parsers/*.cpp", "vendor/*/httplib.cpp")
_FLAGS = ("-std=c++17", "-DNDEBUG", "-pthread")


def imatrix_program() -> Path:
    """The program; objects that an interrupted build made are kept."""
    tree = fetch_sdist_parts(*SOURCE, "imatrix", tuple(_TREE + part for part in _PARTS)) / _TREE
    libraries, folder = installed_libraries(), CACHE.parent / "llama-tools" / "imatrix"
    program = folder / "llama-imatrix"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            info = folder / "build-info.cpp"
            info.write_text(re.sub(r"@\w+@", "0", (tree / "common" / "build-info.cpp.in").read_text()))
            sources = [info, *(path for pattern in _SOURCES for path in sorted(tree.glob(pattern)))]
            objects = [_compiled(source, tree, folder) for source in sources]
            link = [f"-L{libraries}", "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{libraries}", "-pthread"]
            _run(["c++", *map(str, objects), *link, "-o", str(program.with_suffix(".partial"))])
            program.with_suffix(".partial").rename(program)
    return program


def entries_of_text(model: Path, text: Path, windows: int, length: int) -> dict[str, Entry]:
    """What the program gathers of the first `windows` windows of `length` tokens, with a KV cache in float32."""
    out = text.with_suffix(".imatrix.gguf")
    # a repacked weight would hide the product from the collector
    plain = ("-ctk", "f32", "-ctv", "f32", "-fa", "off", "--no-repack", "-ngl", "0", "-t", "2", "--no-ppl")
    size = str(length)
    batches = ("-c", size, "-b", size, "-ub", size, "--chunks", str(windows))
    _run([str(imatrix_program()), "-m", str(model), "-f", str(text), "-o", str(out), *batches, *plain])
    return read_entries(out)


def _compiled(source: Path, tree: Path, folder: Path) -> Path:
    name = source.relative_to(tree) if source.is_relative_to(tree) else Path(source.name)
    target = folder / f"{str(name).replace('/', '_')}.o"
    if not target.exists():
        level = "-O2" if name.parts[0] == "tools" else "-O0"
        include = [f"-I{tree / part}" for part in _INCLUDE]
        partial = target.with_suffix(".partial")
        _run(["c++", "-c", level, *_FLAGS, *include, str(source), "-o", str(partial)])
        partial.rename(target)
    return target


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stderr[-4000:]}"
