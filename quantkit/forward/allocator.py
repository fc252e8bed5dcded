"""How the C library's allocator treats what the forward frees."""

import ctypes

# malloc.h of glibc; the second is at most half of a thread's heap, 64 MiB.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT = 32 << 20
_KEPT = 512 << 20


def keep_freed_memory() -> bool:
    """Let freed arrays of up to 32 MiB be reused rather than given back; whether the C library does (glibc only).

    In all threads but the first, glibc returns a large array to the system and maps it again page by page. With
    a hidden size of 576 this takes a sixth of the forward's time. The setting lasts for the rest of the process.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT) and mallopt(_M_TRIM_THRESHOLD, _KEPT))
