"""Files of LoRA adapters: whether a GGUF is one, and whether it fits a model."""

from pathlib import Path

from quantkit.errors import CheckpointError, UsageError
from quantkit.gguf.metadata import REORDERED_KEY
from quantkit.gguf.reader import GgufHeader, read_header, shard_paths

KIND = "adapter"
"""general.type of an adapter's file."""
_A, _B = ".lora_a", ".lora_b"
_FEED_FORWARD = ".ffn_"
_EMBEDDING = "token_embd.weight"


def check_adapter(adapter: Path, model: Path) -> None:
    """Raise UsageError unless `adapter` is the GGUF of a LoRA adapter that llama.cpp loads with the GGUF `model`.

    llama.cpp (llama_adapter_lora_init) compares the architecture, and the shapes of each tensor's two matrices. It does
    not know of neurons in another order.
    """
    if not adapter.is_file():
        raise UsageError(f"adapter {adapter} not found; check the path")
    try:
        header = read_header(adapter)
    except CheckpointError as error:
        raise UsageError(f"{error}; pass the GGUF that quantkit lora writes") from error
    kind, method = header.value("general.type"), header.value("adapter.type")
    if kind != KIND or method != "lora":
        raise UsageError(
            f"{adapter.name} is not a LoRA adapter: general.type is {kind!r}, adapter.type {method!r}; pass the GGUF"
            " that quantkit lora writes"
        )
    headers = [read_header(shard) for shard in shard_paths(model)]
    theirs, ours = header.value("general.architecture"), headers[0].value("general.architecture")
    if theirs != ours:
        raise UsageError(
            f"{adapter.name} is for the architecture {theirs}, but {model.name} is {ours}; pass the adapter of this"
            " model"
        )
    changed = next((slot.name for slot in header.tensors if _FEED_FORWARD in slot.name), None)
    if changed is not None and headers[0].value(REORDERED_KEY):
        raise UsageError(
            f"{adapter.name} changes {changed.removesuffix(_A).removesuffix(_B)}, but the neurons of {model.name} have"
            " another order; convert the model without --reorder-neurons, or with --adapter"
        )
    _check_shapes(header, {slot.name: slot.shape for part in headers for slot in part.tensors}, model)


def _check_shapes(header: GgufHeader, shapes: dict[str, tuple[int, ...]], model: Path) -> None:
    for slot in header.tensors:
        name = slot.name.removesuffix(_A).removesuffix(_B)
        if name == slot.name:
            continue
        shape = shapes.get(name)
        if shape is None:
            raise UsageError(
                f"{header.path.name} changes {name}, which {model.name} does not have; pass the adapter of this model"
            )
        inputs, outputs = shape[-1], shape[-2] if len(shape) > 1 else 1
        if name == _EMBEDDING:
            # its A is stored as (tokens, r), because tokens select its rows
            fits = slot.shape[-2] == (outputs if slot.name.endswith(_A) else inputs)
        else:
            fits = slot.shape[-1] == inputs if slot.name.endswith(_A) else slot.shape[-2] == outputs
        if not fits:
            raise UsageError(
                f"{slot.name} of {header.path.name} has shape {list(slot.shape)}, but {name} of {model.name} has"
                f" {list(shape)}; pass the adapter of this model"
            )
