"""The name of a chat template: that of a built-in template, or of the format whose tokens it writes."""

from quantkit.chat.builtin import BUILT_IN

# The first format whose marks are all in the text wins. So a format precedes those with a subset of its marks.
_MARKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("huozi", ("<|beginofutterance|>",)),
    ("blossom", ("|Human|:", "|Bot|:")),
    ("baichuan2", ("<reserved_106>",)),
    ("baichuan", ("<reserved_102>",)),
    ("phi-4", ("<|im_start|>", "<|im_sep|>")),
    ("chatml", ("<|im_start|>", "<|im_end|>")),
    ("harmony", ("<|start|>", "<|channel|>")),
    ("llama-4", ("<|header_start|>",)),
    ("llama-3", ("<|start_header_id|>", "<|eot_id|>")),
    ("phi-3", ("<|end|>", "<|assistant|>")),
    ("gemma", ("<start_of_turn>",)),
    ("deepseek", ("<｜User｜>",)),
    ("kimi-k3", ("<|open|>", "<|end_of_msg|>")),
    ("glm-4", ("[gMASK]", "<|user|>")),
    ("granite", ("<|start_of_role|>",)),
    ("command-r", ("<|START_OF_TURN_TOKEN|>",)),
    ("exaone", ("[|assistant|]",)),
    ("zephyr", ("<|user|>", "<|assistant|>")),
    ("mistral-v7", ("[SYSTEM_PROMPT]", "[INST]")),
    ("llama-2", ("<<SYS>>", "[INST]")),
    ("mistral", ("[INST]",)),
    ("alpaca", ("### Instruction", "### Response")),
    ("vicuna", ("USER:", "ASSISTANT:")),
)


def template_name(template: str) -> str | None:
    """The name of the template's format; None for an unknown format."""
    for name, built_in in BUILT_IN.items():
        if template.strip() == built_in.text.strip():
            return name
    return next((name for name, marks in _MARKS if all(mark in template for mark in marks)), None)
