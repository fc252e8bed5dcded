"""The embedding of GGUF files, rounded with error feedback for what the first layer makes of it.

llama.cpp rounds each weight of it alone. Here the rows are rounded by a sum of `quant.embedding`. An embedding that is
the head too keeps llama.cpp's bytes: it gets a type of more bits, in most files Q6_K or Q8_0.
"""

from functools import cached_property, partial

import numpy as np
from gguf import GGMLQuantizationType

from quantkit.conversion.asymmetric_layers import AsymmetricRounder
from quantkit.conversion.embedding_trial import EmbeddingTrial
from quantkit.conversion.gguf_layers import FeedbackRounder
from quantkit.conversion.gguf_matrices import Array, GgufMatrix
from quantkit.conversion.gguf_pass import Target
from quantkit.conversion.gguf_rounding import MatrixRounding, PreparedInput
from quantkit.forward.weights import f32
from quantkit.gguf.blocks import FORMATS
from quantkit.gguf.kernels import dequantize_rows
from quantkit.outputs.model import FLOAT_TYPES, widen
from quantkit.quant.feedback import Curvature
from quantkit.stream.rounded import EmbeddingRows
from quantkit.stream.stream import Stream
from quantkit.system import descriptors

EMBEDDING = "token_embd.weight"
OF_STREAMED = "the model is converted as it is downloaded, and the first layer comes after it"
"""Why the embedding of a streamed source is rounded without error feedback."""


class GgufEmbedding:
    """The embedding of the files of `rounder`. `stream`: of the source's states."""

    def __init__(self, rounder: FeedbackRounder, stream: Stream) -> None:
        self._rounder, self._stream = rounder, stream
        tensors = {tensor.name: tensor for tensor in rounder.plan.model.tensors}
        # a file of draft layers alone may have none
        self._tensor, self._is_head = tensors.get(EMBEDDING), "output.weight" not in tensors
        self._targets = rounder.targets(EMBEDDING) if self._tensor is not None else []

    @property
    def feeds_back(self) -> bool:
        """Whether a file has it in a type that is rounded with error feedback."""
        return bool(self._kinds) and not self._is_head and self._is_the_sources

    @property
    def comes_first(self) -> bool:
        """Whether it is written before the layers, and not by the pass after them."""
        return self.feeds_back or (bool(self._targets) and isinstance(self._rounder, AsymmetricRounder))

    def write(self) -> list[str]:
        """Round it and write it into every file; why a type was rounded without error feedback.

        Raises:
            CalibrationError: a hidden state is not finite.
            OutputError: a file cannot be written.
        """
        tensor, rounder = self._tensor, self._rounder
        assert tensor is not None
        whole = GgufMatrix(rounder.plan.model, tensor, 0, tensor.n_rows, None)
        weights = rounder.plan.weights.get(EMBEDDING)
        by: dict[GGMLQuantizationType, Curvature] = {}
        if self.feeds_back:
            by = EmbeddingTrial(self._stream, self._kinds, rounder.workers).best()
        reasons: list[str] = []
        for kind in dict.fromkeys(target.slot.type for target in self._targets):
            prepared = PreparedInput(by[kind]) if kind in by else "rounding each weight alone is about as good"
            if kind in FORMATS and isinstance(prepared, str):
                reasons.append(prepared)
            importance = None if weights is None else weights[0]
            rounding = MatrixRounding(prepared, importance, rounder.plan.request.sweeps, rounder.workers)
            rounding.write(whole, [target for target in self._targets if target.slot.type == kind], None, None)
        return reasons

    def rows(self, label: str) -> EmbeddingRows | None:
        """Rows of the embedding in the partial file `label`; None if they are the source's."""
        for target in self._targets:
            if target.label == label and target.slot.type not in FLOAT_TYPES.values() and self._is_the_sources:
                return partial(_read, target)
        return None

    @property
    def _kinds(self) -> list[GGMLQuantizationType]:
        kinds = dict.fromkeys(target.slot.type for target in self._targets)
        return [kind for kind in kinds if kind in FORMATS and self._tensor is not None and kind != self._tensor.type]

    @cached_property
    def _is_the_sources(self) -> bool:
        """Whether the GGUF has the rows of the source's embedding as they are, by some of them."""
        stream, tensor = self._stream, self._tensor
        assert tensor is not None
        name, model = stream.decoder.embedding + ".weight", self._rounder.plan.model
        ids = np.unique(stream.tokens[:1])[:4].tolist() if tensor.row_step == 1 else []
        return bool(ids) and all(
            np.array_equal(
                widen(model.read_rows(EMBEDDING, id, id + 1), tensor), f32(stream.native.rows(name, id, id + 1))
            )
            for id in ids
        )


def _read(target: Target, start: int, stop: int) -> Array:
    """Rows of a tensor in a partial file, float32."""
    slot, count = target.slot, stop - start
    data = descriptors.read_at(target.descriptor, count * slot.row_bytes, slot.offset + start * slot.row_bytes)
    return dequantize_rows(slot.type, np.frombuffer(data, np.uint8).reshape(count, slot.row_bytes), slot.shape[-1])
