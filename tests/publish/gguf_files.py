"""Small GGUF files as a publisher has them, written by the gguf package: a real header, one small tensor."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# What it writes for a message depends on the text of the message, which no Go template can do.
INEXACT = "{% for message in messages %}{{ message['content'] | length }}{{ message['content'] }}{% endfor %}"
TOKENS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "a", "b"]
_TYPES = {"q4_0": 2, "q8_0": 7, "q4_k_m": 15, "q2_k": 10}


def write_gguf(
    path: Path,
    *,
    type: str = "q4_0",
    template: str | None = CHATML,
    size_label: str | None = "3.9B",
    context_length: int = 32768,
    name: str = "Small Model",
    tokens: list[str] = TOKENS,
    bos: int = 1,
    eos: int = 4,
    eot: int | None = None,
    add_bos: bool | None = False,
    model: str = "gpt2",
    pre: str = "qwen2",
    sampling: dict[str, float | int] | None = None,
    license: str | None = None,
    kind: str = "model",
    architecture: str = "qwen2",
    extra: int = 0,
) -> Path:
    """`extra` makes the bytes, and with them the digest, different."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(kind)
    writer.add_name(name)
    if size_label is not None:
        writer.add_size_label(size_label)
    if license is not None:
        writer.add_license(license)
    for key, value in (sampling or {}).items():
        write: Any = writer.add_int32 if isinstance(value, int) else writer.add_float32
        write(f"general.sampling.{key}", value)
    writer.add_context_length(context_length)
    writer.add_file_type(_TYPES[type])
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_bos_token_id(bos)
    writer.add_eos_token_id(eos)
    if eot is not None:
        writer.add_eot_token_id(eot)
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    if template is not None:
        writer.add_chat_template(template)
    writer.add_tensor("token_embd.weight", np.full((8, 32), extra, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
