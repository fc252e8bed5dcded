"""The quantization_config of compressed-tensors folders, with the keys that its package, transformers and vLLM read.

Source: `QuantizationConfig`, `QuantizationScheme` and `QuantizationArgs` of compressed-tensors, and vLLM's
`CompressedTensorsConfig`.
"""

import re
from collections.abc import Mapping
from typing import Any

from quantkit.packed.formats import Names

VERSION = "0.15.0"
"""The version of the format that the keys follow; readers of later versions accept it."""


def compressed_config(
    layout: str, names: Names, weights: Mapping[str, Any], activations: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The configuration of a folder whose linears are all of one scheme.

    `layout`: its `format`. `weights` and `activations`: the settings of `QuantizationArgs` that differ from None.
    """
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "version": VERSION,
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": _arguments(weights),
                "input_activations": None if activations is None else _arguments(activations),
                "output_activations": None,
                "format": layout,
            }
        },
        "ignore": ignored(names),
    }


def ignored(names: Names) -> list[str]:
    """The names of `ignore`: kept linears, an expression for all below a place, and the head even where it is tied."""
    plain = sorted({names.head, *(name for name in names.kept if not name.endswith(".*"))})
    places = sorted(name.removesuffix(".*") for name in names.kept if name.endswith(".*"))
    return [*plain, *(f"re:^{re.escape(prefix)}[.].*" for prefix in places)]


def _arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    empty: dict[str, Any] = {
        "actorder": None,
        "block_structure": None,
        "group_size": None,
        "observer": None,
        "observer_kwargs": {},
    }
    return {**empty, **settings}
