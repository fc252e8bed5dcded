"""Damages files and reads them, in a process of its own: `python -m tests.fuzz.run FOLDER SECONDS COUNT [TARGET]`.

Input NUMBER of TARGET is always the same. Each target is run until its share of SECONDS, or COUNT inputs, are used up.
FOLDER/at names the input at work, so that a crash, a hang or a kill can be told of its input.
"""

import random
import resource
import signal
import sys
import time
from pathlib import Path

from quantkit.errors import QuantkitError
from tests.fuzz.targets import Target, make_targets
from tests.helpers.mutations import mutated

MOST_SECONDS, MOST_BYTES = 20, 2 << 30


def damaged(name: str, number: int, data: bytes, region: int | None) -> bytes:
    """The input: `data` with its first `region` bytes mutated."""
    rng = random.Random(f"{name} {number}")
    return mutated(data[:region], rng) + (data[region:] if region is not None else b"")


def main(folder: Path, seconds: float, count: int, only: str = "", first: int = 0) -> int:
    targets = make_targets(folder)
    if only:
        targets = {only: targets[only]}
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _limit_memory()
    faults = 0
    for name, target in targets.items():
        faults += _run(name, target, folder / "at", seconds / len(targets), range(first, first + count))
    return 1 if faults else 0


def _run(name: str, target: Target, at: Path, seconds: float, numbers: range) -> int:
    target.read()  # the seed is sound
    data, until, refused, done = target.file.read_bytes(), time.monotonic() + seconds, 0, 0
    for number in numbers:
        if time.monotonic() > until and done:
            break
        at.write_text(f"{name}: input {number}")
        target.file.write_bytes(damaged(name, number, data, target.region))
        signal.alarm(MOST_SECONDS)
        try:
            target.read()
        except QuantkitError:
            refused += 1
        except Exception as error:
            print(f"{name}: input {number}: {type(error).__name__}: {error}", flush=True)
            return 1
        finally:
            signal.alarm(0)
            target.file.write_bytes(data)
        done += 1
    print(f"{name}: {done} inputs, {refused} refused", flush=True)
    return 0


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MOST_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(main(Path(words[0]), float(words[1]), int(words[2]), *words[3:4], *map(int, words[4:5])))
