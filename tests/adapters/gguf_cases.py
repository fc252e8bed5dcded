"""The adapters whose GGUF is compared byte for byte with that of llama.cpp's script."""

from pathlib import Path

import numpy as np

from quantkit.families import find_family, map_tensors, open_model
from tests.families.expected import write_checkpoint
from tests.helpers.adapters import PREFIX, write_adapter_files

# One for each way in which a family's tensors differ from the checkpoint's: rows in another order (llama, bloom),
# one tensor cut into three (internlm2), experts stacked (mixtral), none (qwen3).
FAMILIES = ("bloom", "internlm2", "llama", "mixtral", "qwen3")
TYPES = ("f32", "f16", "bf16", "q8_0")
CARD = "---\nbase_model: ORG/Base\ntags: [lora, text]\nlanguage: [en]\n---\n# An adapter\n"


def write_family_case(name: str, folder: Path) -> tuple[Path, Path]:
    """A tiny checkpoint of a case of tests.families, and an adapter of all its linears; (base, adapter)."""
    base = write_checkpoint(name, folder / "base")
    rng, tensors = np.random.RandomState(1), {}
    with open_model(str(base)) as opened:
        family = find_family(opened.config)
        mapped = map_tensors(family, family.sizes(opened.config, opened.tensors), opened.tensors)
        named = {part.source for tensor in mapped if _is_linear(tensor.name) for part in tensor.parts}
        for source in sorted(named):
            out, inputs = opened.tensors[source].shape
            at = PREFIX + source.removesuffix(".weight")
            for letter, shape in (("A", (3, inputs)), ("B", (out, 3))):
                tensors[f"{at}.lora_{letter}.weight"] = rng.standard_normal(shape).astype(np.float32) * np.float32(0.2)
    settings = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "base_model_name_or_path": "ORG/Base"}
    adapter = write_adapter_files(folder / "adapter", settings, tensors)
    (adapter / "README.md").write_text(CARD)
    return base, adapter


def _is_linear(name: str) -> bool:
    return name.startswith("blk.") and name.endswith(".weight") and "_norm" not in name and "_inp" not in name
