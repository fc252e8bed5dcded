"""A stand-in for an Android phone with Termux: a $PREFIX with its commands, /proc and /sys of real phones' shapes.

The commands are shims that log what they are called with and whether it had been printed by then. `ollama` and
`llama-server` answer over HTTP as far as the script asks; `pkg` installs and removes shims; runit is the real one where
a test asks for it, else a few lines that start a service's `run`.
"""

import ast
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.helpers.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "termux" / "termux.sh"

QUAD = ((1_500_000,) * 4, ())
BIG_LITTLE = ((1_804_800,) * 4 + (2_841_600,) * 4, ())
THREE_CLUSTERS = ((2_016_000,) * 3 + (2_803_200,) * 4 + (3_187_200,), (326,) * 3 + (812,) * 4 + (1024,))
ALL_BIG = ((3_532_800,) * 6 + (4_320_000,) * 2, (789,) * 6 + (1024,) * 2)
"""Speeds in kHz and, where the kernel tells them, capacities, core by core."""

# json, shutil and socket take longer to import than Python takes to start
_LOG = """
import os, sys
words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
root = os.environ["PHONE"]
try:
    said = open(os.path.join(root, "stdout")).read()
except OSError:
    said = ""
printed = any(all(word in line for word in words[1:]) and words[0] in line for line in said.splitlines())
with open(os.path.join(root, "calls"), "a") as log:
    log.write(repr((words, printed)) + "\\n")
"""

_PKG = """
action, names = sys.argv[1], [word for word in sys.argv[2:] if not word.startswith("-")]
broken = os.environ.get("PHONE_BROKEN", "").split()
for name in names:
    shelf, mark = os.path.join(root, "shelf", name), os.path.join(root, "installed", name)
    if action == "install":
        if name in broken:
            sys.exit(f"E: Unable to locate package {name}")
        os.spawnvp(os.P_WAIT, "cp", ["cp", "-RLp", shelf + "/.", os.environ["PREFIX"]])
        open(mark, "w").close()
    else:
        for folder, _, files in os.walk(shelf):
            for file in files:
                there = os.path.relpath(os.path.join(folder, file), shelf)
                os.remove(os.path.join(os.environ["PREFIX"], there))
        os.remove(mark)
"""

_DPKG_QUERY = """\
for name; do :; done
if [ -e "$PHONE/installed/$name" ]; then printf 'install ok installed'; exit 0; fi
printf 'unknown ok not-installed'
exit 1"""

# http.server and urllib take longer to import than all the rest of a run
_SERVE = """
def serve(port, version):
    import socket
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", port))
    server.listen(16)
    with open(os.path.join(root, "pids"), "a") as pids:
        pids.write(f"{os.getpid()}\\n")
    print("serving", flush=True)
    while True:
        client, _ = server.accept()
        with client:
            try:
                client.settimeout(5)
                asked = client.recv(65536).split()
                status = "200 OK" if asked[1:2] in ([b"/api/version"], [b"/health"]) else "404 Not Found"
                client.sendall(f"HTTP/1.0 {status}\\r\\nContent-Length: {len(version)}\\r\\n\\r\\n{version}".encode())
            except OSError:
                pass
def answers(host):
    import socket
    name, _, port = host.rpartition(":")
    try:
        with socket.create_connection((name, int(port)), 5) as server:
            server.sendall(b"GET /api/version HTTP/1.0\\r\\n\\r\\n")
            return b" 200 " in server.recv(65536)
    except OSError:
        return False
"""

_OLLAMA = (
    _SERVE
    + """
host = os.environ.get("OLLAMA_HOST", "127.0.0.1:11434")
models = os.path.join(os.environ["HOME"], ".ollama", "models")
manifests = os.path.join(models, "manifests")
def manifest(name):
    return os.path.join(manifests, name.replace("/", "+"))
command = sys.argv[1]
if command == "--version":
    print("ollama version is 0.31.1")
elif command == "serve":
    os.makedirs(manifests, exist_ok=True)
    serve(int(host.rpartition(":")[2]), '{"version":"0.31.1"}')
else:
    if not answers(host):
        sys.exit("Error: could not connect to ollama server, run 'ollama serve' to start it")
    name = sys.argv[2]
    if command == "show" and not os.path.exists(manifest(name)):
        sys.exit(f"Error: model '{name}' not found")
    elif command == "pull":
        import json
        if os.environ.get("PHONE_BROKEN_PULL"):
            sys.exit("Error: pull model manifest: dial tcp: lookup registry.ollama.ai: no such host")
        open(manifest(name), "w").write(json.dumps({"pulled": name}))
    elif command == "create":
        import json
        file = sys.argv[4]
        text = open(file, encoding="utf-8", newline="").read()
        source = text.split("\\n")[0].removeprefix("FROM ")
        made = {"modelfile": text}
        if source.startswith("."):
            import hashlib
            data = open(os.path.join(os.path.dirname(file), source), "rb").read()
            made["sha256"] = hashlib.sha256(data).hexdigest()
        else:
            made |= {key: value for key, value in json.load(open(manifest(source))).items() if key != "modelfile"}
        open(manifest(name), "w").write(json.dumps(made))
    elif command == "rm":
        os.remove(manifest(name))
"""
)

_LLAMA_SERVER = (
    _SERVE
    + """
if sys.argv[1] == "--version":
    sys.exit(0)
assert os.path.isfile(sys.argv[sys.argv.index("-m") + 1])
serve(int(sys.argv[sys.argv.index("--port") + 1]), '{"status":"ok"}')
"""
)

# Starts what is there, once; `sv` as far as the script uses it.
_DAEMON = """
import glob, subprocess
if sys.argv[1] == "start":
    for run in glob.glob(os.path.join(os.environ["SVDIR"], "*", "run")):
        folder = os.path.dirname(run)
        try:
            pid = open(os.path.join(folder, "supervise", "pid")).read()
            runs = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            runs = False
        if not runs:
            os.makedirs(os.path.join(folder, "supervise"), exist_ok=True)
            child = subprocess.Popen([run], start_new_session=True, stdin=subprocess.DEVNULL,
                                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            open(os.path.join(folder, "supervise", "pid"), "w").write(str(child.pid))
"""
_SV = """
import signal, subprocess, time
folder = sys.argv[2]
pid = os.path.join(folder, "supervise", "pid")
if sys.argv[1] in ("force-shutdown", "restart"):
    os.kill(int(open(pid).read()), signal.SIGTERM)
if sys.argv[1] == "restart":
    time.sleep(0.3)
    child = subprocess.Popen([os.path.join(folder, "run")], start_new_session=True, stdin=subprocess.DEVNULL,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    open(pid, "w").write(str(child.pid))
"""
_REAL_DAEMON = """
import signal, subprocess
pid = os.path.join(os.environ["PREFIX"], "var", "run", "service-daemon.pid")
if sys.argv[1] == "start" and not os.path.exists(pid):
    os.makedirs(os.path.dirname(pid), exist_ok=True)
    child = subprocess.Popen(["runsvdir", os.environ["SVDIR"]], start_new_session=True, stdin=subprocess.DEVNULL,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    open(pid, "w").write(str(child.pid))
    with open(os.path.join(root, "daemons"), "a") as daemons:
        daemons.write(f"{child.pid}\\n")
elif sys.argv[1] == "stop":
    os.kill(int(open(pid).read()), signal.SIGHUP)
    os.remove(pid)
    os.rmdir(os.path.dirname(pid))
"""
_GIT = "os.makedirs(sys.argv[-1])\n"
_CMAKE = """
import shutil
if sys.argv[1] == "--build":
    source = os.path.dirname(sys.argv[2])
    shutil.copy2(os.path.join(root, "shelf", "ollama", "bin", "ollama"), os.path.join(source, "ollama"))
"""


@dataclass(frozen=True)
class Ended:
    """How a run of the script ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def sentence(self) -> str:
        """What it refused with: one sentence."""
        (line,) = [line for line in self.stderr.splitlines() if line.startswith("termux.sh: ")]
        return line

    @property
    def steps(self) -> list[str]:
        """The commands it printed."""
        return [line for line in self.stdout.splitlines() if line.startswith("+ ")]


@dataclass
class Phone:
    """One phone. `memory`: MemTotal in MiB, `available` MemAvailable; `free`: bytes that df tells."""

    root: Path
    speeds: tuple[tuple[int, ...], tuple[int, ...]] = BIG_LITTLE
    memory: int = 7_500
    available: int = 4_000
    free: int = 50_000_000_000
    machine: str = "aarch64"
    runit: Path | None = None
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.prefix, self.home = self.root / "usr", self.root / "home"
        for folder in (
            self.prefix / "bin",
            self.prefix / "etc" / "profile.d",
            self.prefix / "var",
            self.prefix / "tmp",
            self.home,
            self.root / "installed",
        ):
            folder.mkdir(parents=True)
        (self.prefix / "bin" / "sh").symlink_to("/bin/sh")
        self.port, self.llama_port = free_port(), free_port()
        self.shim("bin/pkg", _LOG + _PKG, self.prefix)
        self.shell("dpkg-query", _DPKG_QUERY)
        for name in ("termux-wake-lock", "termux-wake-unlock"):
            self.shim(f"bin/{name}", _LOG, self.prefix)
        self.shelve("ollama", ollama=_LOG + _OLLAMA)
        self.shelve("llama-cpp", **{"llama-server": _LOG + _LLAMA_SERVER, "llama-cli": _LOG})
        daemon = _REAL_DAEMON if self.runit else _DAEMON
        self.shelve("termux-services", **{"service-daemon": _LOG + daemon})
        start = self.root / "shelf" / "termux-services" / "etc" / "profile.d" / "start-services.sh"
        start.parent.mkdir(parents=True)
        start.write_text("export SVDIR=$PREFIX/var/service\n(service-daemon start >/dev/null 2>&1 &)\n")
        if self.runit:
            for tool in ("runsvdir", "runsv", "sv", "svlogd", "chpst"):
                shutil.copy2(self.runit / tool, self.root / "shelf" / "termux-services" / "bin" / tool)
        else:
            self.shelve("termux-services", sv=_LOG + _SV)
        self.shelve("git", git=_LOG + _GIT)
        self.shelve("cmake", cmake=_LOG + _CMAKE)
        for name in ("golang", "ninja", "clang", "libandroid-spawn"):
            self.shelve(name)
        self.look()

    def look(self) -> None:
        """Write what /proc, /sys, uname and df tell."""
        cpus = self.root / "sys" / "devices" / "system" / "cpu"
        shutil.rmtree(cpus, ignore_errors=True)
        for number, speed in enumerate(self.speeds[0]):
            cpu = cpus / f"cpu{number}"
            (cpu / "cpufreq").mkdir(parents=True)
            (cpu / "cpufreq" / "cpuinfo_max_freq").write_text(f"{speed}\n")
            if self.speeds[1]:
                (cpu / "cpu_capacity").write_text(f"{self.speeds[1][number]}\n")
        cpus.mkdir(parents=True, exist_ok=True)
        (cpus / "cpuidle").mkdir()
        (self.root / "proc").mkdir(exist_ok=True)
        kib = {"MemTotal": self.memory * 1024, "MemFree": 200_000, "MemAvailable": self.available * 1024}
        (self.root / "proc" / "meminfo").write_text(
            "".join(f"{key}:{value:>15} kB\n" for key, value in {**kib, "HugePages_Total": 0}.items())
        )
        self.shell("uname", f"echo {self.machine}")
        self.shell(
            "df",
            "echo Filesystem 1024-blocks Used Available Capacity Mounted\n"
            f"echo /dev/block/dm-9 1 1 {self.free // 1024} 1% /data",
        )

    def shell(self, name: str, text: str) -> None:
        path = self.prefix / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def shim(self, name: str, code: str, where: Path) -> None:
        path = where / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!{sys.executable} -IS\n{code}")
        path.chmod(0o755)

    def shelve(self, package: str, **commands: str) -> None:
        """What `pkg install PACKAGE` brings."""
        (self.root / "shelf" / package / "bin").mkdir(parents=True, exist_ok=True)
        for name, code in commands.items():
            self.shim(f"bin/{name}", code, self.root / "shelf" / package)

    def install(self, package: str) -> None:
        """The user had it before."""
        shutil.copytree(self.root / "shelf" / package, self.prefix, dirs_exist_ok=True)
        (self.root / "installed" / package).touch()

    def environment(self) -> dict[str, str]:
        return {
            "PATH": f"{self.prefix}/bin:/usr/bin:/bin",
            "PREFIX": str(self.prefix),
            "HOME": str(self.home),
            "PHONE": str(self.root),
            "LANG": "C.UTF-8",
            "OLLAMA_HOST": f"127.0.0.1:{self.port}",
            "QUANTKIT_LLAMA_PORT": str(self.llama_port),
            "QUANTKIT_PROC": str(self.root / "proc"),
            "QUANTKIT_SYS": str(self.root / "sys"),
            "QUANTKIT_WAIT": "60",
            "QUANTKIT_PAUSE": "0",
            **self.env,
        }

    def run(self, *options: str | Path, script: str | Path = SCRIPT, piped: bool = False) -> Ended:
        """Run the script, a path or a text; `piped` as `curl ... | bash -s -- OPTIONS` does."""
        text = script.read_text() if isinstance(script, Path) else script
        words = ["bash", "-s", "--"] if piped else ["bash", str(self._file(text))]
        with (self.root / "stdout").open("w+b") as out, (self.root / "stderr").open("w+b") as err:
            done = subprocess.run(
                [*words, *map(str, options)],
                input=text.encode() if piped else b"",
                stdout=out,
                stderr=err,
                cwd=self.home,
                env=self.environment(),
                timeout=100,
                check=False,
            )
        outputs = [(self.root / name).read_text(errors="replace") for name in ("stdout", "stderr")]
        return Ended(done.returncode, *outputs)

    def _file(self, text: str) -> Path:
        path = self.root / "termux.sh"
        path.write_text(text)
        return path

    def calls(self, *commands: str) -> list[list[str]]:
        """What the shims of these names were called with, in order."""
        return [words for words, _ in self._calls() if words[0] in commands]

    def unprinted(self) -> list[list[str]]:
        """Calls that changed something and had not been printed when they happened."""
        asking = {("ollama", "show"), ("ollama", "--version"), ("ollama", "serve"), ("llama-server", "--version")}
        own = [(words, printed) for words, printed in self._calls() if tuple(words[:2]) not in asking]
        return [words for words, printed in own if not printed and words[0] != "llama-server"]

    def _calls(self) -> list[tuple[list[str], bool]]:
        log = self.root / "calls"
        return [ast.literal_eval(line) for line in log.read_text().splitlines()] if log.exists() else []

    def tree(self) -> dict[str, str]:
        """Every file, link and folder of $PREFIX and $HOME, with what is in it."""
        entries = {}
        for base in (self.prefix, self.home):
            for path in sorted(base.rglob("*")):
                name = str(path.relative_to(self.root))
                if path.is_symlink():
                    entries[name] = f"-> {path.readlink()}"
                elif path.is_fifo():
                    entries[name] = "fifo"
                else:
                    entries[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        return entries

    def models(self) -> dict[str, dict[str, str]]:
        """What the server has, by name."""
        folder = self.home / ".ollama" / "models" / "manifests"
        return {path.name.replace("+", "/"): json.loads(path.read_text()) for path in sorted(folder.glob("*"))}

    def parameters(self, model: str) -> dict[str, str]:
        lines = self.models()[model]["modelfile"].splitlines()
        return dict(line.split(" ", 2)[1:] for line in lines if line.startswith("PARAMETER "))  # type: ignore[misc]

    def pids(self) -> list[int]:
        """The servers that were started and still run."""
        log = self.root / "pids"
        return [pid for pid in map(int, log.read_text().split()) if _runs(pid)] if log.exists() else []

    def answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def put_out(self) -> None:
        """End what still runs: the daemon first, so that it starts nothing again."""
        daemons = self.root / "daemons"
        for pid in map(int, daemons.read_text().split()) if daemons.exists() else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGHUP)
        if daemons.exists():
            time.sleep(0.5)
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextlib.contextmanager
def switched_on(phone: Phone) -> Iterator[Phone]:
    try:
        yield phone
    finally:
        phone.put_out()


def wait_until(true: object, seconds: float = 60) -> bool:
    """Whether `true()` comes to hold."""
    assert callable(true)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.1)
    return False


def options(values: Mapping[str, object]) -> list[str]:
    """--name value pairs."""
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]
