"""Every family, from a checkpoint as transformers makes it to the logits llama.cpp gives, and the converter's bytes.

The expected figures are transformers' and llama.cpp's converter's own (see expected.py); the full suite makes them
anew.
"""

from pathlib import Path

import numpy as np
import pytest

from quantkit.errors import UnsupportedError
from quantkit.families import all_families, check_config
from quantkit.families.base.registry import find_family
from quantkit.families.wrappers import WRAPPERS
from quantkit.llamacpp.evaluation import hidden_states, logits
from tests.families.expected import Expected, expected, read_gguf, read_header, write_checkpoint
from tests.families.models import TOKENS, Case, all_cases
from tests.families.other_names import OTHER_NAMES, REFUSED, other_files, write_other
from tests.families.whole_files import compared_whole, digest, whole_files
from tests.helpers.conversions import to_gguf
from tools.shown import REGISTERED

NO_WHOLE_FILE: dict[str, str] = {
    "Bamba": "the converter reorders the rows of a whole head, though half of them do not rotate",
    "Baichuan": "the converter ends in a RecursionError",
    "EXAONE": "with transformers 4 the converter states another norm's epsilon, and llama.cpp does not load the file",
    "GLM": "the converter states the hidden size as the context, another epsilon and another base of rotation",
    "InternLM": "the converter no longer knows InternLM 1",
    "Llama-Embed": "the converter does not state that attention is not causal, and llama.cpp masks later tokens",
    "Qwen": "the converter leaves the epsilon of the norms out, and llama.cpp does not load the file",
}
"""Family -> why no file of llama.cpp's converter can be compared; the logits are."""
# llama_model_quantize writes these two last, as quantkit does; the converter writes them in the middle.
WRITTEN_LAST = ["general.quantization_version", "general.file_type"]


def assert_keys_and_tensors_are_the_converters(converted: Path, case: Case, known: Expected) -> None:
    """What a GGUF states, in order, and each of its tensors."""
    if not case.converter:
        return
    assert known.tensors is not None and known.keys is not None
    keys, tensors = read_gguf(converted)
    assert {
        tensor: ours[:2] if tensor.endswith(case.rounded) else ours
        for tensor in known.tensors
        for ours in [tensors.get(tensor) or []]
    } == {tensor: theirs[:2] if tensor.endswith(case.rounded) else theirs for tensor, theirs in known.tensors.items()}
    assert set(tensors) == set(known.tensors)
    ours, theirs = (
        {key: value for key, value in all_keys.items() if key not in case.differs} for all_keys in (keys, known.keys)
    )
    assert ours == theirs
    if known.header is not None:
        header = read_header(converted)
        assert [key for key, *_ in header[-2:]] == WRITTEN_LAST
        ours_in_order, theirs_in_order = (
            [
                key
                for key in keys
                if key[0] not in (*WRITTEN_LAST, *case.differs)
                and (case.vocabulary or not key[0].startswith("tokenizer."))
            ]
            for keys in (header, known.header)
        )
        assert ours_in_order == theirs_in_order


@pytest.mark.parametrize("name", sorted(all_cases()))
def test_logits_are_transformers_and_tensors_the_converters(name: str, tmp_path: Path) -> None:
    case, known = all_cases()[name][1], expected(name)
    converted = to_gguf(write_checkpoint(name, tmp_path / name), "f32", tmp_path)
    same = name in whole_files() and digest(converted, case) == whole_files()[name]
    # a file that is llama.cpp's in every byte has its keys and tensors
    if not (same and compared_whole(case)):
        assert_keys_and_tensors_are_the_converters(converted, case, known)
    assert same or name not in whole_files(), "the file is not that of llama.cpp's two steps"

    ours = hidden_states(converted, TOKENS) if case.encoder else logits(converted, TOKENS)
    assert ours.shape == known.logits.shape
    drift = np.abs(ours - known.logits).max() / known.logits.std()
    if case.graph_differs:
        assert drift > 0.1, "llama.cpp's graph is the model's; remove the caution"
        return
    assert drift < case.drift, f"logits differ by {drift:.2%} of their standard deviation"
    if not case.encoder:
        assert (ours.argmax(axis=1) == known.logits.argmax(axis=1)).all()


@pytest.mark.parametrize("name", sorted(OTHER_NAMES))
def test_a_model_under_another_name_of_its_class_is_the_converters_file_too(name: str, tmp_path: Path) -> None:
    case = OTHER_NAMES[name].case
    converted = to_gguf(write_other(name, tmp_path), "f32", tmp_path)
    assert digest(converted, all_cases()[case][1]) == other_files()[name]
    # so its logits are those of the case
    assert other_files()[name] == whole_files()[case]


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(all_cases()))
def test_keys_and_tensors_are_the_converters_also_by_themselves(name: str, tmp_path: Path) -> None:
    converted = to_gguf(write_checkpoint(name, tmp_path / name), "f32", tmp_path)
    assert_keys_and_tensors_are_the_converters(converted, all_cases()[name][1], expected(name))


def test_a_file_of_every_family_is_compared_whole_or_the_converter_is_wrong() -> None:
    compared = {find_family(expected(name).config).name for name in whole_files()}
    assert {family.name for family in all_families()} - compared == set(NO_WHOLE_FILE)


def test_every_name_of_an_architecture_that_the_converter_has_too_has_a_tiny_model() -> None:
    registered = set(REGISTERED.read_text("utf-8").split())
    names = {name for family in all_families() for name in family.architectures}
    names |= {wrapper.architecture for wrapper in WRAPPERS}
    shown = {expected(name).config["architectures"][0] for name in all_cases()} | set(OTHER_NAMES)
    assert names & registered - shown == set(REFUSED)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_name_without_a_tiny_model_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedError, match=REFUSED[name]):
        check_config({"architectures": [name], "model_type": "distilbert"})
