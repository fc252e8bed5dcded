"""The build hook of the wheel: with QUANTKIT_KERNELS=1 the wheel holds compiled kernels and is one system's.

Without it the wheel is the same for every system, and quantkit compiles its kernels on their first use. This file runs
in an environment that has hatchling only, so it imports nothing of quantkit.
"""

import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# The sources of each library, and the compiler's options, as the modules that load them state them; a test compares.
LIBRARIES = (
    ("gguf/c/k_quants.c", "gguf/c/block32.c", "gguf/c/iq4.c"),
    ("gguf/c/iq_grids.c",),
    ("quant/block_kernels.c",),
    ("quant/float8.c",),
)
OPTIMIZE = ("-O2", "-ftree-vectorize")
FLAGS = ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
HEADERS = "gguf/c"
# The wheel chooses at run time, so it holds the same code for several processors.
LEVELS = ("x86-64", "x86-64-v3", "x86-64-v4") if platform.machine() in ("x86_64", "AMD64") else ("",)


def build(package: Path, folder: Path) -> list[Path]:
    """Compile every library for every level into `folder`. Raises OSError or subprocess.SubprocessError."""
    compiler = next(filter(None, map(shutil.which, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")))), None)
    if compiler is None:
        raise FileNotFoundError("QUANTKIT_KERNELS=1 needs a C compiler; install one, or unset the variable")
    made = []
    for sources in LIBRARIES:
        for level in LEVELS:
            out = folder / f"{Path(sources[0]).stem}-{level or 'any'}.so"
            command = [compiler, *OPTIMIZE, *FLAGS, *([f"-march={level}"] if level else []), f"-I{package / HEADERS}"]
            subprocess.run([*command, "-o", out, *(package / source for source in sources), "-lm"], check=True)
            made.append(out)
    return made


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the compiled kernels to the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the kernels into a temporary folder, and name the system in the wheel's tag."""
        if version == "editable" or os.environ.get("QUANTKIT_KERNELS") != "1":
            return
        self.folder = tempfile.TemporaryDirectory()
        for path in build(Path(self.root) / "quantkit", Path(self.folder.name)):
            build_data["force_include"][str(path)] = f"quantkit/gguf/built/{path.name}"
        system = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data |= {"pure_python": False, "tag": f"py3-none-{system}"}

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the temporary folder."""
        if hasattr(self, "folder"):
            self.folder.cleanup()
