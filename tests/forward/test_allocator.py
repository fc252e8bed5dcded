import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, threading
import numpy as np
from quantkit.forward.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()

def work():
    def step():
        arrays = [np.ones((512, 1536), np.float32) for _ in range(5)]
        return sum(float(each[0, 0]) for each in arrays)

    for _ in range(3):
        step()
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(10):
        step()
    print((resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before) // 10)

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library's allocator")
def test_a_thread_reuses_the_pages_of_freed_arrays_once_asked_to() -> None:
    def faults(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    # 15 MB in pages of 4 KB, or some where pages are huge
    assert faults("kept") < 0.02 * max(faults("given back"), 500)
