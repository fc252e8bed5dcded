"""The llama.cpp commands that run an encoder, or a decoder that reads an encoder's output."""

import shlex

from quantkit.planning.encoder import RANK
from quantkit.planning.shape import ModelShape


def encoder_commands(shape: ModelShape, file: str, options: str, n_ctx: int) -> list[str]:
    """Commands that give embeddings, or the scores of a reranker; one physical batch holds a whole text.

    Of T5, the command that gives its answer.
    """
    if not shape.gives_vectors:
        return [f"llama-completion -m {shlex.quote(file)} {options}"]
    options += f" -b {n_ctx} -ub {n_ctx}"
    if shape.number("pooling_type") == RANK:
        return [f"llama-server -m {shlex.quote(file)} --reranking -np 1 {options}"]
    server = f"llama-server -m {shlex.quote(file)} --embedding -np 1 {options}"
    return [f"llama-embedding -m {shlex.quote(file)} {options}", server]
