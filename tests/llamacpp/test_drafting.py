"""Speculative decoding: drafts change the time of an answer, not the answer; what a layer for later tokens predicts."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from quantkit.errors import UsageError
from quantkit.llamacpp.conversation import Answer, Loading, converse
from quantkit.llamacpp.draft_choice import Draft, choose_draft
from tests.families.expected import write_checkpoint
from tests.helpers.command import quantkit
from tests.helpers.conversions import to_gguf
from tests.helpers.peer import newest_converter
from tests.helpers.real import smollm2_or_skip
from tests.helpers.tiny import tiny_llama

WITHOUT_LLAMA_CPP = """
import importlib.util, json, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "llama_cpp" else find(name, *rest)
from quantkit.llamacpp.generation import Talk
pieces = []
talk = Talk(lambda: False, pieces.append)
talk.open(json.loads(sys.argv[1]))
tokens = talk.tokenize({"text": "Hello there", "add_special": True})
sampling = {"temperature": 0, "repeat_penalty": 1}
result = talk.generate({"tokens": tokens, "max_tokens": 24, "sampling": sampling})
text = b"".join(pieces).decode("utf-8", "replace")
print(json.dumps({"text": text, "drafted": result["drafted"], "accepted": result["accepted"]}))
"""
REPOSITORY = Path(__file__).resolve().parents[2]
GREEDY = {"temperature": 0}
ANSWER = 48
"""Tokens of an answer of trained_mtp.py."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("draft")
    tiny_llama(folder / "model", variant="llama3", dtype="f32")
    words = ("-t", "f32", "-t", "q4_0", "--chat-template", "chatml", "-o", folder)
    assert quantkit("gguf", folder / "model", *words).code == 0
    return {kind: folder / "model-GGUF" / f"model-{kind}.gguf" for kind in ("F32", "Q4_0")}


def answers(model: Path, draft: Draft | None, *texts: str, most: int = 24, **sampling: float) -> list[Answer]:
    with converse(model, n_ctx=256, system=None, raw=True, sampling=sampling or GREEDY) as conversation:
        conversation.open(Loading(gpu_layers=0, n_threads=2, draft=draft))
        return [conversation.say(text, most=most, show=lambda piece: None) for text in texts]


def same(ours: list[Answer], plain: list[Answer]) -> bool:
    return [(a.text, a.tokens, a.reason) for a in ours] == [(a.text, a.tokens, a.reason) for a in plain]


@pytest.mark.parametrize("sampling", [GREEDY, {"temperature": 1.0, "seed": 7, "repeat_penalty": 1.1}])
def test_the_answer_is_that_without_a_draft_and_of_a_perfect_draft_all_is_accepted(
    models: dict[str, Path], sampling: dict[str, float]
) -> None:
    texts = ("Hello there", "Hello you")
    plain = answers(models["F32"], None, *texts, **sampling)
    assert plain[0].drafted == plain[0].accepted == 0
    perfect, rough = (
        answers(models["F32"], choose_draft(models["F32"], str(models[kind]), 4), *texts, **sampling)
        for kind in ("F32", "Q4_0")
    )
    assert same(perfect, plain) and same(rough, plain)
    if sampling == GREEDY:
        assert all(answer.accepted == answer.drafted > 12 for answer in perfect)
        assert 0 < sum(answer.accepted for answer in rough) < sum(answer.drafted for answer in rough)


def test_an_answer_with_drafts_ends_where_the_context_does(models: dict[str, Path]) -> None:
    draft = choose_draft(models["F32"], str(models["F32"]), 5)
    (plain,), (drafted,) = (answers(models["F32"], kind, "Hello", most=1000) for kind in (None, draft))
    assert same([drafted], [plain]) and plain.reason == "context"


@pytest.mark.full
def test_smollm2_in_q2_k_drafts_for_q8_0_and_every_answer_stays(tmp_path: Path) -> None:
    words = ("-t", "q8_0", "-t", "q2_k", "--no-logits", "-o", tmp_path)
    assert quantkit("gguf", smollm2_or_skip(), *words).code == 0
    large, small = (next(tmp_path.rglob(f"*-{kind}.gguf")) for kind in ("Q8_0", "Q2_K"))
    texts = ("Why is the sky blue?", "Write a list of ten fruits.", "def fibonacci(n):", "Once upon a time")
    plain = answers(large, None, *texts, most=48)
    drafted = answers(large, choose_draft(large, str(small), 3), *texts, most=48)
    assert same(drafted, plain)
    share = sum(answer.accepted for answer in drafted) / sum(answer.drafted for answer in drafted)
    assert 0.3 < share < 1


def cyclic_model(folder: Path, source: str) -> Path:
    """A GLM-4 MoE whose next token is the last one plus 1, and whose MTP layer looks at `source` alone.

    Without attention and feed-forward the hidden state is the embedding. "token": the layer predicts from the
    embedding of the next token; "state": from the hidden state before it, two tokens ahead.
    """
    path = to_gguf(write_checkpoint("glm4moe", folder / "glm"), "f32", folder)
    tensors = {tensor.name: tensor.data for tensor in GGUFReader(path, "r+").tensors}
    width = tensors["token_embd.weight"].shape[1]
    vectors = np.random.default_rng(1).standard_normal((80, width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    first, count = 100, len(vectors)
    numbers = np.clip(np.arange(len(tensors["token_embd.weight"])) - first, 0, count - 1)
    for name, data in tensors.items():
        if "attn_output" in name or "ffn_down" in name or "eh_proj" in name:
            data[:] = 0
        elif "norm" in name:
            data[:] = 1
        elif name.endswith(("token_embd.weight", "embed_tokens.weight")):
            data[:] = vectors[numbers]
    ahead = {"output.weight": 1, "blk.3.nextn.shared_head_head.weight": 1 if source == "token" else 2}
    for name, steps in ahead.items():
        tensors[name][:] = 0
        tensors[name][first : first + count] = 8 * np.roll(vectors, steps, axis=0)
    projection = tensors["blk.3.nextn.eh_proj.weight"]
    projection[:, slice(0, width) if source == "token" else slice(width, None)] = np.eye(width)
    for data in tensors.values():
        data.flush()
    return path


@pytest.mark.parametrize(("source", "of_each_three"), [("token", 3), ("state", 1)])
def test_an_mtp_layer_gets_the_next_token_with_the_hidden_state_before_it(
    source: str, of_each_three: int, tmp_path: Path
) -> None:
    model = cyclic_model(tmp_path, source)
    texts = ("Hello there", "Hello you")
    plain = answers(model, None, *texts, most=25)
    drafted = answers(model, choose_draft(model, "mtp", 3), *texts, most=25)
    assert same(drafted, plain) and all(answer.tokens == 25 for answer in plain)
    for answer in drafted:
        # a state that the layer made itself predicts nothing: of three drafts only the first is right
        rounds = -(-24 // (1 + of_each_three))
        assert rounds * of_each_three - 3 <= answer.accepted <= rounds * of_each_three
        assert answer.drafted - 3 <= answer.accepted * 3 // of_each_three <= answer.drafted + 3


def test_an_mtp_layer_in_a_file_of_its_own_drafts_as_that_in_the_model(tmp_path: Path) -> None:
    source = write_checkpoint("qwen35", tmp_path / "qwen35")
    for part in ("keep", "only"):
        assert quantkit("gguf", source, "-t", "f32", "--mtp", part, "-o", tmp_path / part).code == 0
    (whole,), (head,) = ((tmp_path / part).rglob("*.gguf") for part in ("keep", "only"))
    alone = choose_draft(whole, str(head), 3)
    assert alone.mtp and alone.model == head
    texts = ("Hello there", "Hello you")
    plain = answers(whole, None, *texts)
    own, other = (answers(whole, draft, *texts) for draft in (choose_draft(whole, "mtp", 3), alone))
    # a recurrent state goes back when drafts are refused
    assert same(own, plain) and same(other, plain)
    assert [(a.drafted, a.accepted) for a in own] == [(a.drafted, a.accepted) for a in other]
    assert own[0].drafted > own[0].accepted


def test_a_draft_of_another_vocabulary_and_a_missing_layer_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model-F32\.gguf has no MTP layer; pass the file of a smaller model"):
        choose_draft(models["F32"], "mtp", 3)
    other = to_gguf(write_checkpoint("qwen3", tmp_path / "qwen3"), "f32", tmp_path)
    with pytest.raises(UsageError, match=r"has another vocabulary than model-F32\.gguf"):
        choose_draft(models["F32"], str(other), 3)


@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp is not installed")
def test_the_wheel_without_a_build_drafts_the_same(models: dict[str, Path], tmp_path: Path) -> None:
    cyclic = cyclic_model(tmp_path, "state")
    for model, name in ((models["F32"], str(models["Q4_0"])), (cyclic, "mtp")):
        draft = choose_draft(model, name, 3)
        (plain,) = answers(model, draft, "Hello there")
        request = {"model": str(model), "n_ctx": 256, **Loading(gpu_layers=0, n_threads=2, draft=draft).request()}
        command = [sys.executable, "-c", WITHOUT_LLAMA_CPP, json.dumps(request)]
        # threads that wait spin otherwise, for seconds where others work too
        passive = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=passive, check=True)
        document = json.loads(done.stdout.splitlines()[-1])
        assert document == {"text": plain.text, "drafted": plain.drafted, "accepted": plain.accepted}
        assert plain.accepted > 0


@pytest.mark.full
def test_a_trained_mtp_layer_is_accepted_as_often_as_transformers_layer_is(tmp_path: Path) -> None:
    """GLM-4.5's layer, trained on a text with the model; transformers and llama.cpp accept the same, but for ties."""
    peer = newest_converter()
    environment = peer.environment()
    environment["PYTHONPATH"] = f"{environment['PYTHONPATH']}:{REPOSITORY}"
    texts = ("You may reproduce and distribute copies of the", "the Licensor shall not be")
    command = [str(peer.python), "-m", "tests.llamacpp.trained_mtp", str(tmp_path / "glm"), "LICENSE", *texts]
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    expected = json.loads(done.stdout)
    model = to_gguf(tmp_path / "glm", "f32", tmp_path)
    plain = answers(model, None, *texts, most=ANSWER)
    drafted = answers(model, choose_draft(model, "mtp", 1), *texts, most=ANSWER)
    assert same(drafted, plain)
    for answer, (text, count, accepted, ties) in zip(drafted, expected, strict=True):
        assert answer.text == text
        assert abs(answer.drafted - count) <= ties and abs(answer.accepted - accepted) <= ties, (answer, ties)
        assert 0.5 < accepted / count < 1 and ties < 4
