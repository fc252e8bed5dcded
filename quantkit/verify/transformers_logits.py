"""`--reference transformers`: logits of GGUF files against those of transformers, which runs in another process.

transformers loads the checkpoint in float32, so this needs memory for the whole model. Its code shares nothing with
quantkit's forward and with llama.cpp's graph.
"""

import json
import os
import re
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.errors import QuantkitError, UsageError, VerificationError
from quantkit.outputs.gguf_files import GgufOutput
from quantkit.scratch import scratch_folder
from quantkit.tokenizer import PROBE, hf_token_ids
from quantkit.verify.check import Check, guard
from quantkit.verify.running import MEDIAN_FLOOR, loadable, logit_floor, narrowest_bits
from quantkit.verify.source_logits import Logits, NoSourceLogits, correlations

NAME = "transformers"
_WINDOWS, _TOKENS = 3, 64
_SECONDS = 3600.0
_SECRETS = re.compile(r"TOKEN|SECRET|PASSWORD|API_?KEY|CREDENTIAL", re.IGNORECASE)


class TransformersLogits:
    """Logits of a few windows of text by transformers, computed once for all outputs.

    `folder`: the checkpoint. `python`: an interpreter with torch and transformers. `adapted`: adapters are merged into
    the outputs, which transformers does not see.
    """

    def __init__(self, folder: Path, python: Path, *, adapted: bool = False) -> None:
        """Raises UsageError if the interpreter does not exist."""
        if not python.is_file():
            raise UsageError(
                f"{python}, the Python of --reference transformers, was not found; correct --converter-python"
            )
        self._folder, self._python, self._adapted = folder, python, adapted
        self._computed: list[tuple[list[int], Logits]] | NoSourceLogits | None = None
        self._lock = threading.Lock()

    def get(self) -> list[tuple[list[int], Logits]]:
        """For each window its token ids, and logits (len(ids), vocabulary). Raises NoSourceLogits."""
        with self._lock:
            if self._computed is None:
                try:
                    self._computed = self._compute()
                except NoSourceLogits as error:
                    self._computed = error
                except QuantkitError as error:
                    self._computed = NoSourceLogits(str(error))
        if isinstance(self._computed, NoSourceLogits):
            raise self._computed
        return self._computed

    def _compute(self) -> list[tuple[list[int], Logits]]:
        if self._adapted:
            raise NoSourceLogits(
                "transformers loads the base model without the adapters; convert the base for this check"
            )
        tokens = [token for ids in hf_token_ids(self._folder, PROBE) for token in ids]
        windows = [tokens[start : start + _TOKENS] for start in range(0, _WINDOWS * _TOKENS, _TOKENS)]
        windows = [window for window in windows if len(window) > 1]
        with scratch_folder() as work:
            output, file = work / "logits", work / "request.json"
            file.write_text(json.dumps({"folder": str(self._folder), "windows": windows, "output": str(output)}))
            answer = self._answer(file)
            if "missing" in answer:
                raise NoSourceLogits(
                    f"{self._python} has no {answer['missing']}; name a Python with torch and transformers with"
                    " --converter-python"
                )
            if "error" in answer:
                raise NoSourceLogits(f"transformers cannot compute the logits ({answer['error']})")
            values = np.fromfile(output, np.float32).reshape(-1, answer["columns"])
        ends = np.cumsum([len(window) for window in windows])
        return list(zip(windows, np.split(values, ends[:-1]), strict=True))

    def _answer(self, request: Path) -> dict[str, Any]:
        environment = {name: value for name, value in os.environ.items() if not _SECRETS.search(name)}
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment.pop("PYTHONPATH", None)  # of quantkit's own Python
        child = Path(__file__).with_name("transformers_child.py")
        command = [str(self._python), str(child), str(request)]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, timeout=_SECONDS
            )
        except OSError as error:
            raise NoSourceLogits(f"{self._python} cannot be run ({error.strerror})") from error
        except subprocess.TimeoutExpired as error:
            raise NoSourceLogits(f"transformers gave no logits in {_SECONDS:g} seconds and was stopped") from error
        lines = done.stdout.splitlines()
        if done.returncode or not lines:
            raise NoSourceLogits(f"transformers stopped with code {done.returncode} (too little memory?)")
        answer: dict[str, Any] = json.loads(lines[-1])
        return answer


def check_transformers(output: GgufOutput, reference: TransformersLogits) -> Check:
    """Logits of a GGUF by llama.cpp against those of transformers, over a few windows.

    The bounds are those of the check against quantkit's own forward.
    """

    def compare() -> str:
        from quantkit.llamacpp.evaluation import logits

        windows, by_position, largest = reference.get(), [], 0.0
        with loadable(output) as path:
            for tokens, expected in windows:
                values = logits(path, tokens)
                if not np.isfinite(values).all():
                    raise VerificationError(f"{output.label} gives logits that are not finite")
                # the model may pad its vocabulary
                columns = min(values.shape[1], expected.shape[1])
                values, expected = values[:, :columns], expected[:, :columns]
                by_position.append(correlations(values, expected))
                largest = max(largest, float(np.abs(values - expected).max() / expected.std()))
        joined = np.concatenate(by_position)
        mean, median, floor = float(joined.mean()), float(np.median(joined)), logit_floor(output)
        if not mean >= floor:
            raise VerificationError(
                f"the logits of {output.label} have a correlation of {mean:.3f} with transformers', below {floor}"
            )
        if narrowest_bits(output) >= 16 and not median >= MEDIAN_FLOOR:
            raise VerificationError(
                f"the logits of {output.label} have a median correlation of {median:.4f} with transformers', below"
                f" {MEDIAN_FLOOR}; rounding of floats does not explain that"
            )
        return (
            f"correlation {mean:.5f} with transformers' over {len(windows)} windows of {len(joined)} tokens together,"
            f" largest difference {largest:.4f} standard deviations"
        )

    try:
        return guard(NAME, compare)
    except NoSourceLogits as error:
        return Check(NAME, "skipped", str(error))
