"""`quantkit ollama --num-gpu auto`: as many layers as the plan finds room for on the GPU at hand, or one named."""

from dataclasses import replace

from quantkit.cli.options import parse_size
from quantkit.cli.output import Out, human_bytes
from quantkit.errors import UsageError
from quantkit.machine import this_machine
from quantkit.planning.layers import layers_that_fit
from quantkit.publish.ollama.bundle import Bundle
from quantkit.publish.ollama.facts import Facts
from quantkit.publish.ollama.overrides import Overrides

AUTO = "auto"


def read_num_gpu(text: str | None, vram: str | None) -> tuple[int | None, int | None]:
    """(layers, None) as asked; (None, bytes of GPU memory) for auto; (None, None) where nothing was.

    Raises UsageError for what is neither, or for auto where there is no GPU to plan for.
    """
    if text != AUTO:
        if vram is not None:
            raise UsageError("--vram says how much memory --num-gpu auto may take; give both")
        if text is not None and not text.isdecimal():
            raise UsageError(f"--num-gpu {text!r} is no number of layers; write a number, or auto")
        return (None if text is None else int(text)), None
    found = parse_size(vram, "--vram") if vram is not None else this_machine().vram
    if not found:
        raise UsageError("--num-gpu auto finds no GPU here; name the memory of the one to publish for, as --vram 8G")
    return None, found


def with_layers(overrides: Overrides, bundle: Bundle, facts: Facts, vram: int, out: Out) -> Overrides:
    """The overrides, and the num_gpu that fits `vram` bytes at the num_ctx that the bundle has."""
    n_ctx = int(str(dict(bundle.modelfile.parameters)["num_ctx"]))
    layers = layers_that_fit(facts.files[0], n_ctx=n_ctx, vram=vram)
    out.note(f"{facts.files[0].name}: num_gpu {layers} fits {human_bytes(vram)} with num_ctx {n_ctx}, by the plan")
    return replace(overrides, parameters=(*overrides.parameters, ("num_gpu", layers)))
