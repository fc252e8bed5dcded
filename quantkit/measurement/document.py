"""The schema of report.json, as typed values; `reading` builds them from a document.

Sizes are bytes, KL divergences nats a token, agreements fractions of 1, speeds tokens a second.
"""

from collections.abc import Mapping
from dataclasses import dataclass

SCHEMA = 1
"""The version of the schema; a document without the key `schema` is of version 1."""


@dataclass(frozen=True)
class Value:
    """A figure with its standard error; None if the document has no error."""

    value: float
    error: float | None


@dataclass(frozen=True)
class Histogram:
    """Counts of tokens between neighbouring `edges`; the first and the last bin include the values outside."""

    edges: tuple[float, ...]
    counts: tuple[float, ...]


@dataclass(frozen=True)
class Divergence:
    """KL divergence of a candidate from the reference, in nats a token."""

    mean: Value | None
    median: float | None
    p90: float | None
    p99: float | None
    p999: float | None
    max: float | None
    histogram: Histogram | None


@dataclass(frozen=True)
class Quality:
    """Figures of a model on one text. Only candidates have more than `perplexity`: pairs of the same tokens.

    difference, ratio: of the perplexity, against the reference's.
    top1: fraction of tokens whose most likely token is the reference's; top5: shared part of the five most likely.
    probability: mean change of the probability of the text's own token; probability_rms: its root mean square.
    """

    text: str
    perplexity: Value | None
    difference: Value | None
    ratio: Value | None
    kl: Divergence | None
    top1: Value | None
    top5: Value | None
    probability: Value | None
    probability_rms: Value | None


@dataclass(frozen=True)
class Embeddings:
    """Figures of an encoder on the retrieval set `set`. Candidates have more than `recall`.

    recall: share of the queries whose own passage is the nearest one.
    cosine_mean, cosine_worst: of a text's embedding with the reference's.
    rank_correlation: Spearman's, of similarities of queries and passages, or of a reranker's scores.
    top10_overlap: shared part of a query's ten nearest passages.
    score_correlation: Pearson's, of a reranker's scores.
    """

    set: str
    texts: int | None
    width: int | None
    recall: float | None
    cosine_mean: float | None
    cosine_worst: float | None
    rank_correlation: float | None
    top10_overlap: float | None
    score_correlation: float | None


@dataclass(frozen=True)
class Pictures:
    """Answers of a model that sees to questions about the pictures of `set`; `tokens` is their number in all answers.

    projector: the file of the projector; `projector_bytes` is its size.
    same_answers: how many answers of the reference the model gives too.
    top1: share of the answers' tokens that are the most likely ones. kl: mean divergence from the reference.
    """

    set: str
    pictures: int | None
    tokens: int | None
    projector: str
    projector_bytes: float | None
    same_answers: int | None
    top1: float | None
    kl: float | None


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of one device."""

    name: str
    parts: Mapping[str, float]
    """Kind (weights, kv, compute, other) -> bytes, only what was measured."""

    @property
    def total(self) -> float:
        """Bytes of all kinds."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Memory:
    """Memory of a GGUF in llama.cpp with `gpu_layers` layers on the GPU and a context of `n_ctx` tokens, in bytes.

    peak_rss, peak_pss: of the process. driver: (GPU, use as NVML reports it).
    """

    gpu_layers: str
    n_ctx: int | None
    devices: tuple[DeviceMemory, ...]
    peak_rss: float | None
    peak_pss: float | None
    driver: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Speed:
    """Tokens a second of a GGUF in llama.cpp, reading a prompt and generating; `estimate`: the latter, by the plan."""

    gpu_layers: str | None
    threads: int | None
    repetitions: int | None
    prompt_tokens: int | None
    prompt: Value | None
    generated_tokens: int | None
    generation: Value | None
    estimate: float | None = None
    cpu_moe: int | None = None


@dataclass(frozen=True)
class DeviceSpeed:
    """What estimates the speed: bytes a second that a device reads, of all types and by tensor type."""

    name: str
    bandwidth: float | None
    by_type: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class TensorError:
    """Relative Frobenius error of a weight; `layer` is None outside the layers."""

    layer: int | None
    kind: str
    type: str
    error: float


@dataclass(frozen=True)
class Model:
    """One model of a report. `label` is short and unique in it; `bytes` is the size of the weight files.

    `vocabulary`: the number of tokens.
    """

    name: str
    label: str
    is_reference: bool
    kind: str
    path: str
    engine: str
    bytes: float | None
    parameters: int | None
    bits_per_weight: float | None
    vocabulary: int | None
    quality: tuple[Quality, ...]
    memory: tuple[Memory, ...]
    speed: tuple[Speed, ...]
    tensor_errors: tuple[TensorError, ...]
    embeddings: Embeddings | None = None
    pictures: Pictures | None = None
    device_speed: tuple[DeviceSpeed, ...] = ()

    def on(self, text: str) -> Quality | None:
        """The figures on a text; None if it was not measured."""
        return next((quality for quality in self.quality if quality.text == text), None)


@dataclass(frozen=True)
class Text:
    """A text of the measurement; `chunks` windows of it were used, and `scored_tokens` tokens in them scored."""

    name: str
    sha256: str
    tokens: int | None
    chunks: int | None
    scored_tokens: int | None


@dataclass(frozen=True)
class Report:
    """A whole report. `flags`: a sentence for each limit that a candidate exceeds; `gpus`: (name, bytes)."""

    version: str
    created: str
    cpu: str
    cores: int | None
    memory_bytes: float | None
    gpus: tuple[tuple[str, float | None], ...]
    ctx: int | None
    chunks: int | None
    threads: int | None
    texts: tuple[Text, ...]
    models: tuple[Model, ...]
    flags: tuple[str, ...]
    seconds: float | None

    @property
    def reference(self) -> Model | None:
        """The model that the others are compared with."""
        return next((model for model in self.models if model.is_reference), None)

    @property
    def candidates(self) -> tuple[Model, ...]:
        """All models but the reference."""
        return tuple(model for model in self.models if not model.is_reference)
