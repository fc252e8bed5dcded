"""The two Modelfiles of a GGUF: what is taken from the file, from the publisher, and from neither."""

from pathlib import Path
from typing import Any

import pytest

from quantkit.chat import BUILT_IN
from quantkit.errors import TemplateError
from quantkit.publish.ollama.bundle import Bundle, make_bundle
from quantkit.publish.ollama.facts import facts_of_gguf
from quantkit.publish.ollama.modelfile import lint_modelfile, parse_modelfile, write_modelfile
from quantkit.publish.ollama.overrides import Overrides
from tests.publish.gguf_files import INEXACT, write_gguf


def bundle(tmp_path: Path, overrides: Overrides | None = None, **keys: Any) -> Bundle:
    facts = facts_of_gguf(write_gguf(tmp_path / "m-Q4_0.gguf", **keys))
    return make_bundle(facts, overrides or Overrides(), sources=["./m-Q4_0.gguf"], base="ns/m:4b-q4_0")


def parameters(made: Bundle) -> dict[str, Any]:
    return {name: value for name, value in made.modelfile.parameters if name != "stop"}


def stops(made: Bundle) -> list[Any]:
    return [value for name, value in made.modelfile.parameters if name == "stop"]


def test_the_gpu_modelfile_is_the_other_tag_with_all_layers_and_the_same_context(tmp_path: Path) -> None:
    made = bundle(tmp_path, Overrides(parameters=(("num_ctx", 8192),)))
    assert made.modelfile.sources == ("./m-Q4_0.gguf",)
    assert made.gpu.sources == ("ns/m:4b-q4_0",)
    assert made.gpu.parameters == (("num_gpu", 999), ("num_ctx", 8192))
    assert (made.gpu.template, made.gpu.system, made.gpu.licenses) == (None, None, ())
    assert write_modelfile(made.gpu).split() == [
        *("FROM", "ns/m:4b-q4_0", "PARAMETER", "num_gpu", "999", "PARAMETER", "num_ctx", "8192"),
    ]


@pytest.mark.parametrize(("context", "pinned"), [(32768, 4096), (2048, 2048), (4096, 4096)])
def test_num_ctx_is_always_pinned(tmp_path: Path, context: int, pinned: int) -> None:
    made = bundle(tmp_path, context_length=context)
    assert parameters(made)["num_ctx"] == pinned
    assert any(f"num_ctx is pinned to {pinned}; the model has {context}" in note for note in made.notes)


def test_a_context_longer_than_the_models_gives_a_note(tmp_path: Path) -> None:
    made = bundle(tmp_path, Overrides(parameters=(("num_ctx", 65536),)))
    assert parameters(made)["num_ctx"] == 65536
    assert "num_ctx 65536 is more than the 32768 tokens the model was made for" in made.notes


def test_num_gpu_is_only_there_when_asked(tmp_path: Path) -> None:
    assert "num_gpu" not in parameters(bundle(tmp_path))
    assert parameters(bundle(tmp_path, Overrides(parameters=(("num_gpu", 20),))))["num_gpu"] == 20


def test_the_files_sampling_stands_and_the_publishers_goes_over_it(tmp_path: Path) -> None:
    made = bundle(tmp_path, Overrides(parameters=(("top_p", 0.5),)), sampling={"temp": 0.7, "top_p": 0.85})
    assert parameters(made) == {"temperature": 0.7, "top_p": 0.5, "num_ctx": 4096}


def test_overrides_of_the_command_line_replace_those_of_the_recipe() -> None:
    recipe = Overrides(parameters=(("top_p", 0.1), ("top_k", 5), ("stop", "A")), system="recipe", licenses=("L",))
    options = Overrides(parameters=(("top_p", 0.9), ("stop", "B")), messages=(("user", "Hi"),))
    assert options.over(recipe) == Overrides(
        parameters=(("top_k", 5), ("stop", "A"), ("top_p", 0.9), ("stop", "B")),
        system="recipe",
        licenses=("L",),
        messages=(("user", "Hi"),),
    )


def test_stops_are_the_templates_the_files_and_the_publishers_each_once(tmp_path: Path) -> None:
    made = bundle(tmp_path, Overrides(parameters=(("stop", "User:"), ("stop", "</s>"))), eos=2, eot=4)
    assert set(stops(made)) >= {"<|im_end|>", "</s>", "User:"}
    assert len(stops(made)) == len(set(stops(made)))


def test_a_role_alone_is_no_stop_where_the_bos_opens_every_turn(tmp_path: Path) -> None:
    # SmolLM2: its BOS is <|im_start|>; "user" as a stop would end every answer with that word in it
    assert stops(bundle(tmp_path, bos=3)) == ["<|im_end|>", "<|im_start|>"]


def test_a_bos_between_turns_is_passed_over_for_the_mark_behind_it(tmp_path: Path) -> None:
    llama2 = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
    )
    assert stops(bundle(tmp_path, template=llama2, eos=2, add_bos=True)) == ["</s>", "[INST]"]


def test_an_exact_template_goes_into_the_modelfile(tmp_path: Path) -> None:
    made = bundle(tmp_path)
    assert (made.template, made.reason, made.modelfile.requires) == ("exact", None, None)
    assert made.modelfile.template is not None and "<|im_start|>" in made.modelfile.template


def test_without_an_exact_one_no_modelfile_has_a_template_and_both_require_an_ollama_that_needs_none(
    tmp_path: Path,
) -> None:
    made = bundle(tmp_path, template=INEXACT)
    assert made.template == "refused" and made.reason
    assert (made.modelfile.template, made.gpu.template) == (None, None)
    assert (made.modelfile.requires, made.gpu.requires) == ("0.30.0", "0.30.0")
    assert "TEMPLATE" not in write_modelfile(made.modelfile) + write_modelfile(made.gpu)
    assert stops(made) == ["<|im_end|>"]


def test_a_template_that_was_asked_for_and_cannot_be_exact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match=r"m-Q4_0\.gguf does not carry it for Ollama to render; convert the model"):
        bundle(tmp_path, Overrides(chat_template=INEXACT))


def test_a_file_without_a_template_gets_the_built_in_that_fits(tmp_path: Path) -> None:
    tokens = ["<unk>", "<s>", "</s>", *BUILT_IN["huozi"].marks]
    made = bundle(tmp_path, template=None, tokens=tokens, eos=2)
    assert made.template == "exact"
    assert "no chat template in the file; took the built-in 'huozi', which fits it" in made.notes
    assert made.modelfile.template is not None and "用户" in made.modelfile.template
    assert "<|endofutterance|>" in stops(made)


def test_a_file_without_a_known_template_is_refused_with_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(TemplateError) as caught:
        bundle(tmp_path, template=None)
    assert str(caught.value) == (
        "m-Q4_0.gguf has no chat template and none is known for it; give one with --chat-template FILE|NAME, or none"
        " for a model that only completes text"
    )


def test_a_model_that_only_completes_gets_a_bare_template_so_that_ollama_does_not_guess(tmp_path: Path) -> None:
    made = bundle(tmp_path, Overrides(chat_template=""), template=None)
    assert (made.template, made.modelfile.template, made.modelfile.requires) == ("none", "{{ .Prompt }}", None)


def test_the_files_licence_stands_unless_a_text_is_given(tmp_path: Path) -> None:
    assert bundle(tmp_path, license="apache-2.0").modelfile.licenses == ("apache-2.0",)
    given = bundle(tmp_path, Overrides(licenses=("the text", "another")), license="apache-2.0")
    assert given.modelfile.licenses == ("the text", "another")
    assert bundle(tmp_path).modelfile.licenses == ()


@pytest.mark.parametrize("template", [None, "blossom", "huozi", "baichuan2", "chatml"])
def test_what_is_written_parses_back_and_has_nothing_to_find_fault_with(tmp_path: Path, template: str | None) -> None:
    overrides = Overrides(
        parameters=(("temperature", 0.5), ("stop", "\n\nUser:"), ("stop", '"')),
        system='Say "no" twice,\nthen stop.',
        licenses=("Line one\n  line two",),
        messages=(("user", "Hi"), ("assistant", "Hello")),
        chat_template=BUILT_IN[template].text if template else None,
    )
    made = bundle(tmp_path, overrides)
    for modelfile in (made.modelfile, made.gpu):
        text = write_modelfile(modelfile)
        assert lint_modelfile(text) == []
        assert set(parse_modelfile(text).parameters) == set(modelfile.parameters)
        assert parse_modelfile(text).template == modelfile.template
        assert parse_modelfile(text).system == modelfile.system
