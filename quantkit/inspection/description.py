"""The result of `inspect`: plain data, the same fields for a checkpoint and its quantized forms."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class TensorGroup:
    """All tensors of one element type: their count, stored elements and bytes."""

    type: str
    tensors: int
    elements: int
    bytes: int


@dataclass(frozen=True)
class Weights:
    """The weights. `parameters` counts a tied embedding once and no scales, buffers or computed tables.

    `active_parameters` counts those that one token uses, with only the experts it is routed to. `bits_per_weight` is
    bytes of tensors times 8 over parameters, scales included.
    """

    parameters: int
    active_parameters: int
    bytes: int
    bits_per_weight: float
    groups: tuple[TensorGroup, ...]


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder; None if the source does not state one. `expert_ffn` is the width of one routed expert."""

    layers: int | None = None
    hidden: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    ffn: int | None = None
    expert_ffn: int | None = None
    experts: int | None = None
    experts_used: int | None = None
    experts_shared: int | None = None
    context: int | None = None
    sliding_window: int | None = None
    vocab: int | None = None
    positions: str | None = None
    """How positions enter attention: "rope", "alibi", "learned", "none"."""
    rope_base: float | None = None
    rope_scaling: str | None = None
    """Kind and factor of the scaling, for example "yarn x4"."""
    rope_dimensions: int | None = None


@dataclass(frozen=True)
class SpecialToken:
    """A token with a role (bos, eos, eot, ...)."""

    role: str
    id: int
    text: str


@dataclass(frozen=True)
class Vocabulary:
    """The token table of llama.cpp; `model` and `pre` are llama.cpp's names of algorithm and pre-tokenizer."""

    size: int
    model: str | None = None
    pre: str | None = None
    special: tuple[SpecialToken, ...] = ()
    adds_bos: bool | None = None
    adds_eos: bool | None = None


@dataclass(frozen=True)
class Template:
    """A chat template: the name of its format if known, and a rendered sample conversation.

    `error`: the reason if `sample` is None. `roles`: the roles of the sample. `others`: names of further templates.
    """

    name: str | None
    text: str
    sample: str | None
    roles: tuple[str, ...] = ()
    error: str | None = None
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class File:
    """A weight file and its size in bytes."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Quantization:
    """How the linears of a quantized checkpoint are packed. `kept`: unpacked matrices, by their names in a layer.

    `group`: inputs that share a scale; -1 for all, None if config.json does not state it. `symmetric`, `act_order`:
    None if the method has no such choice or config.json does not state it.
    """

    method: str
    bits: int | None
    group: int | None
    linears: int
    kept: tuple[str, ...]
    symmetric: bool | None = None
    act_order: bool | None = None
    packing: str | None = None
    """The name of the layout: "gemm", "gptq", "gptq_v2"."""


@dataclass(frozen=True)
class Output:
    """One quantized form in a folder of outputs."""

    name: str
    type: str
    bits_per_weight: float
    files: tuple[File, ...]


@dataclass(frozen=True)
class Description:
    """A model as its headers describe it. `convertible` is None for a GGUF."""

    name: str
    kind: str
    """"checkpoint", "quantized checkpoint", "GGUF", "folder of GGUF files"."""
    source: str
    family: str | None
    architecture: str | None
    shape: Shape
    weights: Weights | None
    files: tuple[File, ...]
    vocabulary: Vocabulary | None
    template: Template | None
    suggested_template: str | None = None
    type: str | None = None
    """The file type of a GGUF (q4_k_m), the method of a quantized checkpoint (AWQ 4 bit, group 128)."""
    convertible: bool | None = None
    why_not: str | None = None
    revision: str | None = None
    origin: Mapping[str, Any] | None = None
    outputs: tuple[Output, ...] = ()
    quantization: Quantization | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def size(self) -> int:
        """Bytes of all weight files."""
        return sum(file.bytes for file in self.files)

    def document(self) -> dict[str, Any]:
        """The description as JSON; `bytes` is the size of all weight files."""
        return {**asdict(self), "bytes": self.size}
