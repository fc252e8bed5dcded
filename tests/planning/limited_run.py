"""llama.cpp at work under a limit of address space: `python -m tests.planning.limited_run MODEL N_CTX LIMIT`.

The limit, in bytes (0: none), is on top of what the bare process takes once the libraries are loaded, so that it holds
what the model takes and nothing else. Prints what the process took, as JSON; ends with 1 when llama.cpp had not enough.
"""

import ctypes
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any


def status(name: str) -> int:
    """A line of /proc/self/status in bytes."""
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0]) * 1024


def main(model: str, n_ctx: int, limit: int) -> int:
    from llama_cpp import llama_cpp as llama

    llama.llama_backend_init()
    before = {"address_space": status("VmSize"), "resident": status("VmRSS")}
    if limit:
        resource.setrlimit(resource.RLIMIT_AS, (before["address_space"] + limit, resource.RLIM_INFINITY))
    loading = llama.llama_model_default_params()
    loading.use_extra_bufts = False
    loaded = llama.llama_model_load_from_file(model.encode(), loading)
    if not loaded:
        return 1
    settings = llama.llama_context_default_params()
    settings.n_ctx, settings.n_threads, settings.n_threads_batch = n_ctx, 1, 1
    settings.swa_full = False
    context = llama.llama_init_from_model(loaded, settings)
    if not context:
        return 1
    for size in (min(512, n_ctx - 1), 1):
        _decode(llama, context, size)
    after = {"address_space": status("VmPeak"), "resident": status("VmHWM")}
    print(json.dumps({"before": before, "after": after}))
    return 0


def _decode(llama: Any, context: Any, size: int) -> None:
    tokens = (llama.llama_token * size)(*(5 + i % 200 for i in range(size)))
    done = llama.llama_decode(context, llama.llama_batch_get_one(tokens, size))
    if done:
        raise MemoryError(f"llama_decode returned {done}")
    ctypes.memset(tokens, 0, ctypes.sizeof(tokens))


if __name__ == "__main__":
    code = main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.flush()
    # llama.cpp's own end needs memory that may not be there
    os._exit(code)
