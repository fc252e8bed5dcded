"""The Modelfile linter: what Ollama refuses is an error, what it takes for something else is a warning."""

import codecs
from pathlib import Path

import pytest

from quantkit.errors import ModelfileError
from quantkit.publish.ollama.lint import lint_file
from quantkit.publish.ollama.modelfile import DEPRECATED, Modelfile, lint_modelfile, write_modelfile


def findings_of(text: str) -> list[tuple[int, str]]:
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
    assert findings_of(write_modelfile(modelfile).replace("FROM the start", "From the start")) == []


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
        ("TEMPLATE {{ .Prompt }", "error", "does not parse as a Go template: a single }"),
        ('TEMPLATE """{{ if .System }}{{ .System }}"""', "error", "an {{ end }} is missing"),
        ('TEMPLATE """{{ nosuch .Prompt }}"""', "error", "the function 'nosuch' is not defined"),
        ("TEMPLATE {% for m in messages %}{{ m.content }}{% endfor %}", "error", "TEMPLATE is Jinja"),
        ("TEMPLATE {{ messages[0]['content'] }}", "error", "TEMPLATE is Jinja"),
        ("TEMPLATE {% if true %}<s>{% endif %}", "warning", "Jinja tag {% if ..., which Ollama writes into every"),
    ],
)
def test_every_fault_is_reported_once_with_its_line(line: str, severity: str, words: str) -> None:
    (finding,) = lint_modelfile(f"FROM model\r\n# comment\r\n{line}\r\n")
    assert (finding.line, finding.severity) == (3, severity)
    assert words in finding.message


@pytest.mark.parametrize("name", sorted(DEPRECATED))
def test_a_deprecated_parameter_is_a_warning_whatever_its_value(name: str) -> None:
    assert findings_of(f"FROM m\nPARAMETER {name} banana\n") == [(2, "warning")]


def test_a_quote_that_closes_late_is_reported_at_the_commands_it_contains() -> None:
    text = 'FROM m\nSYSTEM """short""" # comment\nPARAMETER seed 1\nLICENSE """MIT"""\n'
    findings = lint_modelfile(text)
    assert [(f.line, f.severity) for f in findings] == [(2, "warning"), (3, "warning"), (4, "warning")]
    assert "does not close SYSTEM" in findings[0].message
    assert "opens SYSTEM on line 2" in findings[1].message


def test_several_faults_of_one_file_are_reported_in_order() -> None:
    text = "SYSTEMX y\nPARAMETER heat 1\nMESSAGE tool x\nSYSTEM a\nSYSTEM b\n"
    assert findings_of(text) == [(1, "error"), (2, "error"), (3, "error"), (5, "warning"), (6, "error")]


def test_no_from_is_an_error_and_a_model_with_its_projector_is_not() -> None:
    assert findings_of("") == [(1, "error")]
    assert findings_of("FROM ./model.gguf\nFROM ./mmproj.gguf\n") == []


def test_a_fault_of_a_template_is_reported_with_its_own_line() -> None:
    text = 'FROM m\nTEMPLATE """{{ if .System }}\n{{ .System }}\r\n{{ nosuch }}{{ end }}"""\n'
    (finding,) = lint_modelfile(text)
    assert (finding.line, finding.severity) == (4, "error")


@pytest.mark.parametrize(
    ("line", "severity", "words"),
    [
        ("FROM ./missing.gguf", "error", "FROM ./missing.gguf: file not found"),
        ("FROM /missing/m.gguf", "error", "file not found"),
        ("FROM ~nouser/m.gguf", "error", "file not found"),
        ("FROM missing.gguf", "warning", "Ollama takes it for the name of a model"),
        ("FROM llama3\nADAPTER ./nope", "error", "ADAPTER ./nope: file not found"),
        ("FROM llama3\nADAPTER nope", "error", "ADAPTER nope: file not found"),
        ("FROM llama3\nDRAFT ./nope.gguf", "error", "DRAFT ./nope.gguf: file not found"),
    ],
)
def test_a_file_that_does_not_exist_is_found(tmp_path: Path, line: str, severity: str, words: str) -> None:
    (tmp_path / "Modelfile").write_text(f"{line}\n")
    (finding,) = lint_file(tmp_path / "Modelfile")
    assert (finding.line, finding.severity) == (line.count("\n") + 1, severity)
    assert words in finding.message


def test_files_that_exist_and_names_of_models_are_no_finding(tmp_path: Path) -> None:
    for name in ("m.gguf", "mmproj.gguf", "lora.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    (tmp_path / "folder").mkdir()
    for source in ("./m.gguf", "m.gguf", "./folder", str(tmp_path / "m.gguf"), "llama3", "ns/m:4b-q4_0", "host:1/ns/m"):
        (tmp_path / "Modelfile").write_text(f"FROM {source}\nADAPTER ./lora.gguf\n")
        assert lint_file(tmp_path / "Modelfile") == [], source


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF8, "utf-8"),
        (b"", "utf-8"),
    ],
)
def test_a_modelfile_is_read_in_the_encodings_that_ollama_reads(tmp_path: Path, mark: bytes, encoding: str) -> None:
    path = tmp_path / "Modelfile"
    path.write_bytes(mark + "FROM llama3\nSYSTEM 你好\nPARAMETER heat 1\n".encode(encoding))
    (finding,) = lint_file(path)
    assert (finding.line, "no parameter 'heat'" in finding.message) == (3, True)


def test_utf_16_without_a_mark_and_latin_1_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "Modelfile"
    path.write_bytes("SYSTEM café\n".encode("latin-1"))
    with pytest.raises(
        ModelfileError, match=r"not UTF-8 text \(byte 10\), and Ollama would misread it; save it as UTF-8"
    ):
        lint_file(path)


def test_a_bare_prompt_is_a_finding_only_as_ollama_show_prints_it() -> None:
    assert findings_of("FROM m\nTEMPLATE {{ .Prompt }}\n") == [(2, "warning")]
    assert findings_of(write_modelfile(Modelfile(("m",), template="{{ .Prompt }}"))) == []


def test_the_modelfiles_of_this_project_have_no_findings() -> None:
    paths = sorted((Path(__file__).resolve().parents[2] / "ollama").rglob("Modelfile*"))
    assert len(paths) > 30
    for path in paths:
        assert lint_modelfile(path.read_text("utf-8")) == [], path
