"""The options of `run` and `serve`: how llama.cpp loads a GGUF file, and how it samples tokens."""

# ruff: noqa: RUF009 (option returns a dataclass field)

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from quantkit.cli.conversion_options import THREADS
from quantkit.cli.option_groups import declared, option
from quantkit.cli.options import (
    AUTO,
    GPU_LAYERS,
    KV_TYPE,
    NO_KV_OFFLOAD,
    NO_STORED_SPEEDS,
    RPC,
    context_option,
    parse_gpu_layers,
    parse_tensor_split,
)
from quantkit.planning.context import Context

if TYPE_CHECKING:
    from quantkit.planning.layers import Placement

_FITTED = "what fits, with --gpu-layers auto"


@dataclass(frozen=True)
class LoadingOptions:
    """Where the layers, the experts, the KV cache and the draft go."""

    heading: ClassVar[str] = "Loading"
    gpu_layers: str = declared(AUTO, GPU_LAYERS)
    ctx: int | None = declared(None, context_option(least=16, default="4096 or the model's"))
    cpu_moe: int | None = option(
        None, "Layers whose experts stay on the CPU.", "--n-cpu-moe", metavar="N", min=0, show_default=_FITTED
    )
    tensor_split: str | None = option(
        None, "Layers of each GPU, as proportions.", metavar="N,N,...", show_default=_FITTED
    )
    kv_type: str = declared("f16", KV_TYPE)
    no_kv_offload: bool = declared(False, NO_KV_OFFLOAD)
    no_stored_speeds: bool = declared(False, NO_STORED_SPEEDS)
    draft: str | None = option(
        None,
        "Draft tokens by a smaller GGUF, or by the model's MTP layer.",
        metavar="FILE|mtp",
        show_default="none",
    )
    draft_tokens: int = option(3, "Tokens that --draft proposes at a time.", metavar="N", min=1, max=64)
    threads: int | None = declared(None, THREADS)
    rpc: list[str] | None = declared(None, RPC)

    def fixed_placement(self) -> "Placement | None":
        """The placement of --gpu-layers; None for auto. Raises UsageError for a value that is not one."""
        from quantkit.planning.layers import Placement

        split = parse_tensor_split(self.tensor_split, self.gpu_layers)
        if self.gpu_layers == AUTO:
            return None
        return Placement(parse_gpu_layers(self.gpu_layers), self.cpu_moe or 0, split)

    def context(self, n_ctx: int) -> Context:
        """The context of `n_ctx` tokens. Raises UsageError for a type of the KV cache that is not known."""
        return Context(
            n_ctx=n_ctx,
            kv_type=self.kv_type.lower(),
            cpu_moe=self.cpu_moe or 0,
            # an RPC server does not compute prompts with weights that lie on the CPU
            op_offload=not self.rpc,
            kv_on_gpu=not self.no_kv_offload,
        )


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen."""

    heading: ClassVar[str] = "Sampling"
    temperature: float | None = option(
        None, "Sampling temperature; 0 is greedy.", metavar="X", min=0, show_default="the model's, or 0.8"
    )
    top_k: int | None = option(
        None,
        "Sample from the N most likely tokens; 0: from all.",
        metavar="N",
        min=0,
        show_default="the model's, or 40",
    )
    top_p: float | None = option(
        None,
        "Sample from the most likely tokens with this total probability.",
        metavar="X",
        min=0,
        max=1,
        show_default="the model's, or 0.95",
    )
    min_p: float | None = option(
        None,
        "Leave out tokens below this share of the largest probability.",
        metavar="X",
        min=0,
        max=1,
        show_default="the model's, or 0.05",
    )
    repeat_penalty: float | None = option(
        None,
        "Penalty of tokens that were used recently; 1: none.",
        metavar="X",
        min=0,
        show_default="the model's, or 1",
    )
    seed: int | None = option(None, "Seed of the sampling.", metavar="N", min=0, show_default="random")

    @property
    def values(self) -> dict[str, Any]:
        """The options by name; None is the model's value."""
        return asdict(self)
