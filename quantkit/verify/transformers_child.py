"""The process in which transformers computes reference logits: a script for a Python with torch and transformers.

    PYTHON transformers_child.py REQUEST.json

The request has `folder`, the checkpoint; `windows`, lists of token ids; `output`, the file for the logits: float32, the
windows one after the other. The last line on stdout is {"columns": VOCABULARY} or {"error": TEXT}. No Python code of
the checkpoint runs, and nothing is downloaded.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any


def _load(folder: str) -> Any:
    import torch
    import transformers

    settings = {"dtype": torch.float32, "trust_remote_code": False, "local_files_only": True}
    errors = []
    for name in ("AutoModelForCausalLM", "AutoModelForImageTextToText"):
        if not hasattr(transformers, name):
            continue
        try:
            model, loading = getattr(transformers, name).from_pretrained(folder, output_loading_info=True, **settings)
        except (ValueError, KeyError) as error:
            errors.append(error)
            continue
        missing = sorted(loading["missing_keys"])
        if missing:
            raise ValueError(f"it finds no weights for {missing[0]}")
        return model.eval()
    raise errors[0]


def _run(request: dict[str, Any]) -> int:
    import torch

    model, columns = _load(request["folder"]), 0
    with Path(request["output"]).open("wb") as file, torch.inference_mode():
        for window in request["windows"]:
            logits = model(input_ids=torch.tensor([window]), use_cache=False).logits[0].float().numpy()
            columns = logits.shape[-1]
            file.write(logits.tobytes())
    return columns


def main() -> None:
    """Compute the logits and answer."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # this script's own folder holds modules of quantkit, whose names others may use
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).resolve().parent]
    try:
        answer: dict[str, Any] = {"columns": _run(json.loads(Path(sys.argv[1]).read_text()))}
    except ModuleNotFoundError as error:
        answer = {"missing": error.name or str(error)}
    except MemoryError:
        answer = {"error": "too little memory"}
    except BaseException as error:
        lines = str(error).strip().splitlines()
        answer = {"error": f"{type(error).__name__}{f': {lines[0][:300]}' if lines else ''}"}
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
