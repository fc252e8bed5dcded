"""The options of a llama.cpp context that its memory depends on."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from quantkit.errors import UsageError

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

KV_TYPES = ("f16", "q8_0", "q4_0")
"""Names of ggml's types for the KV cache."""


@dataclass(frozen=True)
class Context:
    """llama.cpp's -c, -ctk and -ctv, -b, -ub, -fa, -ngl, --n-cpu-moe, -ts, -nkvo, --op-offload.

    The defaults are llama-cli's. `flash`: None lets llama.cpp decide; it uses flash attention if the device supports
    it. `op_offload`: the GPU also computes prompts with weights on the CPU; CUDA does this, an RPC server does not.
    `split`: the layers of each of several GPUs, whose sum is `gpu_layers`; empty for one GPU. `kv_on_gpu`: the KV cache
    of a layer is where the layer is; otherwise all of it is on the CPU.
    """

    n_ctx: int = 4096
    kv_type: str = "f16"
    n_batch: int = 2048
    n_ubatch: int = 512
    flash: bool | None = None
    gpu_layers: int = 0
    cpu_moe: int = 0
    op_offload: bool = True
    split: tuple[int, ...] = ()
    kv_on_gpu: bool = True

    def __post_init__(self) -> None:
        if self.kv_type not in KV_TYPES:
            raise UsageError(f"unknown KV cache type {self.kv_type!r}; choose from {', '.join(KV_TYPES)}")
        if self.kv_type != "f16" and self.flash is False:
            raise UsageError(
                f"a {self.kv_type} KV cache needs flash attention; remove --no-flash-attn or use --kv-type f16"
            )

    @property
    def flash_on(self) -> bool:
        """Whether flash attention is used."""
        return self.flash is not False

    @property
    def cells(self) -> int:
        """Cells of the cache: n_ctx, rounded up to a multiple of 256 (llama_context's constructor)."""
        return -(-self.n_ctx // 256) * 256

    @property
    def tokens(self) -> int:
        """Tokens of the largest graph: the smallest of physical batch, logical batch and context."""
        return min(self.n_ubatch, self.n_batch, self.n_ctx)

    def window_cells(self, window: int) -> int:
        """Cells of the cache of layers with a sliding window (llama_kv_cache_iswa)."""
        return -(-min(self.cells, window + self.tokens) // 256) * 256

    @property
    def one_batch(self) -> "Context":
        """The context with one physical batch for all of its tokens, as an encoder needs it."""
        return replace(self, n_batch=self.n_ctx, n_ubatch=self.n_ctx)

    @property
    def kv_cache(self) -> "GGMLQuantizationType":
        """ggml's type of the KV cache."""
        # a command's help shows KV_TYPES, and must not wait for the gguf package
        from gguf import GGMLQuantizationType

        return GGMLQuantizationType[self.kv_type.upper()]
