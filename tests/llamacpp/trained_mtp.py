"""Trains a tiny GLM-4.5 with its MTP layer on a text, by transformers' classes. Runs in the newest peer's venv.

    <peer's python> -m tests.llamacpp.trained_mtp FOLDER TEXT PROMPT ...

FOLDER gets the checkpoint as it would be published. Prints JSON: for each prompt [answer, drafted, accepted, ties]. The
answer has ANSWER tokens, each the best one, and the layer drafts one token at a time. Ties are tokens for which the
layer's two best drafts are so close that rounding in another program can choose the other one.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.modeling_layers import MtpLayer

from tests.families.models import write_tokenizer
from tests.families.models.glm4moe import GLM4_MOE

CONFIG = {**GLM4_MOE, "first_k_dense_replace": 1, "num_hidden_layers": 2, "attention_bias": False}
ANSWER = 48
_LENGTH, _BATCH, _STEPS = 96, 8, 400
_TIE = 0.005
"""Of the logits' standard deviation. Training ends in other weights on another processor, so any draft may be a tie."""


class Trained(torch.nn.Module):
    """The model, and the layer that predicts the next token from a token and the hidden state before it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        config = AutoConfig.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
        block = self.model.model.layers[-1]
        self.mtp = MtpLayer(config, type(block), type(block.input_layernorm), config.num_hidden_layers)
        for name, values in self.mtp.named_parameters():
            # transformers leaves experts and routers without values
            values.data.fill_(1.0) if "norm" in name else values.data.normal_(std=0.02)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the next tokens (batch, n, vocab) by the model, and by the layer from states one token before."""
        # the layer gets the hidden states before the last norm
        states: list[torch.Tensor] = []
        hook = self.model.model.layers[-1].register_forward_hook(
            lambda _module, _inputs, output: states.append(output if isinstance(output, torch.Tensor) else output[0])
        )
        logits = self.model(ids, use_cache=False).logits
        hook.remove()
        n = ids.shape[1]
        later = torch.full((n, n), torch.finfo(torch.float32).min).triu(1)[None, None]
        embedded = self.model.get_input_embeddings()(ids)
        # each token comes with the hidden state before it, the first one with zeros, as in llama.cpp
        before = torch.nn.functional.pad(states[0][:, :-1], (0, 0, 1, 0))
        positions = torch.arange(n)[None]
        turns = self.model.model.rotary_emb(embedded, positions)
        hidden = self.mtp(embedded, before, turns, later, positions, None)
        return logits, self.model.lm_head(hidden)


def train(folder: Path, ids: torch.Tensor) -> Trained:
    """The model after `_STEPS` steps on excerpts of `ids`."""
    torch.manual_seed(0)
    trained = Trained(folder)
    steps = torch.optim.AdamW(trained.parameters(), lr=3e-3)
    for step in range(_STEPS):
        for group in steps.param_groups:
            group["lr"] = 3e-3 * (1 - step / _STEPS)
        starts = torch.randint(len(ids) - _LENGTH, (_BATCH,))
        batch = torch.stack([ids[start : start + _LENGTH] for start in starts])
        following, second = trained(batch)
        cross_entropy = torch.nn.functional.cross_entropy
        loss = cross_entropy(following[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        loss = loss + cross_entropy(second[:, 1:-1].flatten(0, 1), batch[:, 2:].flatten())
        steps.zero_grad()
        loss.backward()
        steps.step()
    return trained.eval()


def save(trained: Trained, folder: Path) -> None:
    """The checkpoint with the layer after the model's own, under published names."""
    trained.model.save_pretrained(folder)
    last = CONFIG["num_hidden_layers"]
    tensors = load_file(folder / "model.safetensors")
    for name, values in trained.mtp.state_dict().items():
        published = name.removeprefix("mtp_block.").replace("post_norm.", "shared_head.norm.", name.startswith("post_"))
        tensors[f"model.layers.{last}.{published}"] = np.ascontiguousarray(values.numpy())
    tensors[f"model.layers.{last}.shared_head.head.weight"] = tensors["lm_head.weight"]
    tensors[f"model.layers.{last}.embed_tokens.weight"] = tensors["model.embed_tokens.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_nextn_predict_layers": 1}))


@torch.no_grad()
def rounds(trained: Trained, prompt: list[int]) -> tuple[list[int], int, int, int]:
    """The answer's tokens, drafted, accepted, ties: the layer drafts one after each token of the model."""
    ids = torch.tensor([prompt])
    for _ in range(ANSWER + 2):
        ids = torch.cat([ids, trained(ids)[0][:, -1:].argmax(-1)], dim=1)
    logits = trained(ids)[1][0]
    second, best = logits.argmax(-1), logits[len(prompt) :].topk(2).values
    ties = int((best[:, 0] - best[:, 1] < _TIE * logits.std()).sum())
    drafted = accepted = 0
    # the first token of the answer comes without a draft, and so does a last one that is left alone
    last = len(prompt)
    while last < len(prompt) + ANSWER - 2:
        right = bool(second[last] == ids[0, last + 1])
        drafted, accepted, last = drafted + 1, accepted + right, last + 1 + right
    return ids[0, len(prompt) : len(prompt) + ANSWER].tolist(), drafted, accepted, ties


def main() -> None:
    torch.set_num_threads(1)
    folder, text, prompts = Path(sys.argv[1]), " ".join(Path(sys.argv[2]).read_text().split()), sys.argv[3:]
    folder.mkdir(parents=True)
    write_tokenizer(folder, "smollm")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    trained = train(folder, torch.tensor(tokenizer.encode(text)))
    save(trained, folder)
    write_tokenizer(folder, "smollm")
    results = (rounds(trained, tokenizer.encode(prompt)) for prompt in prompts)
    print(json.dumps([(tokenizer.decode(answer), *counts) for answer, *counts in results]))


if __name__ == "__main__":
    main()
