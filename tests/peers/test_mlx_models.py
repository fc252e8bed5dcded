"""mlx-lm computes our logits from MLX folders of each architecture it shares with us, and we read its mixtures.

mlx-lm computes in float32, as quantkit's forward over the dequantized weights does: only the order of sums differs.
"""

from pathlib import Path

import numpy as np
import pytest

from quantkit.families import reference_logits
from quantkit.llamacpp.evaluation import logits
from quantkit.packed.reader import open_quantized
from tests.families.expected import write_checkpoint
from tests.helpers.command import quantkit
from tests.peers.environments import run_inside

pytestmark = [pytest.mark.peers, pytest.mark.timeout(3600)]

BOUND = 1e-5
"""Of the logits' standard deviation, root mean square of a token."""
READ_BOUND = 1e-3
MIXTURES = (
    *("mixtral", "qwen2moe", "qwen3moe", "qwen35moe", "olmoe", "deepseek-moe", "glm4moe", "dots1", "minimax-m2"),
    *("afmoe", "bailingmoe", "bailingmoe2", "mellum", "solar-open"),
)
DENSE = (
    *("llama", "qwen2", "qwen3", "qwen35", "gemma3", "gemma4", "phi-4k", "smollm3", "granite", "glm4", "olmo2"),
    *("exaone4", "lfm2", "apertus", "cohere2", "mistral3-named", "nemotron"),
)
MADE_BY_MLX = ("mixtral", "qwen3moe", "deepseek-moe", "glm4moe", "dots1", "minimax-m2")
TOKENS: list[int] = np.random.RandomState(0).randint(3, 64, 24).tolist()


def test_mlx_lm_computes_our_logits_of_every_architecture(tmp_path: Path) -> None:
    folders = {}
    for name in (*MIXTURES, *DENSE):
        source, out = write_checkpoint(name, tmp_path / name), tmp_path / f"{name}-out"
        # 48 inputs are not whole groups
        skip = ("--skip", "shared_expert.down_proj") if name in ("qwen2moe", "qwen35moe") else ()
        done = quantkit("convert", source, "-t", "mlx-4bit", "--group-size", "32", *skip, "-o", out)
        assert done.code == 0, done.stderr
        (folders[name],) = (path for path in out.iterdir() if path.is_dir())
    given = ("-t", "mlx-4bit-gptq", "--group-size", "32", "--samples", "8", "--seq-len", "64", "--raw")
    done = quantkit("convert", tmp_path / "mixtral", *given, "-o", tmp_path / "feedback")
    assert done.code == 0, done.stderr
    (folders["mixtral, by GPTQ"],) = (path for path in (tmp_path / "feedback").iterdir() if path.is_dir())
    (tmp_path / "tokens.json").write_text(str(TOKENS))
    files = {name: tmp_path / f"{name}.npy" for name in folders}
    pairs = [item for name in folders for item in (folders[name], files[name])]
    run_inside("mlx", "mlx_models.py", "load", tmp_path / "tokens.json", *pairs)
    differences = {}
    for name, folder in folders.items():
        with open_quantized(folder) as opened:
            ours = reference_logits(opened.whole, opened.config, TOKENS, names=opened.names)
        differences[name] = _difference(np.load(files[name]), ours)
    assert {name: value for name, value in differences.items() if not value < BOUND} == {}


def test_mixtures_that_mlx_lm_quantized_convert_to_a_gguf_with_its_logits(tmp_path: Path) -> None:
    made = {name: tmp_path / f"{name}-mlx" for name in MADE_BY_MLX}
    (tmp_path / "tokens.json").write_text(str(TOKENS))
    pairs = [item for name, out in made.items() for item in (write_checkpoint(name, tmp_path / name), out)]
    run_inside("mlx", "mlx_models.py", "quantize", tmp_path / "tokens.json", *pairs)
    for name, folder in made.items():
        done = quantkit("gguf", folder, "-t", "f32", "-o", tmp_path / f"{name}-gguf")
        assert done.code == 0, done.stderr
        (file,) = (tmp_path / f"{name}-gguf").rglob("*.gguf")
        assert _difference(logits(file, TOKENS), np.load(folder / "logits.npy")) < READ_BOUND, name


def _difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """The worst token's root mean square difference, in standard deviations of all logits."""
    return float(np.sqrt(np.mean((actual - expected) ** 2, axis=1)).max() / expected.std())
