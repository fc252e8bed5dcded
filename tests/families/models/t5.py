"""T5's encoder: relative positions in one table or one a layer (UMT5), a feed-forward with a gate or without."""

from typing import Any

from tests.families.models.bert import encoder
from tests.families.models.case import VOCAB, Case

T5: dict[str, Any] = {
    "model_type": "t5",
    "vocab_size": VOCAB,
    "d_model": 64,
    "d_kv": 24,
    "d_ff": 96,
    "num_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "feed_forward_proj": "relu",
    "n_positions": 512,
    "decoder_start_token_id": 0,
}
FLAN: dict[str, Any] = {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
_SETTINGS: dict[str, Any] = {"auto": "AutoModelForTextEncoding", "tokenizer": "t5", "forward": False}

CASES = (
    encoder("t5-encoder", T5, **_SETTINGS),
    encoder("flan-t5-encoder", FLAN, **_SETTINGS),
    # the converter does not know this architecture's encoder alone
    encoder("umt5-encoder", {**FLAN, "model_type": "umt5"}, converter=False, **_SETTINGS),
    *(
        Case(
            name,
            config,
            newest=True,
            auto="AutoModelForSeq2SeqLM",
            tokenizer="t5",
            pre="default",
            forward=False,
            patch="read_and_answer",
            # llama.cpp's GELU is a table in half precision, and nothing scales its error down
            drift=0.02 if config is T5 else 0.1,
        )
        for name, config in (("t5", T5), ("flan-t5", FLAN), ("umt5", {**FLAN, "model_type": "umt5"}))
    ),
)
