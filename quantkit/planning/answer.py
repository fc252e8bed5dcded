"""The answer to `plan`: a row for each form, the one to take, what it leaves room for, and the commands that get it."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from quantkit.families import has_checked_plan
from quantkit.machine import Machine, probe_bandwidth
from quantkit.planning.budget import Budget, Fit, best_fit, fit_offer, longest_context, remedies
from quantkit.planning.context import Context
from quantkit.planning.memory import GPU_OVERHEAD, DeviceMemory, kv_bytes
from quantkit.planning.sizes import Offer, offers
from quantkit.planning.sources import Source
from quantkit.planning.speed import bytes_per_token, tokens_per_second


@dataclass(frozen=True)
class Row:
    """One form. `fit` is None for a folder (AWQ, GPTQ), which a GPU holds whole or not at all. `speed`: tokens/s.

    `devices`: what each holds; `missing`: bytes short.
    """

    offer: Offer
    fit: Fit | None = None
    devices: tuple[DeviceMemory, ...] = ()
    missing: int = 0
    speed: float = 0.0

    @property
    def gpu_bytes(self) -> int:
        return sum(device.total for device in self.devices if device.name == "GPU")

    @property
    def cpu_bytes(self) -> int:
        return sum(device.total for device in self.devices if device.name == "CPU")


@dataclass(frozen=True)
class Answer:
    """What `plan` found. `longest` is the longest context that the best form has room for."""

    source: Source
    context: Context
    budget: Budget
    rows: tuple[Row, ...]
    best: Row | None
    longest: int = 0
    bandwidth: Mapping[str, tuple[float, str]] = field(default_factory=dict)
    remedies: tuple[tuple[str, str, int], ...] = ()

    def commands(self, row: Row, source: str) -> list[str]:
        """What to type to get this form and to run it so."""
        offer, fit = row.offer, row.fit
        if fit is None:
            group = f" --group-size {offer.group}" if offer.group != 128 else ""
            folder, longest = f"{offer.file}", self.context.n_ctx
            return [
                f"quantkit {offer.label} {shlex.quote(source)}{group}",
                f"vllm serve {shlex.quote(folder)} --max-model-len {longest}",
            ]
        context = fit.memory.context
        found = []
        file = offer.file
        if offer.label != "as it is":
            calibrate = " --calibrate" if offer.needs_imatrix else ""
            # a config.json alone was enough to plan, and is not to convert
            whole = "ORG/NAME" if self.source.is_config else shlex.quote(source)
            found.append(f"quantkit gguf {whole} -t {offer.label}{calibrate}")
            file = f"{self.source.model.name}-GGUF/{offer.file}"
        else:
            file = source
        words = f"-ngl {context.gpu_layers} -c {context.n_ctx}"
        words += " --device none" if self.budget.vram and fit.memory.gpu is None else ""
        words += f" -ctk {context.kv_type} -ctv {context.kv_type}" if context.kv_type != "f16" else ""
        words += f" --n-cpu-moe {context.cpu_moe}" if context.cpu_moe else ""
        words += f" -ub {context.n_ubatch}" if context.n_ubatch != 512 else ""
        words += " -fa off" if context.flash is False else ""
        words += " --no-repack" if not self.budget.cpu_features else ""
        found.append(f"llama-cli -m {shlex.quote(file)} {words}")
        if context.kv_type == "f16" and not context.cpu_moe:
            found.append(f"quantkit run {shlex.quote(file)} --gpu-layers {context.gpu_layers} --ctx {context.n_ctx}")
        found.append(f"# Ollama's Modelfile: PARAMETER num_gpu {context.gpu_layers}, PARAMETER num_ctx {context.n_ctx}")
        return found

    def missing_lines(self) -> list[str]:
        """What is missing and what would change that, in sentences."""
        missing = self.missing_document()
        if missing is None:
            return ["Nothing asked for can be made of this model."]
        lines = [f"Nothing fits: {missing['type']} comes nearest and lacks {_size(missing['bytes'])}."]
        lines += [f"With {what}, {label} would fit." for what, label, _ in self.remedies]
        if not self.remedies:
            need = missing["needs"]
            gpu = f" and {_size(need['vram'])} of GPU memory" if need.get("vram") else ""
            lines.append(f"It needs {_size(need['ram'])} of memory{gpu}; take a smaller type or model, or find more.")
        return lines

    def missing_document(self) -> dict[str, Any] | None:
        """The same for scripts."""
        rows = [row for row in self.rows if not row.offer.why_not]
        if not rows:
            return None
        row = min(rows, key=lambda each: each.missing)
        return {
            "type": row.offer.label,
            "bytes": row.missing,
            "needs": {"ram": row.cpu_bytes, **({"vram": row.gpu_bytes} if row.gpu_bytes else {})},
            "remedies": [{"change": what, "type": label, "bytes": size} for what, label, size in self.remedies],
        }

    def bandwidth_document(self) -> dict[str, Any]:
        return {
            device: {"bytes_per_second": round(pace), "from": origin}
            for device, (pace, origin) in self.bandwidth.items()
        }

    def notes(self, machine: Machine) -> Iterator[str]:
        """What a user should know of the figures."""
        yield from self.source.notes
        paces = " and ".join(
            f"{pace / 1e9:.3g} GB/s ({device}, {origin})" for device, (pace, origin) in self._paces(machine)
        )
        yield f"tokens/s are an estimate for the first tokens of a chat: bytes read per token at {paces}"
        if self.best is not None and self.best.fit is not None and machine.vram and self.best.fit.memory.gpu is None:
            yield "the GPU is left out: even without a layer on it llama.cpp would want more of it than there is"
        elif machine.vram:
            yield f"GPU memory counts {GPU_OVERHEAD / 2**30:.1g} GiB for the CUDA context, which is assumed"
        for row in self.rows:
            if row.offer.is_folder and row.devices:
                (gpu,) = row.devices
                parts = f"weights {gpu.weights / 1e9:.1f} GB, KV cache {gpu.kv / 1e9:.1f} GB and the CUDA context"
                yield f"{row.offer.label} is {parts}; the workspace of its runtime comes on top, a few GB in vLLM"
        if self.source.shape.context and self.context.n_ctx > self.source.shape.context:
            yield f"the model is trained for {self.source.shape.context} tokens; beyond them it may fall apart"
        if any(row.fit is not None and row.fit.memory.cpu.repacked for row in self.rows):
            yield (
                "llama.cpp rearranges part of these weights for this CPU as it loads them, so for a moment the file's"
                " pages come on top; --no-repack (in llama.cpp too) avoids it"
            )
        if not has_checked_plan(self.source.shape.arch):
            yield f"the compute buffer of {self.source.shape.arch} is an estimate: this architecture is not checked"

    def _paces(self, machine: Machine) -> list[tuple[str, tuple[float, str]]]:
        used = ["CPU", *(["GPU"] if machine.vram else [])]
        return [(device, self.bandwidth[device]) for device in used]


def _size(size: int) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 999.5e6 else f"{size / 1e6:.3g} MB"


def make_answer(
    source: Source,
    types: Sequence[str] | None,
    context: Context,
    budget: Budget,
    bandwidth: Mapping[str, tuple[float, str]],
    *,
    fixed_layers: bool = False,
) -> Answer:
    """Weigh every form against the budget. `bandwidth`: (bytes a second, where from) by device; the CPU's is probed if
    it is not there. `fixed_layers`: as many on the GPU as the context says.
    """
    paces = dict(bandwidth)
    if "CPU" not in paces:
        paces["CPU"] = (probe_bandwidth(), "measured")
    speeds = {device: pace for device, (pace, _) in paces.items()}
    rows = []
    for offer in offers(source, types):
        if offer.why_not:
            rows.append(Row(offer))
        elif offer.is_folder:
            rows.append(_folder_row(source, offer, context, budget, speeds))
        else:
            rows.append(_gguf_row(source, offer, context, budget, speeds, fixed_layers=fixed_layers))
    fits = [(row.fit, row.speed) for row in rows if row.fit is not None]
    best = best_fit(source.shape, fits)
    folders = [row for row in rows if row.offer.is_folder and row.devices and not row.missing]
    if best is None and folders:
        return Answer(source, context, budget, tuple(rows), folders[0], context.n_ctx, paces)
    if best is None:
        whole = [row.offer for row in rows if row.fit is not None]
        changes = remedies(source.shape, whole, context, budget) if whole else []
        said = tuple((each.what, each.fit.offer.label, each.fit.memory.total) for each in changes)
        return Answer(source, context, budget, tuple(rows), None, 0, paces, said)
    row = next(row for row in rows if row.fit is best)
    most = source.shape.context or context.n_ctx
    longest = max(longest_context(source.shape, best, budget, most), best.memory.context.n_ctx if most else 0)
    return Answer(source, context, budget, tuple(rows), row, longest, paces)


def _gguf_row(
    source: Source, offer: Offer, context: Context, budget: Budget, speeds: Mapping[str, float], *, fixed_layers: bool
) -> Row:
    fit = fit_offer(source.shape, offer, context, budget, fixed_layers=fixed_layers)
    moved = bytes_per_token(source.shape, offer.tensors, fit.memory.context)
    return Row(offer, fit, fit.memory.devices, missing=fit.missing, speed=tokens_per_second(moved, speeds))


def _folder_row(source: Source, offer: Offer, context: Context, budget: Budget, speeds: Mapping[str, float]) -> Row:
    """An AWQ or GPTQ model on a GPU: its weights, a 16-bit cache for the context and the CUDA context."""
    kv = sum(kv_bytes(source.shape, replace(context, kv_type="f16", gpu_layers=0)).values())
    gpu = DeviceMemory("GPU", weights=offer.size, kv=kv, overhead=GPU_OVERHEAD)
    pace = tokens_per_second({"GPU": offer.size}, speeds) if budget.vram and not source.shape.has_experts else 0.0
    return Row(offer, None, (gpu,), missing=max(gpu.total - budget.vram, 0), speed=pace)
