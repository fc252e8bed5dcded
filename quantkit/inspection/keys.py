"""Sizes, vocabulary and template from GGUF key-values, of a file or of a converted checkpoint."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from quantkit.chat import render_sample, template_name
from quantkit.errors import TemplateError
from quantkit.families import traits_of
from quantkit.gguf.keyvalues import KeyValue
from quantkit.gguf.vocabulary import TEMPLATE_KEY, special_tokens, token_texts
from quantkit.inspection.config import scaling_words
from quantkit.inspection.description import Shape, SpecialToken, Template, Vocabulary

_SIZES = {
    "layers": "block_count",
    "hidden": "embedding_length",
    "heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "ffn": "feed_forward_length",
    "expert_ffn": "expert_feed_forward_length",
    "experts": "expert_count",
    "experts_used": "expert_used_count",
    "experts_shared": "expert_shared_count",
    "context": "context_length",
    "sliding_window": "attention.sliding_window",
    "vocab": "vocab_size",
    "rope_dimensions": "rope.dimension_count",
}


def shape_of_keys(keys: Sequence[KeyValue], tensors: Sequence[str]) -> Shape:
    """The sizes of a GGUF's architecture keys; a size per layer gives the largest."""
    values = {key.key: key.value for key in keys}
    arch = values.get("general.architecture")
    fields = {field: _number(values.get(f"{arch}.{key}")) for field, key in _SIZES.items()}
    if mla := _number(values.get(f"{arch}.attention.key_length_mla")):
        # llama.cpp states latent attention as one key head; the model's own heads are these
        fields["head_dim"], fields["kv_heads"] = mla, fields["heads"]
    if fields["experts_shared"] is None and values.get(f"{arch}.expert_shared_feed_forward_length"):
        fields["experts_shared"] = 1
    if fields["head_dim"] is None and fields["heads"] and fields["hidden"]:
        fields["head_dim"] = fields["hidden"] // fields["heads"]
    fields["kv_heads"] = fields["kv_heads"] or fields["heads"]
    if fields["rope_dimensions"] == fields["head_dim"]:
        fields["rope_dimensions"] = None
    tokens = values.get("tokenizer.ggml.tokens")
    fields["vocab"] = len(tokens) if tokens is not None else fields["vocab"]
    base = values.get(f"{arch}.rope.freq_base")
    kind, factor = values.get(f"{arch}.rope.scaling.type"), values.get(f"{arch}.rope.scaling.factor")
    scaling = None
    if isinstance(kind, str) and kind != "none":
        scaling = scaling_words(kind, factor, values.get(f"{arch}.rope.scaling.original_context_length"))
    elif "rope_freqs.weight" in tensors:
        scaling = "llama3 (factors in rope_freqs)"
    elif any(name.startswith("rope_factors_") for name in tensors):
        scaling = "longrope (factors in rope_factors)"
    positions = "rope" if isinstance(base, float) or _number(values.get(f"{arch}.rope.dimension_count")) else None
    if traits_of(str(arch)).positions == "none":
        fields["rope_dimensions"] = None
        return Shape(**fields, positions="none", rope_base=None, rope_scaling=None)
    if _float(values.get(f"{arch}.attention.max_alibi_bias")) or traits_of(str(arch)).positions == "alibi":
        positions = "alibi"
    elif "position_embd.weight" in tensors:
        positions = "learned"
    return Shape(**fields, positions=positions, rope_base=_float(base), rope_scaling=scaling)


def vocabulary_of_keys(keys: Sequence[KeyValue]) -> Vocabulary | None:
    """The token table, or None."""
    values = {key.key: key.value for key in keys}
    if "tokenizer.ggml.tokens" not in values:
        return None
    return Vocabulary(
        size=len(token_texts(keys)),
        model=_text(values.get("tokenizer.ggml.model")),
        pre=_text(values.get("tokenizer.ggml.pre")),
        special=tuple(SpecialToken(*token) for token in special_tokens(keys)),
        adds_bos=values.get("tokenizer.ggml.add_bos_token"),
        adds_eos=values.get("tokenizer.ggml.add_eos_token"),
    )


def template_of_keys(keys: Sequence[KeyValue], vocabulary: Vocabulary | None) -> Template | None:
    """The default chat template, rendered on a sample; without a default the first named template."""
    prefix = f"{TEMPLATE_KEY}."
    named = {key.key.removeprefix(prefix): str(key.value) for key in keys if key.key.startswith(prefix)}
    text = next((str(key.value) for key in keys if key.key == TEMPLATE_KEY), None)
    if text is None and named:
        first = sorted(named)[0]
        text = named.pop(first)
    return None if text is None else describe_template(text, vocabulary, tuple(sorted(named)))


def describe_template(text: str, vocabulary: Vocabulary | None, others: tuple[str, ...] = ()) -> Template:
    """A chat template: its name, and how it renders a sample conversation or why it fails."""
    tokens = {token.role: token.text for token in vocabulary.special} if vocabulary else {}
    more = {f"{role}_token": token for role, token in tokens.items() if role not in ("bos", "eos")}
    try:
        sample = render_sample(text, bos_token=tokens.get("bos"), eos_token=tokens.get("eos"), special_tokens=more)
    except TemplateError as error:
        return Template(template_name(text), text, None, error=str(error), others=others)
    return Template(template_name(text), text, sample.text, sample.roles, others=others)


def file_type_of(values: Mapping[str, Any]) -> int | None:
    """general.file_type, llama.cpp's number of the mix."""
    return _number(values.get("general.file_type"), zero=True)


def _number(value: Any, zero: bool = False) -> int | None:
    if isinstance(value, np.ndarray):
        value = int(value.max()) if value.size and value.dtype.kind in "iu" else None
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if value or zero else None


def _float(value: Any) -> float | None:
    return float(value) if isinstance(value, float) and np.isfinite(value) and value else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
