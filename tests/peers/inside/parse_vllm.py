"""What vLLM's own parsers make of quantization_config: `python parse_vllm.py FOLDER ...`.

A line of JSON for each folder: the class of its configuration, the scheme that vLLM chooses for a linear of
compressed-tensors (its name; kernels need a GPU and are not made), and whether q_proj and lm_head are left as they are.
"""

import json
import sys
from pathlib import Path
from typing import Any

from vllm.model_executor.layers.quantization import get_quantization_config
from vllm.model_executor.layers.quantization.compressed_tensors import compressed_tensors
from vllm.model_executor.layers.quantization.compressed_tensors.utils import should_ignore_layer

for name in [name for name in vars(compressed_tensors) if name.startswith("CompressedTensorsW")]:
    scheme = type(name, (), {"__init__": lambda self, *args, **options: None})
    scheme.get_min_capability = getattr(compressed_tensors, name).get_min_capability
    setattr(compressed_tensors, name, scheme)
# the schemes that a recent GPU supports
compressed_tensors.CompressedTensorsConfig._check_scheme_supported = lambda *args, **options: True


def main(*folders: str) -> None:
    for folder in folders:
        settings = json.loads(Path(folder, "config.json").read_text())["quantization_config"]
        kind = get_quantization_config(settings["quant_method"])
        print(json.dumps({"class": kind.__name__, **_facts(kind.from_config(settings))}))


def _facts(config: Any) -> dict[str, Any]:
    if not hasattr(config, "target_scheme_map"):
        return {}
    (parts,) = config.target_scheme_map.values()
    scheme = config._get_scheme_from_parts(
        weight_quant=parts["weights"], input_quant=parts["input_activations"], format=parts.get("format")
    )
    layers = ("model.layers.0.self_attn.q_proj", "lm_head")
    ignored = [should_ignore_layer(layer, ignore=config.ignore, fused_mapping={}) for layer in layers]
    return {"scheme": type(scheme).__name__, "ignored": ignored}


if __name__ == "__main__":
    main(*sys.argv[1:])
