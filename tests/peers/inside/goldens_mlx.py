"""MLX's quantized arrays: `python goldens_mlx.py FILE`."""

import base64

import goldens
import mlx.core as mx
import numpy as np

CASES = [
    *((f"mlx {bits} bit", {"bits": bits, "group_size": 32}) for bits in (2, 3, 4, 5, 6, 8)),
    ("mlx mxfp4", {"bits": 4, "group_size": 32, "mode": "mxfp4"}),
    ("mlx nvfp4", {"bits": 4, "group_size": 16, "mode": "nvfp4"}),
]
KINDS = {"uint32": "U32", "float32": "F32", "float16": "F16", "uint8": "U8"}


def stored(values: mx.array) -> list[object]:
    array = np.array(values)
    return [KINDS[array.dtype.name], list(array.shape), base64.b64encode(array.tobytes()).decode()]


def quantized(name: str, settings: dict[str, object]) -> tuple[dict[str, list[object]], list[object]]:
    w = mx.array(goldens.weights())
    parts = mx.quantize(w, **settings)
    expected = mx.dequantize(*parts, **settings)
    names = ("weight", "scales", "biases")[: len(parts)]
    tensors = {f"{name}.{part}": stored(values) for part, values in zip(names, parts, strict=True)}
    return tensors, stored(expected.astype(mx.float32))


def main() -> None:
    cases = {}
    for name, settings in CASES:
        tensors, expected = quantized("layer", settings)
        cases[name] = {"settings": settings, "tensors": tensors, "weights": {"layer.weight": expected}}
    four, six = (quantized(name, {"bits": bits, "group_size": 32}) for name, bits in (("attn.q", 4), ("mlp.up", 6)))
    settings = {"bits": 4, "group_size": 32, "mlp.up": {"bits": 6, "group_size": 32}, "kept": False}
    weights = {"attn.q.weight": four[1], "mlp.up.weight": six[1]}
    cases["mlx, own bits of some linears"] = {"settings": settings, "tensors": four[0] | six[0], "weights": weights}
    goldens.write(cases)


if __name__ == "__main__":
    main()
