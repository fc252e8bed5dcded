"""The commands of a plan: those that make the recommended type and run it."""

import shlex
from typing import TYPE_CHECKING

from gguf import GGMLQuantizationType

from quantkit.outputs.gguf_files import FLOATS
from quantkit.planning.budget import Fit
from quantkit.planning.context import Context
from quantkit.planning.encoder_commands import encoder_commands
from quantkit.planning.sizes import Offer
from quantkit.units import size_argument

if TYPE_CHECKING:
    from quantkit.planning.result import Plan, Row


def commands(plan: "Plan") -> list[str]:
    """The commands that make the best type and run it; empty if nothing fits."""
    if plan.best is None:
        return []
    if plan.for_phone:
        return _phone_commands(plan, plan.best)
    if plan.best.fit is None:
        return _folder_commands(plan, plan.best)
    return _gguf_commands(plan, plan.best, plan.best.fit)


def target_command(plan: "Plan") -> str | None:
    """The command that makes the largest file that fits as a whole."""
    if plan.target_size is None:
        return None
    return f"quantkit gguf {_checkpoint(plan)} --target-size {size_argument(plan.target_size)}{_requantize(plan)}"


def _phone_commands(plan: "Plan", row: "Row") -> list[str]:
    if plan.source.is_gguf:
        return [f"quantkit termux --gguf {shlex.quote(plan.given)}"]
    file = shlex.quote(f"{plan.source.model.name}-GGUF/{row.offer.file}")
    options = f"--preset phone{_matrix(plan)}{_requantize(plan)}"
    return [f"quantkit gguf {_checkpoint(plan)} {options}", f"quantkit termux --gguf {file}"]


def _matrix(plan: "Plan") -> str:
    return "" if plan.imatrix is None else f" --imatrix {shlex.quote(str(plan.imatrix))}"


def _requantize(plan: "Plan", offer: Offer | None = None) -> str:
    """The option without which weights that were published in a type of ggml cannot get another one.

    offer: the form that is made; None for one of several types.
    """
    unquantized = (*FLOATS, GGMLQuantizationType.I32)
    made = {} if offer is None else {tensor.name: tensor.type for tensor in offer.tensors}
    changed = any(t.type not in unquantized and made.get(t.name) != t.type for t in plan.source.model.tensors)
    return " --allow-requantize" if changed else ""


def _checkpoint(plan: "Plan") -> str:
    """The source for a conversion; a config.json alone is enough to plan, not to convert."""
    return "ORG/NAME" if plan.source.is_config else shlex.quote(plan.given)


def _folder_commands(plan: "Plan", row: "Row") -> list[str]:
    offer = row.offer
    group = f" --group-size {offer.group}" if offer.group not in (0, offer.usual_group) else ""
    command = offer.label if offer.label in ("awq", "gptq") else "convert"
    types = "" if command == offer.label else f" -t {offer.label}"
    return [
        f"quantkit {command} {shlex.quote(plan.given)}{types}{group}",
        f"vllm serve {shlex.quote(offer.file)} --max-model-len {plan.context.n_ctx}",
    ]


def _gguf_commands(plan: "Plan", row: "Row", fit: Fit) -> list[str]:
    offer, context, is_encoder = row.offer, fit.memory.context, plan.source.shape.gives_vectors
    commands, file = [], plan.given
    if offer.label != "as it is":
        calibrate = " --calibrate" if offer.needs_imatrix else ""
        mmproj = plan.projector.option if plan.projector else ""
        options = f"{_matrix(plan) or calibrate}{mmproj}{_requantize(plan, offer)}"
        commands.append(f"quantkit gguf {_checkpoint(plan)} -t {offer.label}{options}")
        file = f"{plan.source.model.name}-GGUF/{offer.file}"
    options = f"-ngl {context.gpu_layers} -c {context.n_ctx}"
    options += " --device none" if plan.budget.vram and fit.memory.gpu is None else ""
    options += f" -ctk {context.kv_type} -ctv {context.kv_type}" if context.kv_type != "f16" else ""
    options += f" --n-cpu-moe {context.cpu_moe}" if context.cpu_moe else ""
    options += f" --tensor-split {','.join(map(str, context.split))}" if context.split else ""
    options += " --no-kv-offload" if not context.kv_on_gpu else ""
    options += f" -ub {context.n_ubatch}" if context.n_ubatch != 512 and not is_encoder else ""
    options += " -fa off" if context.flash is False else ""
    options += " --no-repack" if not plan.budget.cpu_features else ""
    if is_encoder or plan.source.shape.traits.relative_positions:
        return commands + encoder_commands(plan.source.shape, file, options, context.n_ctx)
    commands.append(f"llama-cli -m {shlex.quote(file)} {options}")
    here = f"quantkit run {shlex.quote(file)} --gpu-layers {context.gpu_layers} --ctx {context.n_ctx}"
    here += f" --n-cpu-moe {context.cpu_moe}" if context.cpu_moe else ""
    here += f" --tensor-split {','.join(map(str, context.split))}" if context.split else ""
    here += " --no-kv-offload" if not context.kv_on_gpu else ""
    here += f" --kv-type {context.kv_type}" if context.kv_type != "f16" else ""
    commands.append(here)
    commands.append(_ollama_line(row, context))
    return commands


def _ollama_line(row: "Row", context: Context) -> str:
    """What Ollama's Modelfile takes: it moves whole layers, not experts or the KV cache, and splits them itself."""
    if not context.kv_on_gpu:
        return "# Ollama cannot keep the KV cache off the GPU"
    if context.split and not context.cpu_moe:
        return (
            "# Ollama divides layers between GPUs itself, not with these numbers: PARAMETER num_gpu"
            f" {context.gpu_layers}, PARAMETER num_ctx {context.n_ctx}"
        )
    if not context.cpu_moe:
        return f"# Ollama's Modelfile: PARAMETER num_gpu {context.gpu_layers}, PARAMETER num_ctx {context.n_ctx}"
    if row.whole_layers is None:
        return "# Ollama cannot keep experts on the CPU, and with whole layers this type does not fit"
    return (
        "# Ollama moves whole layers only, which is slower: PARAMETER num_gpu"
        f" {row.whole_layers}, PARAMETER num_ctx {context.n_ctx}"
    )
