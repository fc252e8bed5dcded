"""The Python files of a checkpoint that its configs name (auto_map): found and read as text, never executed.

Source: transformers' dynamic_module_utils.py. A reference is FILE.CLASS, or ORG/NAME--FILE.CLASS for a file of another
repository; the file's relative imports belong to it.
"""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from quantkit.checkpoint.folder import stays_inside
from quantkit.checkpoint.jsonfile import read_hints

AUTO_MAP = "auto_map"
LARGEST = 2_000_000
"""Bytes that a file of code has at most."""
_MOST_FILES, _MOST_NAMES = 64, 4096
_REFERENCE = re.compile(r"(?:([\w.-]+/[\w.-]+)--)?([\w/-]+)\.\w+", re.ASCII)
_IMPORT = re.compile(r"^[ \t]*from[ \t]+(\.+)([\w.]*)[ \t]+import[ \t]+(\([^)]{0,2000}\)|[^\n#]*)", re.MULTILINE)
_COMMENT = re.compile(r"#[^\n]*")
# a snapshot in the hub's cache has links into this folder of its repository
_SNAPSHOT = re.compile(r"/models--[^/]+/snapshots/[0-9a-f]{40}$")
_BLOBS = "blobs"

Read = Callable[[str], bytes | None]
"""The bytes of a file of the checkpoint; None if it has none of this name."""


@dataclass(frozen=True)
class RemoteCode:
    """What a loader of the folder executes if it is told to trust it.

    Attributes:
        files: the files, by their names below the checkpoint's folder, in order.
        missing: the files that a reference or an import names, and that cannot be copied.
        repositories: where code of other repositories is.
    """

    files: Mapping[str, Path]
    missing: tuple[str, ...] = ()
    repositories: tuple[str, ...] = ()

    @cached_property
    def size(self) -> int:
        """Bytes of the files."""
        return sum(path.stat().st_size for path in self.files.values())


NO_CODE = RemoteCode({})


def remote_code(folder: Path, config: Mapping[str, Any]) -> RemoteCode:
    """The code that `config` and the tokenizer_config.json of a checkpoint's folder name.

    A link that leads out of the folder is not followed; a snapshot in the hub's cache has links into its own cache.
    """
    modules, repositories = references([config, read_hints(folder / "tokenizer_config.json")])
    if not modules:
        return RemoteCode({}, (), repositories)
    folder = folder.resolve()
    roots = [folder, *([folder.parents[1] / _BLOBS] if _SNAPSHOT.search(folder.as_posix()) else [])]

    def read(name: str) -> bytes | None:
        return _read(folder / name, roots)

    found, missing = with_imports(modules, read)
    return RemoteCode({name: folder / name for name in found}, missing, repositories)


def references(configs: Iterable[Mapping[str, Any]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The files that the `auto_map` of these configs name, and the other repositories; each once, in order."""
    modules: dict[str, None] = {}
    repositories: dict[str, None] = {}
    for config in configs:
        classes = config.get(AUTO_MAP)
        for entry in classes.values() if isinstance(classes, dict) else ():
            for reference in entry if isinstance(entry, list) else (entry,):
                match = _REFERENCE.fullmatch(reference) if isinstance(reference, str) else None
                if match is None:
                    continue
                repository, module = match.groups()
                if repository:
                    repositories[repository] = None
                elif stays_inside(name := f"{module}.py"):
                    modules[name] = None
    return tuple(modules), tuple(repositories)


def with_imports(modules: Iterable[str], read: Read) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(The files that exist of `modules` and of what they import relatively, those that do not), each in order."""
    found: dict[str, None] = {}
    missing: dict[str, None] = {}
    waiting = deque((name, True) for name in modules)
    tried: set[tuple[str, bool]] = set()
    while waiting and len(tried) < _MOST_NAMES:
        name, needed = waiting.popleft()
        if name in found or name in missing or (name, needed) in tried:
            continue
        tried.add((name, needed))
        data = read(name) if len(found) < _MOST_FILES else None
        if data is not None:
            found[name] = None
            waiting.extend(_imports(name, data.decode("utf-8", "replace"), read))
        elif needed:
            missing[name] = None
    return tuple(sorted(found)), tuple(sorted(missing))


def _imports(name: str, text: str, read: Read) -> Iterator[tuple[str, bool]]:
    """The files that the relative imports of a file may mean, and whether one must exist."""
    here = PurePosixPath(name).parent
    if here.parts:
        yield str(here / "__init__.py"), False
    for dots, module, names in _IMPORT.findall(text):
        levels = len(dots) - 1
        if levels > len(here.parts):
            yield f"{'../' * (levels - len(here.parts))}{module or '__init__'}.py", True
            continue
        base = here
        for _ in range(levels):
            base = base.parent
        base = base.joinpath(*filter(None, module.split(".")))
        if module and read(str(base / "__init__.py")) is None:
            yield f"{base}.py", True
            continue
        yield str(base / "__init__.py"), False
        for imported in _COMMENT.sub("", names).strip("() \t\n").split(","):
            word = imported.split()[0] if imported.split() else ""
            if word.isidentifier():
                # without a file of this name it is a value of the package
                yield str(base / f"{word}.py"), False


def _read(path: Path, roots: list[Path]) -> bytes | None:
    try:
        inside = any(path.resolve(strict=True).is_relative_to(root) for root in roots)
        if not inside or not path.is_file() or path.stat().st_size > LARGEST:
            return None
        return path.read_bytes()
    except (OSError, RuntimeError):  # RuntimeError: links in a circle
        return None
