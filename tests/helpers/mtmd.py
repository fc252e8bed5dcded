"""libmtmd, llama.cpp's library for images, for the llama.cpp that is installed here.

An environment made before `make` built it has none. A test that needs it takes the one of MTMD_CPP_LIB, which
llama-cpp-python reads too, or that of the package, or that of an earlier `build`; otherwise it is skipped.

    python -m tests.helpers.mtmd        compiles it from the sdist into .cache/mtmd: a minute
"""

import os
import re
import subprocess
import tarfile
import tempfile
from pathlib import Path

from tests.helpers.peer import REPOSITORY, installed_libraries

CACHE = REPOSITORY / ".cache" / "mtmd"
VARIABLE = "MTMD_CPP_LIB"
_SDIST = "llama-cpp-python==0.3.36"
_TREE = "/vendor/llama.cpp/"
_WANTED = ("common/", "ggml/include/", "include/", "tools/mtmd/", "vendor/")


def find() -> Path | None:
    """The folder of libmtmd.so, or None."""
    folders = [Path(os.environ[VARIABLE])] if VARIABLE in os.environ else [installed_libraries(), CACHE / "lib"]
    return next((folder for folder in folders if (folder / "libmtmd.so").exists()), None)


def build() -> Path:
    """Compile libmtmd against the installed libllama, if it is not there; its folder."""
    library = CACHE / "lib" / "libmtmd.so"
    if library.exists():
        return library.parent
    for folder in ("obj", "lib"):
        (CACHE / folder).mkdir(parents=True, exist_ok=True)
    source = CACHE / "llama.cpp"
    if not source.exists():
        _unpack(source)
    folder = source / "tools" / "mtmd"
    names = re.findall(r"^ +([\w/-]+\.cpp)$", (folder / "CMakeLists.txt").read_text(), re.M)
    include = [source / "include", source / "ggml/include", source / "common", folder]
    include += [path for path in (source / "vendor").iterdir() if path.is_dir()]
    flags = ["-std=c++17", "-O2", "-fPIC", "-w", "-DNDEBUG", "-DLLAMA_BUILD", "-DLLAMA_SHARED"]
    hashes = sorted((source / "vendor" / "hash").rglob("*.c*"))
    objects = []
    for path in (*(folder / name for name in dict.fromkeys(names)), *hashes):
        objects.append(CACHE / "obj" / f"{path.relative_to(source).as_posix().replace('/', '_')}.o")
        if not objects[-1].exists():
            partial = objects[-1].with_suffix(".partial")
            # sha1.c has a namespace
            plain_c = path.suffix == ".c" and path.stem != "sha1"
            words = [*(flags[1:] if plain_c else flags), *(f"-I{place}" for place in (source / "vendor", *include))]
            command = ["cc" if plain_c else "c++", *words, *([] if plain_c else ["-xc++"])]
            subprocess.run([*command, "-c", str(path), "-o", str(partial)], check=True)
            partial.rename(objects[-1])
    libraries = str(installed_libraries())
    link = [f"-L{libraries}", "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{libraries}", "-lpthread"]
    partial = library.with_suffix(".partial")
    subprocess.run(["c++", "-shared", *map(str, objects), *link, "-o", str(partial)], check=True)
    partial.rename(library)
    return library.parent


def _unpack(target: Path) -> None:
    """The sources of libmtmd, out of the sdist."""
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        words = ["download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python", "--dest", folder, _SDIST]
        python = REPOSITORY / ".venv" / "bin" / "python"
        subprocess.run([str(python), "-m", "pip", "--disable-pip-version-check", *words], check=True)
        (archive,) = Path(folder).glob("*.tar.gz")
        unpacked = Path(folder) / "unpacked"
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile() and member.name.partition(_TREE)[2].startswith(_WANTED):
                    tar.extract(member, unpacked, filter="data")
        (tree,) = unpacked.glob("*" + _TREE)
        tree.rename(target)


if __name__ == "__main__":
    print(build())
