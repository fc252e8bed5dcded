"""A report document of realistic figures: a reference, four candidates, two texts, memory, speed, errors of weights."""

import copy
import math
from collections.abc import Iterator
from typing import Any

WIKI, CHINESE = "wiki.test.raw", "红楼梦.txt"
LAYERS = 30
KINDS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
# label, bytes, bits/weight, perplexity ratio and its error, mean KL, same top token
_CANDIDATES = (
    ("q8_0", 144_811_000, 8.61, 1.0007, 0.00046, 0.00131, 0.9782),
    ("q4_k_m", 105_454_000, 6.27, 1.0412, 0.0031, 0.0443, 0.8911),
    ("q4_0", 91_731_000, 5.46, 1.2021, 0.0127, 0.1923, 0.7921),
    ("q2_k", 88_202_000, 5.25, 1.9374, 0.0441, 0.6634, 0.6132),
)


def sample() -> dict[str, Any]:
    """A new document each time, for a test to change."""
    return {
        "quantkit": "0.1.0",
        "created": "2026-11-21T12:30:00Z",
        "machine": {
            "cpu": "AMD EPYC 9R14",
            "cores": 2,
            "memory_bytes": 24_000_000_000,
            "gpus": [{"name": "NVIDIA H200", "memory_bytes": 150_754_820_096}],
        },
        "settings": {"ctx": 512, "chunks": 40, "threads": 2},
        "texts": [
            {"name": WIKI, "sha256": "a3f1" * 16, "tokens": 335_688, "chunks": 40, "scored_tokens": 10_200},
            {"name": CHINESE, "sha256": "0b7c" * 16, "tokens": 98_304, "chunks": 40, "scored_tokens": 10_200},
        ],
        "models": [_reference(), *(_candidate(number, *figures) for number, figures in enumerate(_CANDIDATES))],
        "flags": [],
        "seconds": 913.4,
    }


def _reference() -> dict[str, Any]:
    quality = [
        {"text": WIKI, "perplexity": {"value": 22.2847, "error": 0.9312}},
        {"text": CHINESE, "perplexity": {"value": 41.9021, "error": 2.1183}},
    ]
    return {
        **_model("bf16", "reference", 269_060_000, 16.0),
        "quality": quality,
        "memory": _memory(269_060_000),
        "speed": _speed(0.4),
    }


def _candidate(
    number: int, label: str, size: int, bits: float, ratio: float, error: float, kl: float, top1: float
) -> dict[str, Any]:
    return {
        **_model(label, "candidate", size, bits),
        "quality": [
            _quality(WIKI, 22.2847, 0.9312, ratio, error, kl, top1),
            _quality(CHINESE, 41.9021, 2.1183, 1 + (ratio - 1) * 1.7, error * 1.6, kl * 1.8, top1 - 0.05),
        ],
        "memory": _memory(size),
        "speed": _speed(1.0 + 0.1 * number),
        "tensor_errors": _errors(0.005 * 4**number),
    }


def _model(label: str, role: str, size: int, bits: float) -> dict[str, Any]:
    name = f"SmolLM2-135M-Instruct-{label.upper()}"
    return {
        "name": name,
        "label": label,
        "role": role,
        "kind": "gguf",
        "path": f"{name}.gguf",
        "engine": "llama.cpp 0.3.36",
        "bytes": size,
        "parameters": 134_515_008,
        "bits_per_weight": bits,
    }


def _quality(
    text: str, base: float, base_error: float, ratio: float, error: float, kl: float, top1: float
) -> dict[str, Any]:
    return {
        "text": text,
        "perplexity": {"value": base * ratio, "error": base_error * ratio},
        "perplexity_difference": {"value": base * (ratio - 1), "error": base * error},
        "perplexity_ratio": {"value": ratio, "error": error},
        "kl": {
            "mean": kl,
            "error": kl / 60,
            "median": kl * 0.53,
            "p90": kl * 2.4,
            "p99": kl * 7.1,
            "p999": kl * 15.3,
            "max": kl * 33.7,
            "histogram": _histogram(kl),
        },
        "top1": {"value": top1, "error": math.sqrt(top1 * (1 - top1) / 10_200)},
        "top5": {"value": top1 - 0.01, "error": 0.0021},
        "probability_change": {
            "mean": -0.021 * kl,
            "error": 0.0011 * kl,
            "rms": 0.21 * math.sqrt(kl),
            "rms_error": 0.004 * math.sqrt(kl),
        },
    }


def _histogram(kl: float) -> dict[str, Any]:
    """Log-normal, with the mean asked for."""
    edges = [10 ** (-6 + 0.125 * step) for step in range(60)]
    middle = math.log(kl) - 0.72
    counts = [
        round(10_200 * 0.125 * math.exp(-((math.log(low * 1.155) - middle) ** 2) / (2 * 1.44))) for low in edges[:-1]
    ]
    return {"edges": edges, "counts": counts}


def _memory(size: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for layers in (0, 8, 16, LAYERS + 1):
        part = layers / (LAYERS + 1)
        cpu = {
            "name": "CPU",
            "weights": size * (1 - part),
            "kv": 94_371_840 * (1 - part),
            "compute": 97_517_568 * (1 - part / 2),
            "other": 1_048_576,
        }
        gpu = {"name": "CUDA0", "weights": size * part, "kv": 94_371_840 * part, "compute": 97_517_568 * part}
        row = {
            "gpu_layers": layers,
            "of_layers": LAYERS + 1,
            "n_ctx": 4096,
            "devices": [cpu],
            "peak_rss": 612_368_384,
            "peak_pss": 598_736_896 * (1 - part / 2),
        }
        if layers:
            row |= {"devices": [cpu, gpu], "driver": [{"name": "CUDA0", "bytes": 480_000_000 + 287_000_000 * part}]}
        rows.append(row)
    return rows


def _speed(factor: float) -> list[dict[str, Any]]:
    return [
        {
            "gpu_layers": 0,
            "threads": 2,
            "repetitions": 5,
            "prompt_tokens": 512,
            "prompt": {"value": 391.7 * factor, "error": 4.21},
            "generated_tokens": 128,
            "generation": {"value": 61.23 * factor, "error": 0.484},
            "estimate": 66.4 * factor,
        }
    ]


def _errors(scale: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"layer": None, "kind": "token_embd", "type": "Q8_0", "error": 0.0051}]
    for layer in range(LAYERS):
        for place, kind in enumerate(KINDS):
            error = scale * (1 + 0.12 * math.sin(layer * 0.9 + place) + 0.05 * place)
            rows.append({"layer": layer, "kind": kind, "type": "Q4_0", "error": min(error, 1.0)})
    return rows


def spoilt_documents() -> Iterator[dict[str, Any]]:
    """A short document over and over, each time with something that does not belong in the place of one part."""
    short = sample()
    short["models"] = short["models"][:2]
    for model in short["models"]:
        model["memory"] = model["memory"][1:2]
        model["tensor_errors"] = model.get("tensor_errors", [])[:2]
        for quality in model["quality"]:
            if "kl" in quality:
                quality["kl"]["histogram"] = {"edges": [0.1, 1.0, 10.0], "counts": [3, 1]}
    for path in _paths(short):
        for replacement in (None, "nonsense", [1], {}, math.nan, -1):
            document = copy.deepcopy(short)
            part: Any = document
            for key in path[:-1]:
                part = part[key]
            part[path[-1]] = replacement
            yield document


def _paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, inner in items for path in [(*at, key), *_paths(inner, (*at, key))]]
