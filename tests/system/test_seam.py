"""What only some systems have is used in quantkit/system alone."""

import ast
from collections.abc import Iterator
from pathlib import Path

import quantkit

PACKAGE = Path(quantkit.__file__).parent
MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "msvcrt", "winreg", "posix"}
NAMES = {
    "os": {
        *("sched_getaffinity", "pread", "preadv", "pwrite", "pwritev", "posix_fallocate", "fdatasync", "fchmod"),
        *("geteuid", "getuid", "sysconf", "uname", "wait4", "fork", "memfd_create", "statvfs", "killpg", "setsid"),
        *("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK", "O_DIRECTORY", "mkfifo"),
    },
    "signal": {"SIGKILL", "SIGHUP", "SIGALRM", "SIGPIPE", "SIGUSR1"},
}
# a script that runs in llama.cpp's own Python, without this package
OUTSIDE = {"llamacpp/converter_child.py"}


def bound_to_a_system(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            yield node.module or ""
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield from (f"{node.value.id}.{name}" for name in NAMES.get(node.value.id, ()) if name == node.attr)


def test_no_other_room_calls_what_only_some_systems_have() -> None:
    named = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith("system/") and name not in OUTSIDE:
            named[name] = list(bound_to_a_system(ast.parse(path.read_text("utf-8"))))
    assert {name: calls for name, calls in named.items() if calls} == {}


def test_the_check_sees_imports_and_attributes() -> None:
    code = "import os, fcntl\nfrom pwd import getpwnam\nos.pread(0, 1, 2)\nos.read(0, 1)\nimport json"
    assert sorted(bound_to_a_system(ast.parse(code))) == ["fcntl", "os.pread", "pwd"]
