"""The Modelfile linter: what Ollama refuses is an error, what it takes for something else is a warning."""

import pytest

from quantkit.publish.ollama.modelfile import DEPRECATED, Modelfile, lint_modelfile, write_modelfile


def said(text: str) -> list[tuple[int, str]]:
    return [(finding.line, finding.severity) for finding in lint_modelfile(text)]


def test_a_written_modelfile_has_nothing_to_say_about() -> None:
    modelfile = Modelfile(
        ("./m.gguf", "./mmproj.gguf"),
        parameters=(("num_gpu", 999), ("num_ctx", 4096), ("stop", "\n"), ("stop", "<|im_end|>")),
        template="a\u3000b{{ .Content }}",
        system="FROM the start\nto the end, # 1",
        licenses=("PARAMETER seed 1\nSYSTEM x",),
        messages=(("user", "hi"),),
        requires="0.30.0",
    )
    assert said(write_modelfile(modelfile).replace("FROM the start", "From the start")) == []


@pytest.mark.parametrize(
    ("line", "severity", "words"),
    [
        ("BANANA x", "error", "no command 'BANANA'"),
        ("PARAMETER heat 1", "error", "no parameter 'heat'"),
        ("PARAMETER temprature 1", "error", "did you mean temperature?"),
        ("PARAMETER num_ctx 4k", "error", "whole number, not '4k'"),
        ("PARAMETER top_p 0,9", "error", "a number, not '0,9'"),
        ("PARAMETER use_mmap yes", "error", "true or false"),
        ("PARAMETER  seed 1", "error", "exactly one space"),
        ("MESSAGE tool x", "error", "roles system, user, assistant"),
        ('SYSTEM "open', "error", "never closed"),
        ("REQUIRES new", "error", "version such as 0.30.0"),
        ("PARAMETER mirostat 1", "warning", "mirostat is deprecated"),
        ("SYSTEM a\u3000b", "warning", "deletes U+3000 (IDEOGRAPHIC SPACE) from SYSTEM: only Ollama's HTTP API"),
        ("TEMPLATE a\u3000b", "warning", '{{ "\\u3000" }}'),
        ("PARAMETER stop x # a comment", "warning", "part of PARAMETER stop"),
        ("PARAMETER stop \\n", "warning", "stays two characters"),
        ('PARAMETER stop ""', "warning", "is empty"),
        ("ADAPTER  ", "warning", "own folder"),
        ("TEMPLATE {{ .Prompt }}", "warning", "bare prompt"),
        ("PARAMETER num_gpu 999", "warning", "num_ctx is not"),
        ("FROM other", "warning", "set on line 1 already"),
    ],
)
def test_each_fault_is_told_once_with_its_line(line: str, severity: str, words: str) -> None:
    (finding,) = lint_modelfile(f"FROM model\r\n# comment\r\n{line}\r\n")
    assert (finding.line, finding.severity) == (3, severity)
    assert words in finding.message


@pytest.mark.parametrize("name", sorted(DEPRECATED))
def test_a_deprecated_parameter_is_a_warning_whatever_its_value(name: str) -> None:
    assert said(f"FROM m\nPARAMETER {name} banana\n") == [(2, "warning")]


def test_a_quote_that_closes_late_is_told_where_it_took_commands_in() -> None:
    text = 'FROM m\nSYSTEM """short""" # comment\nPARAMETER seed 1\nLICENSE """MIT"""\n'
    findings = lint_modelfile(text)
    assert [(f.line, f.severity) for f in findings] == [(2, "warning"), (3, "warning"), (4, "warning")]
    assert "does not close SYSTEM" in findings[0].message
    assert "opens SYSTEM on line 2" in findings[1].message


def test_several_faults_of_one_file_are_all_told_in_order() -> None:
    text = "SYSTEMX y\nPARAMETER heat 1\nMESSAGE tool x\nSYSTEM a\nSYSTEM b\n"
    assert said(text) == [(1, "error"), (2, "error"), (3, "error"), (5, "warning"), (6, "error")]


def test_no_from_is_an_error_and_a_model_with_its_projector_is_not() -> None:
    assert said("") == [(1, "error")]
    assert said("FROM ./model.gguf\nFROM ./mmproj.gguf\n") == []
