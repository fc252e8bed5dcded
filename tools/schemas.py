"""JSON Schemas of the documents that scripts read; `make docs` writes them into docs/reference/schemas.

The shapes are written by hand: they are the contract, and tests/docs/test_schemas.py holds real documents to them.
In a shape a string names a type ("integer", "number", "string", "boolean"; with a "?" the value may be null), a dict is
an object (a key that ends in "?" may be absent), a list of one shape is an array. No other keys are allowed.
"""

import json
from dataclasses import dataclass
from typing import Any

DRAFT = "https://json-schema.org/draft/2020-12/schema"


@dataclass(frozen=True)
class Map:
    """An object whose keys are data (names of files, tensors, layers), with values of one shape."""

    values: Any


@dataclass(frozen=True)
class OneOf:
    """A value of exactly one of several shapes."""

    shapes: tuple[Any, ...]


@dataclass(frozen=True)
class OrNull:
    """A value of a shape, or null."""

    shape: Any


@dataclass(frozen=True)
class Const:
    """One of several fixed values."""

    values: tuple[Any, ...]


ANYTHING = Map({})
FIGURE = {"value": "number", "error": "number"}
CHECK = {"name": "string", "status": Const(("passed", "failed", "skipped")), "detail": "string"}
ORIGIN = {
    "source": "string",
    "revision": "string?",
    "header_sha256": Map("string"),
    "base?": "string",
    "chat_template?": "string",
    "converter?": "string",
    "adapters?": [
        {
            "source": "string",
            "revision": "string?",
            "sha256": "string",
            "config_sha256": "string",
            "kind": "string",
            "rank": "integer",
            "scale": "number",
            "base": "string?",
        }
    ],
}
# a list for each text where there are several
TEXT = {
    "text": OneOf(("string", ["string"])),
    "sha256": OneOf(("string", ["string"])),
    "samples": "integer",
    "samples_per_text?": ["integer"],
    "tokens_per_sample": "integer",
}

RECORD = {
    "format": Const(("quantkit-origin",)),
    "version": Const((1,)),
    "outputs": Map(
        {
            "tool": {"name": "string", "version": "string", "kernels": "string", "c_kernels": ["string"]},
            "written": "string",
            "origin": ORIGIN,
            "type": "string",
            "files": Map({"bytes": "integer", "sha256": "string?"}),
            "checks": [CHECK],
            "relative_error": Map("number"),
            "relative_error_method": "string",
            "seconds": Map("number"),
            "seconds_cover": ["string"],
            "peak_memory_bytes": "integer",
            "threads": "integer",
            "warnings": ["string"],
            "calibration?": {**TEXT, "chat_template": "boolean"},
            "options": ANYTHING,
            # GGUF
            "family?": "string",
            "bits_per_weight?": "number",
            "parameters?": "integer",
            "type_mix?": Map("integer"),
            # a GGUF of a given size
            "target?": {
                "bytes": "integer?",
                "bits_per_weight": "number?",
                "expected_kl_divergence": "number",
                "kl_divergence_of_groups": Map("number"),
                "types": Map("string"),
            },
            # --solver feedback
            "feedback?": {
                "damp": "string",
                "sweeps": "integer",
                "asymmetric": "boolean",
                "version": "integer",
                "without_feedback": Map("string"),
                "neurons_reordered?": ["string"],
            },
            # AWQ and GPTQ
            "architecture?": "string?",
            "quantized_linears?": "integer",
            "kept_linears?": ["string"],
            "remote_code?": {"files": Map("string"), "repositories": ["string"]},
            "tokens_per_expert?": Map(ANYTHING),
            "damping_raised?": Map(ANYTHING),
            "experts_that_learned_from_others_tokens?": ANYTHING,
        }
    ),
}

CONVERSION = {
    "command": Const(("convert", "gguf", "awq", "gptq", "imatrix")),
    "dry_run": "boolean",
    "name": "string",
    "family": "string?",
    "architecture": "string?",
    "origin": ORIGIN,
    "folder": "string",
    "parameters": "integer",
    "layers": "integer?",
    "calibration": OrNull(TEXT),
    "expected_peak_memory_bytes": "integer",
    "disk_bytes": "integer",
    "threads": "integer",
    "warnings": ["string"],
    "outputs": [
        {
            "type": "string",
            "folder": "string",
            "bytes": "integer",
            "bits_per_weight": "number?",
            "files": [{"name": "string", "bytes": "integer", "sha256?": "string?"}],
            # after a conversion
            "worst_relative_error?": "number?",
            "logit_correlation?": "number?",
            "verified?": "boolean",
            "checks?": [CHECK],
            # GGUF; `tensors` in a dry run
            "type_mix?": Map("integer"),
            "tensors?": Map("string"),
            "quantize_cpu_seconds?": "number",
            "expected_kl_divergence?": "number",
            # importance matrix
            "entries?": "integer",
            "experts_without_tokens?": Map("integer"),
            # AWQ and GPTQ
            "bits?": "integer",
            "group_size?": "integer",
            "quantized_linears?": "integer",
            "kept_linears?": ["string"],
            "relative_error?": Map("number"),
        }
    ],
    "seconds?": Map("number"),
    "peak_memory_bytes?": "integer",
    # --device cuda
    "gpu_peak_memory_bytes?": "integer",
    "resumed_layers?": "integer",
    "resumed_tensors?": "integer",
    # --stream
    "streamed?": OrNull({"bytes": "integer", "bytes_again": "integer", "requests": "integer"}),
    # --mmproj
    "projectors?": [
        {"file": "string", "type": "string", "bytes": "integer", "sha256?": "string", "verified?": "boolean"}
    ],
}

QUALITY = {
    "text": "string",
    "perplexity": FIGURE,
    "perplexity_difference?": FIGURE,
    "perplexity_ratio?": FIGURE,
    "kl?": {
        **dict.fromkeys(("mean", "error", "median", "p90", "p99", "p999", "max"), "number"),
        "histogram": {"edges": ["number"], "counts": ["integer"]},
    },
    "top1?": FIGURE,
    "top5?": FIGURE,
    "probability_change?": dict.fromkeys(("mean", "error", "rms", "rms_error"), "number"),
}
RATE = {"value": "number", "error?": "number"}
REPORT = {
    "schema": "integer",
    "quantkit": "string",
    "created": "string",
    "machine": {"cpu": "string", "cores": "integer", "memory_bytes": "integer"},
    "settings": {"ctx": "integer", "chunks": "integer?", "threads": "integer"},
    "texts": [
        {"name": "string", "sha256": "string", "tokens": "integer", "chunks": "integer", "scored_tokens": "integer"}
    ],
    "models": [
        {
            "name": "string",
            "label": "string",
            "role": Const(("reference", "candidate")),
            "kind": "string",
            "path": "string",
            "engine": "string",
            "bytes": "integer",
            "vocabulary?": "integer",
            "parameters?": "integer",
            "bits_per_weight?": "number",
            "quality": [QUALITY],
            "embeddings?": {
                "set": "string",
                "texts": "integer",
                "width": "integer",
                **dict.fromkeys(
                    (
                        *("recall?", "cosine_mean?", "cosine_worst?", "rank_correlation?", "top10_overlap?"),
                        "score_correlation?",
                    ),
                    "number",
                ),
            },
            "pictures?": {
                "set": "string",
                "pictures": "integer",
                "tokens": "integer",
                "projector": "string",
                "projector_bytes": "integer",
                "same_answers?": "integer",
                "top1?": "number",
                "kl?": "number",
            },
            "tensor_errors?": [{"layer": "integer?", "kind": "string", "type": "string", "error": "number"}],
            "memory?": [
                {
                    "gpu_layers": "integer",
                    "of_layers": "integer",
                    "cpu_moe?": "integer",
                    "n_ctx": "integer",
                    "devices": [{"name": "string", **dict.fromkeys(("weights", "kv", "compute", "other"), "integer")}],
                    "rss_before": "integer?",
                    "peak_rss": "integer?",
                    "peak_pss": "integer?",
                    "driver?": [{"name": "string", "bytes": "integer", "method": "string"}],
                }
            ],
            "speed?": [
                {
                    "gpu_layers": "integer",
                    "threads": "integer",
                    "repetitions": "integer",
                    "prompt_tokens": "integer",
                    "prompt": RATE,
                    "generated_tokens": "integer",
                    "generation": RATE,
                    "cpu_moe?": "integer",
                    "estimate?": "number",
                }
            ],
            "device_speed?": [
                {
                    "name": "string",
                    "bandwidth": "integer",
                    "by_type": [{"type": "string", "bandwidth": "integer"}],
                    **dict.fromkeys(("operation", "transfer", "description", "token"), "number"),
                }
            ],
        }
    ],
    "flags": ["string"],
    "seconds": "number",
}

FILES = [{"name": "string", "bytes": "integer"}]
INSPECT = {
    "command": Const(("inspect",)),
    "name": "string",
    "kind": "string",
    "source": "string",
    "family": "string?",
    "architecture": "string?",
    "shape": {
        **dict.fromkeys(("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "expert_ffn"), "integer?"),
        **dict.fromkeys(("experts", "experts_used", "experts_shared", "context", "sliding_window"), "integer?"),
        "vocab": "integer?",
        "positions": "string?",
        "rope_base": "number?",
        "rope_scaling": "string?",
        "rope_dimensions": "integer?",
    },
    "weights": OrNull(
        {
            "parameters": "integer",
            "active_parameters": "integer",
            "bytes": "integer",
            "bits_per_weight": "number",
            "groups": [{"type": "string", "tensors": "integer", "elements": "integer", "bytes": "integer"}],
        }
    ),
    "files": FILES,
    "bytes": "integer",
    "vocabulary": OrNull(
        {
            "size": "integer",
            "model": "string?",
            "pre": "string?",
            "special": [{"role": "string", "id": "integer", "text": "string"}],
            "adds_bos": "boolean?",
            "adds_eos": "boolean?",
        }
    ),
    "template": OrNull(
        {
            "name": "string?",
            "text": "string",
            "sample": "string?",
            "roles": ["string"],
            "error": "string?",
            "others": ["string"],
        }
    ),
    "suggested_template": "string?",
    "type": "string?",
    "convertible": "boolean?",
    "why_not": "string?",
    "revision": "string?",
    "origin": OrNull(ANYTHING),
    "outputs": [{"name": "string", "type": "string", "bits_per_weight": "number", "files": FILES}],
    "quantization": OrNull(
        {
            "method": "string",
            "bits": "integer?",
            "group": "integer?",
            "linears": "integer",
            "kept": ["string"],
            "symmetric": "boolean?",
            "act_order": "boolean?",
            "packing": "string?",
        }
    ),
    "notes": ["string"],
}

PLAN = {
    "command": Const(("plan",)),
    "source": "string",
    "name": "string",
    "architecture": "string",
    "parameters": "integer",
    "layers": "integer",
    "trained_context": "integer?",
    "exact_sizes": "boolean",
    "imatrix": "string?",
    "budget": {"ram": "integer", "vram": "integer", "vrams": ["integer"], "unified": "boolean", "gpu": "string?"},
    "context": {
        **dict.fromkeys(("n_ctx", "n_batch", "n_ubatch", "cpu_moe"), "integer"),
        "kv_type": "string",
        "flash": "boolean",
        "gpu_layers": "integer?",
        "op_offload": "boolean",
        "kv_on_gpu": "boolean",
    },
    "assumed": {"gpu_overhead": "integer", "bandwidth": Map({"bytes_per_second": "integer", "from": "string"})},
    "types": [
        OneOf(
            (
                {"type": "string", "why_not": "string"},
                {
                    "type": "string",
                    "bytes": "integer",
                    "bits_per_weight": "number",
                    "needs_imatrix": "boolean",
                    "fits": "boolean",
                    "missing_bytes": "integer",
                    "gpu_layers": "integer?",
                    "cpu_moe": "integer?",
                    "tensor_split": OrNull(["integer"]),
                    "kv_on_gpu": "boolean?",
                    "devices": [
                        {
                            "name": "string",
                            **dict.fromkeys(
                                ("weights?", "repacked?", "kv?", "compute?", "output?", "overhead?", "total?"),
                                "integer",
                            ),
                        }
                    ],
                    "gpu_bytes": "integer",
                    "cpu_bytes": "integer",
                    "tokens_per_second_estimate": "number?",
                },
            )
        )
    ],
    "best": "string?",
    "longest_context": "integer?",
    "target_size": "integer?",
    "commands": ["string"],
    "missing": OrNull(
        {
            "type": "string",
            "bytes": "integer",
            "needs": {"ram": "integer", "vram?": "integer"},
            "remedies": [{"change": "string", "type": "string", "bytes": "integer"}],
        }
    ),
    "notes": ["string"],
    "projector?": {"file": "string", "bytes": "integer", "device": "string"},
}

RUN = {
    "command": Const(("run",)),
    "model": "string",
    "prompt": "string",
    # with --image
    "images?": ["string"],
    "sounds?": ["string"],
    "mmproj?": "string",
    "answer": "string",
    "ended": "string",
    "tokens": "integer",
    "seconds": "number",
    "prompt_tokens": "integer",
    "prompt_seconds": "number",
    # with --draft
    "drafted?": "integer",
    "accepted?": "integer",
}

SERVE = {
    "command": Const(("serve",)),
    "model": "string",
    "alias": "string",
    "server": Const(("llama-server", "llama-cpp-python")),
    "url": "string",
    "n_ctx": "integer",
    "parallel": "integer",
    "gpu_layers": "integer?",
    "cpu_moe": "integer",
    "tensor_split": OrNull(["integer"]),
}

OLLAMA = OneOf(
    (
        {
            "command": Const(("ollama",)),
            "check": "string",
            "findings": [{"line": "integer", "severity": "string", "message": "string"}],
        },
        {
            "command": Const(("ollama",)),
            "name": "string",
            "dry_run": "boolean",
            "quantizations": [
                {
                    "type": "string",
                    "files": ["string"],
                    "tags": ["string"],
                    "gpu_tags": ["string"],
                    "modelfile": "string",
                    "gpu_modelfile": "string?",
                    "template": "string",
                    "template_reason": "string?",
                    "requires": "string?",
                    "parameters": [[{}]],
                    "notes": ["string"],
                    "replaced_by": "string?",
                    "projector?": "string",
                    "adapter?": "string",
                }
            ],
            "written?": ["string"],
            "created?": ["string"],
            "pushed?": ["string"],
        },
    )
)

CARD = {"command": Const(("card",)), "folder": "string", "kind": "string", "card": "string"}

TERMUX = {
    "command": Const(("termux",)),
    "model": "string",
    "gguf": "string?",
    "bytes": "integer",
    "sha256": "string?",
    "memory": [{"context": "integer", "batch": "integer", "bytes": "integer"}],
    "phones": [
        {"gigabytes": "integer", "room": "integer", "fits": "boolean?", "context": "integer?", "batch": "integer?"}
    ],
    "script": "string?",
}

BAKE = OneOf(
    (
        {
            "command": Const(("bake",)),
            "dry_run": Const((True,)),
            "recipes": [
                {
                    "name": "string",
                    "commands": [{"step": "string", "words": ["string"]}],
                    "bytes": Map("integer"),
                    "disk_bytes": "integer",
                    "expected_peak_memory_bytes": "integer",
                }
            ],
        },
        {
            "command": Const(("bake",)),
            "dry_run": Const((False,)),
            "recipes": [
                {
                    "name": "string",
                    "source": "string",
                    "folder": "string",
                    "steps": [
                        {
                            "step": "string",
                            "state": "string",
                            "why": "string?",
                            "commands": [["string"]],
                            "seconds": "number",
                            "peak_memory_bytes": "integer?",
                        }
                    ],
                    "outputs": [
                        {
                            "format": "string",
                            "path": "string",
                            "bytes": "integer",
                            "sha256": Map("string?"),
                            "quality": OrNull(QUALITY),
                        }
                    ],
                    "report": "string?",
                    "floors_not_met": ["string"],
                    "pushed": ["string"],
                }
            ],
            "failed": [{"name": "string", "error": "string"}],
        },
    )
)

LORA = {
    "command": Const(("lora",)),
    "dry_run": "boolean",
    "family": "string",
    "origin": ORIGIN,
    "outputs": [
        {
            "file": "string",
            "type": "string",
            "bytes": "integer",
            "sha256": "string?",
            # name -> type and shape, outermost dimension first
            "tensors": Map({"type": "string", "shape": ["integer"]}),
        }
    ],
}

SCHEMAS = {
    "quantkit": ("quantkit.json, the origin record beside every output", RECORD),
    "report": ("report.json of `quantkit measure`", REPORT),
    "conversion": ("`--format json` of convert, gguf, awq, gptq and imatrix", CONVERSION),
    "measure": (
        "`--format json` of measure: report.json with the command and the folder of the report",
        {"command": Const(("measure",)), "report": "string", **REPORT},
    ),
    "lora": ("`--format json` of lora", LORA),
    "plan": ("`--format json` of plan", PLAN),
    "run": ("`--format json` of run", RUN),
    "serve": ("`--format json` of serve, written when the server answers", SERVE),
    "inspect": ("`--format json` of inspect", INSPECT),
    "ollama": ("`--format json` of ollama", OLLAMA),
    "card": ("`--format json` of card", CARD),
    "termux": ("`--format json` of termux", TERMUX),
    "bake": ("`--format json` of bake", BAKE),
}


def schema_text(name: str) -> str:
    """The file of a schema."""
    title, shape = SCHEMAS[name]
    return json.dumps({"$schema": DRAFT, "title": title, **schema(shape)}, indent=2) + "\n"


def schema(shape: Any) -> dict[str, Any]:
    """A shape as a JSON Schema."""
    if isinstance(shape, str):
        kind = shape.removesuffix("?")
        return {"type": [kind, "null"] if shape.endswith("?") else kind}
    if isinstance(shape, list):
        return {"type": "array", "items": schema(shape[0])}
    if isinstance(shape, Map):
        return {"type": "object", "additionalProperties": schema(shape.values) if shape.values else True}
    if isinstance(shape, OneOf):
        return {"oneOf": [schema(one) for one in shape.shapes]}
    if isinstance(shape, OrNull):
        return {"anyOf": [schema(shape.shape), {"type": "null"}]}
    if isinstance(shape, Const):
        return {"enum": list(shape.values)}
    if not shape:
        return {}
    return {
        "type": "object",
        "properties": {key.removesuffix("?"): schema(value) for key, value in shape.items()},
        "required": [key for key in shape if not key.endswith("?")],
        "additionalProperties": False,
    }
