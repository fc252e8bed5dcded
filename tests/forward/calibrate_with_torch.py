"""Run in an environment that has torch: a command whose calibration runs on tensors of torch, on the CPU.

The argument is a JSON object: `words` of the command line; `least_side` of matrices in bfloat16; `full_in_layer`, if
there, the layer in which the device's memory is full; `compiled`, if true, torch compiles the runs of columns;
`pretended`, if true, the tensors are on the device of tests/helpers/pretended_cuda.py.
"""

import json
import os
import sys
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch

sys.path.append(os.environ["MORE_PACKAGES"])
# for the processes of llama.cpp that it starts
os.environ["PYTHONPATH"] += os.pathsep + os.environ["MORE_PACKAGES"]

from quantkit.cli import main
from quantkit.stream import on_device
from quantkit.stream.stream import Stream
from tests.helpers import pretended_cuda

request = json.loads(sys.argv[1])
sys.argv = ["quantkit", *request["words"]]
layer = Stream.layer


def full(self: Stream, number: int, watcher: Any = None) -> None:
    if number == request.get("full_in_layer"):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
    layer(self, number, watcher)


with ExitStack() as stack:
    if request.get("pretended"):
        stack.enter_context(patch("quantkit.forward.devices._has_driver", lambda: True))
        stack.enter_context(pretended_cuda.pretended_cuda())
        stack.callback(lambda: print("pinned", pretended_cuda.pinned, file=sys.stderr))
    else:
        stack.enter_context(patch("quantkit.outputs.calibration.find_device", lambda name: torch.device("cpu")))
    stack.enter_context(patch.object(on_device, "LEAST_SIDE", request["least_side"]))
    stack.enter_context(patch.object(Stream, "layer", full))
    if not request.get("compiled"):
        stack.enter_context(patch.object(torch, "compile", lambda run, **_: run))
    main()
