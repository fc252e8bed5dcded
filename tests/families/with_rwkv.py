"""Makes the tiny RWKV models with packages of PyPI, and their logits. Runs in the peer's venv.

rwkv7-hf is a model for transformers; rwkv, by RWKV's author, reads files of the original layout.
tests/families/expected.py puts both packages on the path; tests/families/with_transformers.py calls this.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from tests.families.models import TOKENS, Case, weight
from tests.families.without_transformers import Made


def rwkv7(case: Case) -> Made:
    """RWKV 7 by rwkv7-hf, in flash-linear-attention's layout."""
    from rwkv7_hf.configuration_rwkv7 import RWKV7Config
    from rwkv7_hf.modeling_rwkv7 import RWKV7ForCausalLM

    model = RWKV7ForCausalLM(RWKV7Config(**case.config)).float().eval()
    state = model.state_dict()
    tensors = {name: weight(case.seed, name, tuple(values.shape)) for name, values in state.items()}
    with torch.no_grad():
        for name, values in state.items():
            values.copy_(torch.from_numpy(tensors[name]))
        logits = model(torch.tensor([TOKENS]), use_cache=False).logits[0].float().numpy()
    return _published(case, tensors, logits)


def rwkv6(case: Case) -> Made:
    """RWKV 6 by rwkv, whose names are those of the published code for transformers but for a few parts."""
    from tests.families.models.rwkv import layout6

    tensors = {name: weight(case.seed, name, shape) for name, shape in layout6(case.config).items()}
    os.environ["RWKV_JIT_ON"] = "0"
    os.environ["RWKV_CUDA_ON"] = "0"
    from rwkv.model import RWKV

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pth")
        torch.save({_original(name): torch.from_numpy(values) for name, values in tensors.items()}, path)
        logits, _ = RWKV(model=str(path), strategy="cpu fp32").forward(list(TOKENS), None, full_output=True)
    return _published(case, tensors, logits.float().numpy())


def _original(name: str) -> str:
    for old, new in (("rwkv.", ""), ("embeddings.", "emb."), ("pre_ln", "ln0"), ("attention", "att")):
        name = name.replace(old, new)
    return name.replace("feed_forward", "ffn")


def _published(case: Case, tensors: dict[str, np.ndarray], logits: np.ndarray) -> Made:
    settings = dict(case.config)
    native = {"config": settings, "layout": {name: list(values.shape) for name, values in tensors.items()}}
    config, published = case.publish(settings, tensors) if case.publish else (settings, tensors)
    return config, published, logits, native
