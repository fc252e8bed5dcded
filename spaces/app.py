"""A page for a Hugging Face Space: plan a model of the hub for a machine, convert it to GGUF, download the files.

Visitors name public models only: tokens of the Space are not sent. Weights are streamed, so the disk holds the outputs.
"""

import os
import re
import shutil
import tempfile
from pathlib import Path

# The hub's client reads these when it is imported. The owner's token must not open private models to visitors.
for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
    os.environ.pop(name, None)
os.environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"

import gradio as gr  # noqa: E402

import quantkit  # noqa: E402
from quantkit.errors import QuantkitError, UsageError  # noqa: E402
from quantkit.files import free_space  # noqa: E402
from quantkit.machine import Machine  # noqa: E402

GIB = 1 << 30
MAX_GIB = 4096
# GGUF types that need no importance matrix, which would need a calibration
TYPES = ("bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "iq4_xs", "q3_k_m", "q2_k")
HEADERS = ("type", "MB", "bits/weight", "memory, MB", "layers on the GPU", "fits")
# bytes of the disk that stay free
RESERVE = int(os.environ.get("QUANTKIT_SPACE_RESERVE_GIB", "1")) * GIB
# Gradio copies a file into its cache before the visitor downloads it
COPIES = 2
WORK = Path(tempfile.gettempdir()) / "quantkit-space"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}(@[A-Za-z0-9_][\w.-]{0,95})?", re.ASCII)


def hub_id(text: str) -> str:
    """`text` as a hub id.

    Raises:
        UsageError: it is not ORG/NAME or ORG/NAME@REVISION, or it names a file of this machine.
    """
    model = text.strip()
    if not _HUB_ID.fullmatch(model) or Path(model).exists():
        raise UsageError(f"{model[:100]!r} is not a hub id; write ORG/NAME or ORG/NAME@REVISION")
    return model


def plan_rows(text: str, ram: float | None, vram: float | None) -> tuple[list[list[str]], str]:
    """The rows of the plan (columns: HEADERS) and a sentence. `ram` and `vram` in GiB; an error leaves no rows."""
    try:
        model = hub_id(text)
        memory = [value or 0 for value in (ram, vram)]
        if not all(0 <= value <= MAX_GIB for value in memory):
            raise UsageError(f"memory must be between 0 and {MAX_GIB} GiB; correct the numbers")
        machine = Machine(ram=int(memory[0] * GIB), vram=int(memory[1] * GIB))
        plan = quantkit.plan(model, quantkit.PlanOptions(types=TYPES, machine=machine))
    except (QuantkitError, OSError) as error:
        return [], str(error)
    rows = []
    for row in plan.rows:
        offer = row.offer
        if offer.why_not:
            rows.append([offer.label, "", "", "", "", offer.why_not])
            continue
        layers = "" if row.fit is None else str(row.fit.gpu_layers)
        fits = f"no, {row.missing / 1e6:.0f} MB short" if row.missing else "yes"
        memory_mb = f"{(row.cpu_bytes + row.gpu_bytes) / 1e6:.0f}"
        rows.append([offer.label, f"{offer.size / 1e6:.1f}", f"{offer.bits:.2f}", memory_mb, layers, fits])
    best = f"take {plan.best.offer.label}" if plan.best else "no type fits; use more memory"
    return rows, f"{plan.parameters / 1e6:.1f} million parameters; {best}"


def check_disk(model: str, types: list[str]) -> None:
    """Read the sizes of the outputs from the headers; no weights are downloaded.

    Raises:
        UsageError: the outputs do not fit on the disk, or a type is impossible.
    """
    plan = quantkit.plan(model, quantkit.PlanOptions(types=types))
    for row in plan.rows:
        if row.offer.why_not:
            raise UsageError(f"{row.offer.label} is impossible for {model}: {row.offer.why_not}; choose another type")
    needed = COPIES * sum(row.offer.size for row in plan.rows) + RESERVE
    free = free_space(WORK)
    if needed > free:
        raise UsageError(
            f"{', '.join(types)} of {model} need {needed / 1e6:.0f} MB of disk and {free / 1e6:.0f} MB are free;"
            " choose fewer or smaller types"
        )


def converted_files(text: str, types: list[str]) -> tuple[list[str], str]:
    """The paths of the converted files and a sentence; an error leaves no files."""
    try:
        model = hub_id(text)
        if not types or not set(types) <= set(TYPES):
            raise UsageError(f"no type, or an unknown one; choose from {', '.join(TYPES)}")
        # one conversion runs at a time, and Gradio has its own copies of earlier files
        shutil.rmtree(WORK, ignore_errors=True)
        check_disk(model, types)
        WORK.mkdir(mode=0o700, parents=True)
        options = quantkit.ConvertOptions(stream=True, logits=False)
        result = quantkit.convert(model, types, WORK, options)
    except (QuantkitError, OSError) as error:
        return [], str(error)
    if result.failed:
        return [], f"{', '.join(output.output.label for output in result.failed)} failed its checks; report this model"
    files = sorted(str(path) for path in WORK.rglob("*.gguf"))
    return files, f"{len(result.outputs)} converted and checked; download below"


def page() -> gr.Blocks:
    """The page."""
    # files that visitors no longer need leave Gradio's cache after an hour
    with gr.Blocks(title="quantkit", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        gr.Markdown("# quantkit\nPlan a model of the hub for your machine, convert it to GGUF, download the files.")
        model = gr.Textbox(label="Model", placeholder="ORG/NAME", max_length=300, elem_id="model")
        with gr.Row():
            ram = gr.Number(label="Memory of your machine, GiB", value=16, elem_id="ram")
            vram = gr.Number(label="Memory of its GPU, GiB (0: none)", value=0, elem_id="vram")
        plan = gr.Button("Plan", elem_id="plan")
        table = gr.Dataframe(headers=list(HEADERS), interactive=False, elem_id="table")
        types = gr.CheckboxGroup(list(TYPES), value=["q4_k_m"], label="Types", elem_id="types")
        convert = gr.Button("Convert", elem_id="convert")
        message = gr.Textbox(label="Message", interactive=False, elem_id="message")
        files = gr.File(label="Files", file_count="multiple", interactive=False, elem_id="files")
        plan.click(plan_rows, [model, ram, vram], [table, message])
        convert.click(converted_files, [model, types], [files, message], concurrency_limit=1)
    return blocks


if __name__ == "__main__":
    page().queue(max_size=20).launch()
