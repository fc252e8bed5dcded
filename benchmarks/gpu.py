"""`make test-gpu`: the calibration on a CUDA GPU, checked against the CPU and timed, as a table under the card's name.

parity: a real checkpoint to AWQ, GPTQ, and GGUF with error feedback on the CPU and on the GPU: errors of every linear,
perplexity of the outputs.
rate: large products of the forward against the largest rate that torch reaches on this card in bfloat16.
dense: a model of the shape of Llama 3 8B to AWQ, GPTQ and an importance matrix at once; with --peer, GPTQModel's GPTQ.
wide: two layers of the shape of Llama 3 70B. mixture: layers of Mixtral 8x7B with Huozi-3's vocabulary to AWQ.
gguf: a layer of the shape of Llama 3 8B to q4_0 and q4_k_m with error feedback, against the same on the CPU.
memory: GGUFs of Huozi 3's shape in llama.cpp built with CUDA, planned, measured and by the driver (gpu_memory.py).

The synthetic models have random weights, so their times and memory are those of real ones and their errors are not.
Results go to the terminal and, as JSON, to bench-output/gpu.json. Without a GPU: exit code 1 and one sentence.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lines import REPOSITORY, WORK, Lines, Target, print_machine
from benchmarks.synthetic import VOCAB, Shape, synthetic
from demo.smollm2 import smollm2_checkpoint

PARTS = ("parity", "rate", "dense", "wide", "mixture", "gguf", "memory")
DENSE = Shape("Dense-8B", hidden=4096, ffn=14336, layers=32, heads=32, kv_heads=8)
WIDE = Shape("Wide-70B-2-layers", hidden=8192, ffn=28672, layers=2, heads=64, kv_heads=8)
MIXTURE = Shape("Mixtral-8x7B", hidden=4096, ffn=14336, layers=32, heads=32, kv_heads=8, experts=8, vocab=57000)
_DISK = 3.0
_TEXT = REPOSITORY / "README.md"


class Bench(Lines):
    """The measurements of one run on `device`, which is "cuda" but in a trial of this script."""

    def __init__(self, device: str, samples: int, length: int) -> None:
        super().__init__()
        self.device, self.samples, self.length = device, samples, length

    def convert(self, checkpoint: Path, out: Path, device: str, *words: str) -> dict[str, Any]:
        """The JSON document of `quantkit convert`, and under "wall" its seconds."""
        shutil.rmtree(out, ignore_errors=True)
        start = time.monotonic()
        document = self._quantkit("convert", checkpoint, "-o", out, "--device", device, "--no-logits", *words)
        document["wall"] = time.monotonic() - start
        self.raw[f"{checkpoint.name} {device} {' '.join(words)}"] = document
        return document

    def _quantkit(self, *words: str | Path) -> dict[str, Any]:
        command = [sys.executable, "-m", "quantkit", *map(str, words), "--format", "json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} exits {done.returncode}: {done.stderr[-2000:]}")
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def parity(self, checkpoint: Path, text: Path) -> None:
        """Both devices on the same samples: the largest difference of a linear's error, and of a perplexity."""
        words = ("-t", "awq", "-t", "gptq", "--group-size", "32", "-t", "q4_0", "-t", "q6_k", "--solver", "feedback")
        words += ("--samples", "32", "--seq-len", "256")
        folders = {device: WORK / f"parity-{device}" for device in ("cpu", self.device)}
        documents = {device: self.convert(checkpoint, out, device, *words) for device, out in folders.items()}
        errors = {device: _errors(document) for device, document in documents.items()}
        ratios = [errors[self.device][name] / error for name, error in errors["cpu"].items()]
        for what, value in (("largest", max(ratios)), ("smallest", min(ratios))):
            line = Target(f"error of a linear, GPU / CPU, {what}", checkpoint.name, value, "", 1.05, 0.95)
            self.add(line)
        mean = sum(ratios) / len(ratios)
        self.add(Target("error of all linears, GPU / CPU, mean", checkpoint.name, mean, "", 1.01, 0.99))
        made = {}
        for made_on, out in folders.items():
            perplexities = {device: self._perplexities(checkpoint, out, text, device) for device in folders}
            made[made_on] = perplexities["cpu"]
            for name, value in perplexities["cpu"].items():
                ratio = perplexities[self.device][name] / value
                label = f"perplexity of {name} of the {made_on}, GPU / CPU"
                self.add(Target(label, checkpoint.name, ratio, "", 1.001, 0.999))
        for name, value in made["cpu"].items():
            ratio = made[self.device][name] / value
            self.add(Target(f"perplexity of {name}, made on the GPU / the CPU", checkpoint.name, ratio, "", 1.02, 0.98))

    def _perplexities(self, checkpoint: Path, out: Path, text: Path, device: str) -> dict[str, float]:
        folders = [path for kind in ("*-AWQ", "*-GPTQ", "*-GGUF/*.gguf") for path in sorted(out.glob(kind))]
        words = ("--text", text, "--ctx", "256", "--chunks", "4", "--device", device, "-o", WORK / "report", "--force")
        models = self._quantkit("measure", checkpoint, *folders, *words)["models"][1:]
        return {model["path"].rsplit("-", 1)[-1]: model["quality"][0]["perplexity"]["value"] for model in models}

    def rate(self) -> None:
        """TFLOP/s of the forward's largest products, and of torch's own square product in bfloat16."""
        import torch

        from quantkit.forward.arrays import product

        device = torch.device("cuda" if self.device == "cuda" else "cpu")
        size = 8192 if self.device == "cuda" else 256

        def seconds(a: Any, b: Any, by: Any) -> float:
            best = float("inf")
            for _ in range(8):
                if device.type == "cuda":
                    torch.cuda.synchronize()
                start = time.perf_counter()
                by(a, b)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                best = min(best, time.perf_counter() - start)
            return best

        square = torch.randn(size, size, device=device).bfloat16()
        peak = 2 * size**3 / seconds(square, square, torch.mm) / 1e12
        self.add(Target("torch's bfloat16 product, square", "", peak, "TF/s"))
        for n_in, n_out in ((size // 2, 7 * size // 4), (7 * size // 4, size // 2)):
            x = torch.randn(self.length, n_in, device=device)
            weight = torch.randn(n_in, n_out, device=device).bfloat16()
            rate = 2 * self.length * n_in * n_out / seconds(x, weight, product) / 1e12
            self.add(Target(f"linear {n_in} x {n_out}, {self.length} tokens / that", "", rate / peak, "", at_least=0.6))

    def dense(self, shape: Shape, peer: Path | None) -> None:
        """AWQ, GPTQ and the importance matrix together; GPTQModel's GPTQ alone in the environment of `peer`."""
        with synthetic(shape, _DISK) as checkpoint:
            if checkpoint is None:
                return
            document = self._add(shape, checkpoint, ("-t", "awq", "-t", "gptq", "-t", "imatrix"), vram_below=8.0)
            if peer is not None:
                seconds = self._gptqmodel(peer, checkpoint)
                self.add(Target("GPTQModel's GPTQ alone", shape.name, seconds, "s"))
                self.add(Target("all three / GPTQModel's GPTQ", shape.name, document["wall"] / seconds, "", 0.25))

    def wide(self, shape: Shape) -> None:
        """The memory of one layer of a 70B model."""
        with synthetic(shape, _DISK) as checkpoint:
            if checkpoint is not None:
                self._add(shape, checkpoint, ("-t", "awq", "-t", "gptq"), vram_below=24.0)

    def mixture(self, shape: Shape) -> None:
        """AWQ of the layers that were written; 32 layers take as many times as long."""
        with synthetic(shape, _DISK) as checkpoint:
            if checkpoint is not None:
                document = self._add(shape, checkpoint, ("-t", "awq"), vram_below=None)
                whole = document["seconds"]["calibrate"] * 32 / shape.layers
                self.add(Target("calibration of 32 layers, by that", shape.name, whole, "s", at_most=600))

    def feedback(self, shape: Shape) -> None:
        """Error feedback in GGUF types: seconds of both devices, and the errors of the outputs as they report them."""
        with synthetic(shape, _DISK) as checkpoint:
            if checkpoint is None:
                return
            words = ("-t", "q4_0", "-t", "q4_k_m", "--solver", "feedback", "--samples", "16", "--seq-len", "512")
            seconds = {}
            for device in ("cpu", self.device):
                document = self.convert(checkpoint, WORK / "ours", device, *words)
                seconds[device] = document["seconds"]["calibrate"]
                self.add(Target(f"q4_0, q4_k_m with feedback: {device}", shape.name, seconds[device], "s"))
            self.add(Target("  GPU / CPU", shape.name, seconds[self.device] / seconds["cpu"], "", at_most=0.25))

    def memory(self, *, trial: bool) -> None:
        """The memory of GGUFs, see `gpu_memory`. A trial takes an RPC server on this machine for the GPU."""
        from benchmarks.gpu_memory import HUOZI, PLACEMENTS, TRIAL, gguf_memory
        from quantkit.measurement.load_options import LoadOptions

        folder = WORK / "gpu-memory"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            if not trial:
                gguf_memory(self, folder, HUOZI, LoadOptions(), PLACEMENTS)
                return
            from tests.helpers.rpc_server import rpc

            os.environ["GGML_BACKEND_PATH"] = str(rpc().backend)
            with rpc().serving(1) as endpoint:
                gguf_memory(self, folder, TRIAL, LoadOptions(rpc=[endpoint]), PLACEMENTS)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _add(self, shape: Shape, checkpoint: Path, words: Sequence[str], vram_below: float | None) -> dict[str, Any]:
        size = ("--samples", str(self.samples), "--seq-len", str(self.length))
        document = self.convert(checkpoint, WORK / "ours", self.device, *words, *size)
        for what in ("calibrate", "verify"):
            self.add(Target(f"{' '.join(words[1::2])}: {what}", shape.name, document["seconds"].get(what, 0.0), "s"))
        vram = document.get("gpu_peak_memory_bytes", 0) / 1e9
        self.add(Target("  peak memory of the GPU", shape.name, vram, "GB", at_most=vram_below))
        self.add(Target("  peak memory", shape.name, document["peak_memory_bytes"] / 1e9, "GB"))
        return document

    def _gptqmodel(self, peer: Path, checkpoint: Path) -> float:
        """Seconds of GPTQModel's GPTQ from loading to saving; what the tokens are does not change them."""
        samples = WORK / "samples.npy"
        np.save(samples, np.random.default_rng(0).integers(0, 32000, (self.samples, self.length)))
        script = REPOSITORY / "tests" / "peers" / "inside" / "quantize_gptqmodel.py"
        command = [peer, script, "gptq", "auto", checkpoint, samples, WORK / "theirs", "group_size=128"]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
        shutil.rmtree(WORK / "theirs", ignore_errors=True)
        if done.returncode != 0:
            raise RuntimeError(f"GPTQModel exits {done.returncode}: {done.stderr[-2000:]}")
        document = json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])
        return float(document["wall"])


def _errors(document: dict[str, Any]) -> dict[str, float]:
    return {
        f"{output['type']} {name}": error
        for output in document["outputs"]
        for name, error in output.get("relative_error", {}).items()
    }


def card(device: str) -> dict[str, Any]:
    """What the figures depend on. Exits with a sentence if there is no GPU."""
    try:
        import torch
    except ImportError:
        sys.exit("test-gpu: torch is not installed; run: pip install 'quantkit[torch]'")
    facts = {"python": platform.python_version(), "torch": torch.__version__, "cores": len(os.sched_getaffinity(0))}
    if device != "cuda":
        return {"card": "none, a trial on the CPU", **facts}
    if not torch.cuda.is_available():
        sys.exit(f"test-gpu: torch {torch.__version__} finds no CUDA device; run it on a machine with an NVIDIA GPU")
    properties = torch.cuda.get_device_properties(0)
    return {"card": properties.name, "memory_gb": round(properties.total_memory / 1e9, 1), **facts}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--part", choices=PARTS, action="append", help="of the benchmark; all without it")
    options.add_argument("--checkpoint", type=Path, help="real weights for parity; SmolLM2-135M without it")
    options.add_argument("--samples", type=int, default=128, help="calibration samples of the large models")
    options.add_argument("--seq-len", type=int, default=2048, help="tokens of a sample")
    options.add_argument("--layers", type=int, default=4, help="layers of the mixture that are written")
    options.add_argument("--peer", type=Path, help="the python of an environment with GPTQModel and a CUDA torch")
    options.add_argument("--trial", action="store_true", help="the same code on the CPU with tiny shapes")
    arguments = options.parse_args()
    device = "cpu" if arguments.trial else "cuda"
    facts = card(device)
    print_machine(facts)
    WORK.mkdir(parents=True, exist_ok=True)
    bench = Bench(device, arguments.samples, arguments.seq_len)
    dense, wide, mixture = DENSE, WIDE, replace(MIXTURE, layers=arguments.layers)
    if arguments.trial:
        small = {"hidden": 256, "ffn": 512, "layers": 2, "heads": 4, "kv_heads": 2, "vocab": VOCAB}
        dense, wide, mixture = (replace(shape, **small) for shape in (dense, wide, mixture))
    parts = arguments.part or PARTS
    try:
        if "parity" in parts:
            bench.parity(arguments.checkpoint or smollm2_checkpoint(), _TEXT)
        if "rate" in parts:
            bench.rate()
        if "dense" in parts:
            bench.dense(dense, arguments.peer)
        if "wide" in parts:
            bench.wide(wide)
        if "mixture" in parts:
            bench.mixture(mixture)
        if "gguf" in parts:
            bench.feedback(replace(dense, name="Dense-8B-1-layer", layers=1))
        if "memory" in parts:
            bench.memory(trial=arguments.trial)
    finally:
        for name in ("ours", "parity-cpu", f"parity-{device}", "report"):
            shutil.rmtree(WORK / name, ignore_errors=True)
        bench.save("gpu", facts)
    sys.exit(any(line.verdict.startswith("MISS") for line in bench.lines) and not arguments.trial)


if __name__ == "__main__":
    main()
