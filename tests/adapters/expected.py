"""PEFT's figures of tests.adapters.cases, committed as expected.json: `python -m tests.adapters.expected` makes them.

Of each case: the logits of the trained model before the merge, and some values of each merged weight.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.adapters.cases import CASES, TOKENS, write_case
from tests.helpers.peft import run_peft

FILE = Path(__file__).with_name("expected.json")
VALUES = 5


def sampled(values: np.ndarray) -> np.ndarray:
    """Some values of an array, at places that its size alone decides."""
    flat = values.reshape(-1)
    return flat[:: max(1, len(flat) // VALUES)][:VALUES]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        jobs = []
        for number, case in enumerate(CASES.values()):
            base, adapters = write_case(case, Path(name) / str(number))
            pairs = [[str(path), scale] for path, scale in adapters]
            jobs.append({"base": str(base), "adapters": pairs, "tokens": TOKENS})
        answers = run_peft(jobs, Path(name))
    lines = [f"{json.dumps(name)}: {json.dumps(_figures(answer))}" for name, answer in zip(CASES, answers, strict=True)]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _figures(answer: dict[str, np.ndarray]) -> dict[str, Any]:
    logits = answer.pop("logits")
    numbers = {name: [round(float(x), 7) for x in sampled(values)] for name, values in answer.items()}
    return {"logits": [[round(float(x), 5) for x in sampled(row)] for row in logits], "weights": numbers}


if __name__ == "__main__":
    main()
