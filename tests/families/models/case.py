"""A tiny model of a family: what it is made of, without torch."""

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from tests.families.models.mxfp4 import to_mxfp4

Tensors = dict[str, np.ndarray]
Publish = Callable[[dict[str, Any], Tensors], tuple[dict[str, Any], Tensors]]

_IN_MXFP4 = re.compile(r"(?:model\.)?layers\.\d+\.ffn\.experts\.\d+\.w[123]\.weight$")

TOKENS = (3, 141, 59, 26, 5, 35, 89, 79, 3, 238, 46, 264, 33, 8, 32, 250)
VOCAB = 288


@dataclass(frozen=True)
class Case:
    """One tiny model.

    With `newest`, `config` is config.json as the hub has it, read by the class `auto` of transformers 5, and the
    tensors have the names and shapes that this class saves; the converter is the newest one. A model without a head
    (AutoModel) gets its logits from its embedding, as llama.cpp has them.

    Otherwise `config` goes to the transformers config class of its `model_type`; the model is its AutoModelForCausalLM.
    Weights are `weight(seed, name, shape)`. `publish` turns config and tensors into the layout in which remote-code
    families are published; a family that transformers knows needs none. `patch` names a function of with_transformers
    that changes the model before it runs, where transformers has no class for it. `converter` says whether llama.cpp's
    own converter gets this checkpoint right; if not, only the logits decide. `drift` is the difference of logits that
    is allowed, relative to their standard deviation.

    `tokenizer` is the style of the tokenizer files (see tokenizers.py); `vocabulary` says whether the converter makes
    its keys of these files as it does of published ones. `differs` are keys that are not the converter's on purpose.
    `raw_config`: the converter reads config.json itself. With transformers 5 it takes the defaults of the config class,
    which may stand for another kind of model (experts for Nemotron-H). Without `forward`, our own forward does not run
    the model, so only its GGUF is compared. `rounded` ends the names of tensors that the converter
    computes with torch's exp, which is one unit in the last place off in one value of a hundred: their types and shapes
    are compared. An `encoder` has its last hidden states in place of logits. `pre`: the name that the converter is told
    for the pre-tokenizer. `graph_differs`: llama.cpp's graph is not the model's; the family has a caution about it.
    `other_names`: the forward has the names of published checkpoints, and the class saves others.
    `reference`: the function that makes the model, where transformers has no class near it (see with_transformers).
    """

    name: str
    config: Mapping[str, Any]
    publish: Publish | None = None
    patch: str | None = None
    converter: bool = True
    seed: int = 0
    drift: float = 0.02
    newest: bool = False
    auto: str = "AutoModelForCausalLM"
    tokenizer: str = "smollm"
    vocabulary: bool = True
    differs: tuple[str, ...] = ()
    raw_config: bool = False
    forward: bool = True
    rounded: tuple[str, ...] = ()
    encoder: bool = False
    pre: str = "smollm"
    graph_differs: bool = False
    reference: str | None = None
    other_names: bool = False

    @property
    def multimodal(self) -> bool:
        """Whether the checkpoint holds more than a text model with a head, or less."""
        return self.auto != ("AutoModel" if self.encoder else "AutoModelForCausalLM")


def weight(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The values of one tensor, float32, the same everywhere: RandomState is the stream numpy promises to keep.

    Scaled so that every tensor matters to the logits: norms about 1, biases of a fifth, matrices by their inputs.
    DeepSeek-V4's experts have values that MXFP4 has, and its tables different experts for a token (int64).
    """
    if name.endswith("tid2eid"):
        top = shape[-1]
        first = np.random.RandomState(zlib.crc32(f"{seed}:{name}".encode())).randint(0, 2 * top, (shape[0], 1))
        return (first + np.arange(top)) % (2 * top)
    values = np.random.RandomState(zlib.crc32(f"{seed}:{name}".encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("sinks"):
        return values
    if name.endswith("bias") or "_bias" in name.rsplit(".", 1)[-1]:
        return np.float32(0.2) * values
    if name.endswith("A_log"):
        # so that a recurrent state still holds the first tokens at the last one
        return values - np.float32(2.0)
    if len(shape) < 2:
        return np.asarray(np.float32(1.0) + np.float32(0.2) * values)
    if "embed" in name or "wte" in name or "wpe" in name:
        return values * np.float32(0.5)
    values = values * np.float32(1.3 / shape[-1] ** 0.5)
    return to_mxfp4(values)[0] if _IN_MXFP4.match(name) else values


def native_weights(case: Case, layout: Mapping[str, Sequence[int]]) -> Tensors:
    """The tensors of `layout` (name -> shape), made once in a process: all tiny models have 7,600, of 180 MB.

    Read-only, unless the case has a layout of its own to publish, which may change them.
    """
    tensors = {name: _shared_weight(case.seed, name, tuple(shape)) for name, shape in layout.items()}
    return {name: np.array(values) for name, values in tensors.items()} if case.publish else tensors


@cache
def _shared_weight(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    values = weight(seed, name, shape)
    values.flags.writeable = False
    return values
