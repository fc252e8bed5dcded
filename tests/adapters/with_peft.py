"""PEFT's own answers, in a Python that has torch, transformers and peft: `python -m tests.adapters.with_peft REQUEST`.

The request is JSON with a list of jobs, each with `base` (a folder), `adapters` ([[folder, scale], ...]), and `out`, an
npz file. `train` holds the arguments of LoraConfig: the first adapter is then made, trained for a few steps on `text`
(token ids; by default `tokens`), and saved. The npz has `logits` of the trained model before the merge (float32),
`losses` of the steps, and each merged weight by its name unless `weights` is false.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM

# an adapter that PEFT does not read whole would make its answer that of the base
warnings.filterwarnings("error", message=".*missing adapter keys.*")

STEPS = 3


def main() -> None:
    for job in json.loads(Path(sys.argv[1]).read_text()):
        losses = _train(job, job["adapters"][0][0]) if job.get("train") else []
        _answer(job, losses)


def _base(folder: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def _train(job: dict[str, Any], out: str) -> list[float]:
    """A few steps of Adam from random matrices, so that every trained value differs from its start; their losses."""
    torch.manual_seed(1)
    model = get_peft_model(_base(job["base"]), LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **job["train"]))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=job.get("learning_rate", 0.02))
    ids, losses = torch.tensor([job.get("text", job["tokens"])]), []
    for _ in range(job.get("steps", STEPS)):
        loss = model(input_ids=ids, labels=ids).loss
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(out)
    return losses


def _answer(job: dict[str, Any], losses: list[float]) -> None:
    names = [f"a{number}" for number in range(len(job["adapters"]))]
    model: Any = PeftModel.from_pretrained(_base(job["base"]), job["adapters"][0][0], adapter_name=names[0])
    for name, (folder, _) in zip(names[1:], job["adapters"][1:], strict=True):
        model.load_adapter(folder, adapter_name=name)
    model.base_model.set_adapter(names)
    for name, (_, scale) in zip(names, job["adapters"], strict=True):
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.set_scale(name, scale)
    model.eval()
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([job["tokens"]])).logits[0].float().numpy()
    weights = {}
    if job.get("weights", True):
        merged = model.merge_and_unload(adapter_names=names)
        weights = {name: value.float().numpy() for name, value in merged.state_dict().items()}
    np.savez(job["out"], logits=logits, losses=np.array(losses), **weights)


if __name__ == "__main__":
    main()
