"""Losses of a checkpoint on windows of a text, by transformers in fp32. Runs in the peer's venv.

    <peer's python> -m tests.full.perplexity_with_transformers CHECKPOINT TEXT WINDOWS

Prints a JSON list: for each window of 512 tokens the mean loss of all its 511 predictions, and of the 255 of its second
half, which is what llama-perplexity scores.
"""

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

LENGTH = 512


def main() -> None:
    checkpoint, text, count = Path(sys.argv[1]), Path(sys.argv[2]).read_text("utf-8"), int(sys.argv[3])
    ids = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(text.removesuffix("\n"))
    tokens = torch.tensor(ids.ids[: count * LENGTH]).reshape(count, LENGTH)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    figures = []
    with torch.inference_mode():
        for window in tokens:
            logits = model(window[None], use_cache=False).logits[0, :-1]
            losses = torch.nn.functional.cross_entropy(logits, window[1:], reduction="none").double()
            figures.append([losses.mean().item(), losses[LENGTH // 2 :].mean().item()])
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
