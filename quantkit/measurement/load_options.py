"""How llama.cpp loads a model for a measurement of memory or speed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType

from quantkit.gguf.types import tensor_type

_FLASH_ATTENTION = {None: -1, False: 0, True: 1}


@dataclass(frozen=True)
class LoadOptions:
    """Parameters of llama_model_params and llama_context_params.

    Attributes:
        gpu_layers: layers to offload; None for all. Without a device nothing is offloaded.
        kv_type: GGML type of the KV cache.
        flash_attn: flash attention; None leaves the choice to llama.cpp.
        n_batch, n_ubatch: tokens of a logical and of a physical batch.
        n_threads: None for the cores that this process may use.
        rpc: llama.cpp rpc-servers ("host:port") whose devices count as GPUs.
        cpu_moe: the first layers, whose experts stay on the CPU.
        tensor_split: the share of the layers of each device; empty for shares of their free memory.
        kv_on_gpu: the KV cache of a layer is where the layer is; otherwise all of it is on the CPU.
    """

    gpu_layers: int | None = None
    kv_type: str = "f16"
    flash_attn: bool | None = None
    n_batch: int = 2048
    n_ubatch: int = 512
    n_threads: int | None = None
    rpc: Sequence[str] = ()
    cpu_moe: int = 0
    tensor_split: Sequence[float] = ()
    kv_on_gpu: bool = True

    def request(self, model: Path) -> dict[str, Any]:
        """The fields of a request to the child process (`quantkit.llamacpp.loading`).

        Raises:
            UsageError: `kv_type` is unknown.
        """
        return {
            "model": str(model),
            "gpu_layers": -1 if self.gpu_layers is None else self.gpu_layers,
            "kv_type": int(GGMLQuantizationType(tensor_type(self.kv_type))),
            "flash_attn": _FLASH_ATTENTION[self.flash_attn],
            "n_batch": self.n_batch,
            "n_ubatch": self.n_ubatch,
            "n_threads": self.n_threads,
            "rpc": list(self.rpc),
            "cpu_moe": self.cpu_moe,
            "tensor_split": list(self.tensor_split),
            "kv_on_gpu": self.kv_on_gpu,
        }
