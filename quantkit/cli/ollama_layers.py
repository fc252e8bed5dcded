"""`quantkit ollama --gpu-layers`: a number of layers, all of them, or as many as fit the GPU memory."""

from dataclasses import replace

from quantkit.cli.options import parse_gpu_layers, parse_size
from quantkit.cli.output import Out, human_bytes
from quantkit.errors import UsageError
from quantkit.machine import this_machine
from quantkit.planning.layers import layers_that_fit
from quantkit.publish.ollama.bundle import ALL_LAYERS, Bundle
from quantkit.publish.ollama.facts import Facts
from quantkit.publish.ollama.overrides import Overrides

AUTO = "auto"


def read_num_gpu(text: str | None, vram: str | None) -> tuple[int | None, int | None]:
    """(layers, None) for a number or `all`; (None, bytes of GPU memory) for `auto`; (None, None) without the option.

    Raises:
        UsageError: `text` is not a number, `all` or `auto`, or `auto` is given and this machine has no GPU.
    """
    if text != AUTO:
        if vram is not None:
            raise UsageError("--vram is the GPU memory of --gpu-layers auto; give both")
        if text is None:
            return None, None
        layers = parse_gpu_layers(text, "auto, all, or a number")
        return (ALL_LAYERS if layers is None else layers), None
    memory = parse_size(vram, "--vram") if vram is not None else this_machine().vram
    if not memory:
        raise UsageError(
            "--gpu-layers auto finds no GPU on this machine; pass the GPU memory to publish for, such as --vram 8G"
        )
    return None, memory


def with_layers(overrides: Overrides, bundle: Bundle, facts: Facts, vram: int, out: Out) -> Overrides:
    """The overrides with the num_gpu that fits `vram` bytes at the num_ctx of the bundle."""
    n_ctx = int(str(dict(bundle.modelfile.parameters)["num_ctx"]))
    layers = layers_that_fit(facts.files[0], n_ctx=n_ctx, vram=vram)
    out.note(f"{facts.files[0].name}: num_gpu {layers} fits {human_bytes(vram)} with num_ctx {n_ctx}, by the plan")
    return replace(overrides, parameters=(*overrides.parameters, ("num_gpu", layers)))
