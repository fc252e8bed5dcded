"""Folders that are not a checkpoint: their content by file names, and the path to pass instead."""

import json
import re
from collections.abc import Collection
from pathlib import Path

from quantkit.checkpoint.jsonfile import shown

_ADAPTER = (
    "pass the base model as SOURCE and this folder to --adapter to merge it; quantkit lora writes an adapter GGUF"
)
_TRAINER = re.compile(r"checkpoint-(\d+)")


def describe_names(names: Collection[str]) -> str | None:
    """A sentence on the content of a folder with these file names, with the next step; None if unknown."""

    def first(pattern: str) -> str | None:
        return next((name for name in sorted(names) if re.fullmatch(pattern, name)), None)

    if first(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)"):
        return None  # a model without config.json; the files beside its weights are not the cause
    if first(r"adapter_(model\.(safetensors|bin)|config\.json)"):
        return f"holds an adapter (LoRA), not a model; {_ADAPTER}"
    if first(r".*\.distcp|pytorch_model_fsdp(_\d+)?"):
        return "holds a sharded FSDP state, not a model; merge it first with `accelerate merge-weights`"
    if first(r"zero_to_fp32\.py|global_step\d+|(bf16_)?zero_pp_rank_.*\.pt"):
        return (
            "holds the training state of DeepSpeed ZeRO, not a model; consolidate it with "
            "`python zero_to_fp32.py . OUTPUT --safe_serialization` first"
        )
    if first(r".*\.gguf"):
        return "holds GGUF files, not a checkpoint; pass one of those files instead"
    original = first(r"consolidated.*\.(safetensors|pth)")
    if original:
        return f"holds only the original weights ({original}); take the checkpoint in Hugging Face format"
    if first(r"(tf_model\.h5|flax_model\.msgpack|model\.ckpt.*)"):
        return "holds only TensorFlow or Flax weights; take a checkpoint with model.safetensors"
    return None


def describe_folder(folder: Path) -> str | None:
    """A sentence on the content of a local folder, with the next step; None if unknown.

    It names a checkpoint inside a hub cache or a training run, or the base model of an adapter.
    """
    try:
        names = [entry.name for entry in folder.iterdir()]
    except OSError:
        return None
    snapshot = _snapshot(folder)
    if snapshot is not None:
        return f"is a hub cache folder, not a checkpoint; pass the snapshot inside it, {snapshot}"
    base = _base_model(folder) if "adapter_config.json" in names else None
    if base:
        return f"holds an adapter (LoRA) for {shown(base)}, not a model; {_ADAPTER}"
    steps = sorted((int(match[1]), match[0]) for match in map(_TRAINER.fullmatch, names) if match)
    if steps:
        return f"holds {len(steps)} checkpoints of a training run; pass one of them, such as {folder / steps[-1][1]}"
    known = describe_names(names)
    inner = None if known else output_folder(folder)
    return f"is not a model itself; pass {inner}" if inner else known


def output_folder(folder: Path) -> Path | None:
    """The first folder directly in `folder` that holds a checkpoint or GGUF files, as `-o` makes them; None if none."""
    try:
        inner = sorted(entry for entry in folder.iterdir() if entry.is_dir())
        return next((entry for entry in inner if (entry / "config.json").is_file() or any(entry.glob("*.gguf"))), None)
    except OSError:
        return None


def _snapshot(folder: Path) -> Path | None:
    """The snapshot of a hub cache folder (models--ORG--NAME or its snapshots/) that refs/main or the date names."""
    snapshots = folder if folder.name == "snapshots" else folder / "snapshots"
    if not snapshots.resolve().parent.name.startswith("models--"):
        return None
    try:
        main = snapshots / (snapshots.parent / "refs" / "main").read_text().strip()
        if main.is_dir() and main.parent == snapshots:
            return main
    except (OSError, ValueError):
        pass
    try:
        revisions = [path for path in snapshots.iterdir() if path.is_dir()]
        return max(revisions, key=lambda path: path.stat().st_mtime, default=None)
    except OSError:
        return None


def _base_model(folder: Path) -> str | None:
    try:
        name = json.loads((folder / "adapter_config.json").read_bytes()).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return name if isinstance(name, str) and name else None
