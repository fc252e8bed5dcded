"""The file a phone gets, run by llama.cpp on an emulated ARM processor: it says there what it says here."""

import json
from pathlib import Path

import pytest

from tests.helpers.arm64 import arm64_or_skip
from tests.helpers.command import quantkit
from tests.helpers.real import smollm2_or_skip

LLAMA_CPP = ("xllamacpp", "2026.10.11549")
SURE = ("1, 2, 3, 4, 5, 6, 7, 8,", "2001, 2002, 2003, 2004, 2005,")
UNSURE = ("Monday, Tuesday, Wednesday,",)
TIE = 0.5
"""Nats between the two likeliest tokens: both processors round activations to 8 bits in their own way, which moves this
distance by up to 0.3 here, so that below it either token may come."""
_GREEDY = """
import json, platform, sys
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx, params.n_batch, params.n_ubatch, params.n_parallel, params.warmup = 256, 64, 64, 1, False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
server = xllamacpp.Server(params)
texts = []
for prompt in sys.argv[2:]:
    asked = {"prompt": prompt, "n_predict": 12, "temperature": 0, "top_k": 1, "cache_prompt": False, "n_probs": 2}
    steps = server.handle_completions(asked)["choices"][0]["logprobs"]["content"]
    top = [[step["token"], [each["logprob"] for each in step["top_logprobs"]]] for step in steps]
    texts.append([[token, one - two] for token, (one, two) in top])
print("said", json.dumps([platform.machine(), texts]))
"""
Steps = list[tuple[str, float]]


def printed_steps(printed: str) -> tuple[str, list[Steps]]:
    """The processor, and for each prompt the tokens with their distance from the next likely one."""
    (line,) = [line for line in printed.splitlines() if line.startswith("said ")]
    machine, texts = json.loads(line.removeprefix("said "))
    return machine, [[(token, margin) for token, margin in steps] for steps in texts]


def until_a_tie(here: Steps, there: Steps) -> tuple[list[str], list[str]]:
    """Both texts up to where one of the two is about to choose between equals."""
    sure = next((i for i, steps in enumerate(zip(here, there, strict=False)) if min(m for _, m in steps) < TIE), None)
    return [token for token, _ in here[:sure]], [token for token, _ in there[:sure]]


@pytest.mark.full
@pytest.mark.timeout(1500)
def test_a_q4_0_file_says_on_arm_what_it_says_on_x86(tmp_path: Path) -> None:
    checkpoint = smollm2_or_skip()
    arm64 = arm64_or_skip(*LLAMA_CPP)
    assert quantkit("gguf", checkpoint, "-t", "q4_0", "--no-logits", "-o", tmp_path).code == 0
    (model,) = tmp_path.glob("*/*.gguf")
    machine, here = printed_steps(arm64.native_python("-c", _GREEDY, model, *SURE, *UNSURE))
    assert machine == "x86_64"
    machine, there = printed_steps(arm64.python("-c", _GREEDY, model, *SURE, *UNSURE))
    assert machine == "aarch64"
    for prompt, one, other in zip((*SURE, *UNSURE), here, there, strict=True):
        mine, its = until_a_tie(one, other)
        assert its == mine
        assert len(mine) == 12 if prompt in SURE else len(mine) >= 2, prompt
