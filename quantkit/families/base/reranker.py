"""Rerankers that are decoders: the model answers "yes" or "no", and the two logits are the score.

Their config.json is that of any text model. As llama.cpp's converter does, the README or the name of the checkpoint
decides. The GGUF has the two rows of the output head as a classifier; llama.cpp takes the softmax of both.

Source: llama.cpp conversion/qwen.py (Qwen3Model), src/llama-graph.cpp (build_pooling).
"""

from collections.abc import Collection

import numpy as np

from quantkit.checkpoint import Checkpoint
from quantkit.errors import UnsupportedError
from quantkit.families.base.family import Key, Rule, Take
from quantkit.families.base.hyperparameters import Hyperparameters
from quantkit.families.base.pooling import RANK, SETTING, pooling_keys
from quantkit.tokenizer import hf_token_ids

ANSWERS = ("yes", "no")
"""The tokens whose logits are the score, in the order of the classifier's rows."""

_ROWS = "answer_ids"
"""The name under which the config holds the ids of ANSWERS."""

_TEMPLATE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct"
    ' provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
    "<Query>: {query}\n<Document>: {document}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
"""The prompt that the models were trained with, as llama.cpp's server fills it in."""


def resolve_reranker(checkpoint: Checkpoint, names: Collection[str]) -> None:
    """Mark the config of an open checkpoint as a reranker if its README's heading or its name has one of `names`.

    Raises:
        UnsupportedError: the tokenizer has no token for an answer.
    """
    if not names or not _is_called(checkpoint, names):
        return
    ids = hf_token_ids(checkpoint.folder, ANSWERS)
    for answer, tokens in zip(ANSWERS, ids, strict=True):
        if len(tokens) != 1:
            raise UnsupportedError(
                f"{checkpoint.source} is a reranker by its name, but its tokenizer has no token {answer!r}; rename the"
                " folder to convert it as a text model"
            )
    checkpoint.config = {**checkpoint.config, SETTING: RANK, _ROWS: [tokens[0] for tokens in ids]}


def _is_called(checkpoint: Checkpoint, names: Collection[str]) -> bool:
    readme = checkpoint.folder / "README.md"
    try:
        text = readme.read_text(encoding="utf-8", errors="replace").lower()
    except OSError:
        text = ""
    hints = (checkpoint.name, str(checkpoint.config.get("_name_or_path", "")))
    return any(f"# {name}" in text or any(name in hint.lower() for hint in hints) for name in names)


def is_reranker(sizes: Hyperparameters) -> bool:
    """Whether the checkpoint is a reranker of this kind."""
    return sizes.config.get(_ROWS) is not None


def keeps_head(sizes: Hyperparameters) -> bool:
    """Whether the GGUF has a separate output head; a reranker has only two rows of it."""
    return not is_reranker(sizes) or sizes.tied


def _rows(sizes: Hyperparameters) -> Take:
    return Take(np.array(sizes.config[_ROWS], np.int64))


ANSWER_ROWS = (
    Rule(
        "model.embed_tokens.weight",
        "cls.output.weight",
        ("vocab", "hidden"),
        take=_rows,
        when=lambda sizes: is_reranker(sizes) and sizes.tied,
    ),
    Rule(
        "lm_head.weight",
        "cls.output.weight",
        ("vocab", "hidden"),
        take=_rows,
        when=lambda sizes: is_reranker(sizes) and not sizes.tied,
    ),
)


def reranker_keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The pooling; of a reranker also the labels and the prompt."""
    if not is_reranker(sizes):
        return pooling_keys(arch, sizes)
    return [
        *pooling_keys(arch, sizes),
        Key(f"{arch}.classifier.output_labels", "strs", list(ANSWERS)),
        Key("tokenizer.chat_template.rerank", "str", _TEMPLATE),
        Key("tokenizer.chat_templates", "strs", ["rerank"]),
    ]
