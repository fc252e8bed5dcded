"""Which weights llama.cpp repacks for the CPU's matrix instructions while it loads them.

Rules: ggml_repack_get_optimal_repack_type (ggml/src/ggml-cpu/repack.cpp). Repacked weights are in
allocated memory, not in the mapped file, so the kernel cannot drop and reread them. `--no-repack` turns it off.
"""

import re
from functools import lru_cache

from gguf import GGMLQuantizationType

_T = GGMLQuantizationType
_MULTIPLIED = re.compile(r"((?:enc\.|dec\.)?blk\.\d+\.((cross_)?attn_.*|ffn_.*)|output)\.weight")
# CPU feature -> repacked types, with the number of rows that are interleaved
_BY_FEATURE: dict[str, dict[GGMLQuantizationType, int]] = {
    "avx2": {_T.Q4_0: 8, _T.Q4_K: 8, _T.IQ4_NL: 8, _T.MXFP4: 8},
    "avx512f": {_T.Q2_K: 8},
    "asimddp": {_T.Q4_0: 4, _T.Q4_K: 8, _T.Q5_K: 8, _T.Q6_K: 8, _T.IQ4_NL: 4, _T.MXFP4: 4, _T.Q8_0: 4},
}


@lru_cache(maxsize=4096)
def repacked(name: str, kind: GGMLQuantizationType, shape: tuple[int, ...], features: frozenset[str]) -> bool:
    """Whether llama.cpp repacks a tensor (numpy shape) on a CPU with `features`, the flags of /proc/cpuinfo."""
    if len(shape) < 2 or not _MULTIPLIED.fullmatch(name):
        return False
    return any(
        kind in types and shape[-2] % types[kind] == 0 for feature, types in _BY_FEATURE.items() if feature in features
    )
