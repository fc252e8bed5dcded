"""The names in adapter_model.safetensors: which part of which module a tensor is.

Source: peft, `get_peft_model_state_dict` (utils/save_and_load.py). Older versions leave the adapter's name, usually
"default", inside the names.
"""

import re
from dataclasses import dataclass

_PREFIX = re.compile(r"^(base_model\.model\.)+|^base_model\.")
_ADAPTER = r"(?:\.[^.]+)?"
_PARTS = tuple(
    (part, re.compile(rf"(?P<module>.+?)\.{pattern}"))
    for part, pattern in (
        ("A", rf"lora_A{_ADAPTER}\.weight"),
        ("B", rf"lora_B{_ADAPTER}\.weight"),
        ("bias", rf"lora_B{_ADAPTER}\.bias"),
        ("embedding_A", rf"lora_embedding_A{_ADAPTER}"),
        ("embedding_B", rf"lora_embedding_B{_ADAPTER}"),
        ("magnitude", rf"lora_magnitude_vector(?:{_ADAPTER}\.weight|{_ADAPTER})"),
        ("tokens", rf"(?:token_adapter\.)?trainable_tokens_delta{_ADAPTER}"),
    )
)
_SAVED = re.compile(
    r"(?P<module>.+?)(?:\.base_layer|\.token_adapter|\.original_module|\.modules_to_save(?:\.[^.]+)?)*"
    r"\.(?P<leaf>weight|bias)"
)


@dataclass(frozen=True)
class AdapterName:
    """A tensor of an adapter: `part` of `module`.

    Parts: A, B, bias (of B), embedding_A, embedding_B, magnitude (DoRA's m), tokens (rows of single tokens). A tensor
    that replaces the base's whole weight or bias has the part `weight` or `saved_bias`.
    """

    module: str
    part: str


def parse_name(name: str) -> AdapterName | None:
    """The part that a tensor's name states; None for a name that is not PEFT's."""
    bare = _PREFIX.sub("", name)
    for part, pattern in _PARTS:
        if match := pattern.fullmatch(bare):
            return AdapterName(match["module"], part)
    if ".lora_" in bare or (match := _SAVED.fullmatch(bare)) is None:
        return None
    return AdapterName(match["module"], "weight" if match["leaf"] == "weight" else "saved_bias")
