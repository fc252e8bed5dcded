"""Modelfiles, written and read: Ollama's grammar gives back every value, or the writer refuses it with the reason."""

import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.errors import ModelfileError
from quantkit.publish.ollama.modelfile import Modelfile, parse_modelfile, write_modelfile
from tests.helpers.examples import examples
from tests.publish.ollama_grammar import Refused, printable, read

AWKWARD = [
    '"',
    '""',
    '"""',
    "\n",
    "\r",
    "\r\n",
    "\t",
    " ",
    "#",
    "\\n",
    "{",
    "}",
    "FROM x",
    "SYSTEM ",
    "\u3000",
    "\u00a0",
]
AWKWARD += ["\u200b", "\ue000", "\x0c", "\0", "中文", "é", "😀", "\ufeff", "\u2028", "\ufffe", "|Bot|:", ""]
# What Unicode 3.2 had: later code points are printable by one Python's tables and not by another's.
settled = st.characters().filter(lambda c: unicodedata.ucd_3_2_0.category(c) != "Cn")
texts = st.one_of(st.text(settled, max_size=20), st.lists(st.sampled_from(AWKWARD), max_size=9).map("".join))

COMMAND_PARTS = ["FROM", "from", "SYSTEM", "PARAMETER", "stop", "temperature", "1", "MESSAGE", "user", "LICENSE", "x"]
COMMAND_PARTS += [" ", " ", "  ", "\t", "\n", "\n", "\nSYSTEM ", "\nPARAMETER stop ", "\nMESSAGE user ", "\r\n", '"\n']


def read_values(modelfile: Modelfile) -> list[tuple[str, str, str]]:
    return read(write_modelfile(modelfile))


def can_be_said(text: str) -> bool:
    """By the grammar's description: nothing is deleted, and no line ends with the three quotes that close a value."""
    kept = all(printable(c) or c in "\t\r\n" for c in text)
    return kept and not any(line.rstrip(" \t").endswith('"""') for line in re.split(r"[\r\n]+[ \t\r\n]*", text)[:-1])


@settings(max_examples=examples(1500), deadline=None)
@given(texts)
def test_a_text_survives_in_every_place_or_is_refused_for_a_reason_that_holds(text: str) -> None:
    places = {
        ("system", ""): Modelfile(("m",), system=text),
        ("license", ""): Modelfile(("m",), licenses=(text,)),
        ("message", "user"): Modelfile(("m",), messages=(("user", text),)),
        ("parameter", "stop"): Modelfile(("m",), parameters=(("stop", text),)),
        ("from", ""): Modelfile((text,)),
        ("adapter", ""): Modelfile(("m",), adapter=text),
    }
    for (name, key), modelfile in places.items():
        sayable = can_be_said(text) and (bool(text) or (key != "stop" and name not in ("from", "adapter")))
        if not sayable:
            with pytest.raises(ModelfileError, match=r"Ollama deletes|three quotes|is empty|surrogate"):
                write_modelfile(modelfile)
            continue
        expected = [("from", "", "m"), (name, key, text)][name == "from" :]
        assert read_values(modelfile) == expected
        assert parse_modelfile(write_modelfile(modelfile)) == modelfile


@settings(max_examples=examples(1500), deadline=None)
@given(texts.filter(lambda text: "{{" not in text))
def test_the_plain_text_of_a_template_survives_with_what_cannot_be_printed_in_string_actions(text: str) -> None:
    if any("\ud800" <= c <= "\udfff" for c in text):
        return
    (_, _, written) = read_values(Modelfile(("m",), template=text))[1]
    actions = re.compile(r'\{\{ "((?:\{|\\"|\\u[0-9a-f]{4}|\\U[0-9a-f]{8})+)" \}\}')

    def escaped(action: re.Match[str]) -> str:
        escapes = re.compile(r'\\u(....)|\\U(........)|\\(")|(\{)')
        return escapes.sub(lambda m: m[3] or m[4] or chr(int(m[1] or m[2], 16)), action[1])

    assert actions.sub(escaped, written) == text
    assert "{{" not in actions.sub("", written) or "{{" in text


@settings(max_examples=examples(3000), deadline=None)
@given(
    st.lists(
        st.sampled_from([*COMMAND_PARTS, *AWKWARD]),
        max_size=24,
    ).map(lambda parts: "FROM m\n" + "".join(parts))
)
def test_any_text_is_read_or_refused_as_the_second_reading_of_the_grammar_does(text: str) -> None:
    try:
        expected = read(text)
    except Refused:
        with pytest.raises(ModelfileError):
            parse_modelfile(text)
        return
    keys = {key for name, key, _ in expected if name == "parameter"} - {"stop"}
    if keys:  # a name or a number that only Ollama's second step, which types the parameters, looks at
        return
    modelfile = parse_modelfile(text)
    assert modelfile.sources == tuple(value for name, _, value in expected if name == "from")
    assert modelfile.licenses == tuple(value for name, _, value in expected if name == "license")
    assert modelfile.messages == tuple((key, value) for name, key, value in expected if name == "message")
    assert modelfile.parameters == tuple((key, value) for name, key, value in expected if name == "parameter")
    assert modelfile.system == next((value for name, _, value in reversed(expected) if name == "system"), None)


def test_every_value_of_a_modelfile_is_read_back() -> None:
    modelfile = Modelfile(
        sources=("./model.gguf", "./mmproj model.gguf"),
        parameters=(
            ("temperature", 0.5),
            ("top_k", 50),
            ("use_mmap", False),
            ("seed", -1),
            ("stop", "\n"),
            ("stop", "|H|:"),
        ),
        template="{{ range .Messages }}\n|Human|: {{ .Content }}\n{{ end }}",
        system='He said "hi"',
        licenses=("MIT", "Apache\n2.0"),
        messages=(("user", "你好"), ("assistant", "a: b")),
        adapter="./lora.gguf",
        requires="0.30.0",
        renderer="qwen3",
        parser="qwen3",
        drafts=("./draft.gguf",),
    )
    assert parse_modelfile(write_modelfile(modelfile)) == modelfile
    assert [value for name, _, value in read_values(modelfile) if name == "from"] == list(modelfile.sources)


def test_the_gpu_modelfile_is_the_three_lines_a_publisher_writes() -> None:
    gpu = Modelfile(("azure99/blossom-v5:4b",), parameters=(("num_gpu", 999), ("num_ctx", 4096)))
    assert write_modelfile(gpu) == "FROM azure99/blossom-v5:4b\nPARAMETER num_gpu 999\nPARAMETER num_ctx 4096\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('"""\n"""', "\n"),
        ("\\n", "\\n"),
        ("x # comment", "x # comment"),
        ('"""a""" # comment\n"""', 'a""" # comment\n'),
        ('"""a\n  b\n"""   ', "a\n  b\n"),
        ('"a\nb"', "a\nb"),
        ('"say "hi" now"', 'say "hi" now'),
        ('""', ""),
        (" ", ""),
        ("  padded\t", "padded"),
        ("it's", "it's"),
        ('tail"', 'tail"'),
        ("a\u3000b\u00a0c\u200bd", "abcd"),
        ('"\u200b""x"""', "x"),
        ('"""a\r\nb"""', "a\r\nb"),
    ],
)
def test_a_value_is_read_as_ollama_reads_it(text: str, value: str) -> None:
    assert parse_modelfile(f"FROM m\nSYSTEM {text}\n").system == value
    assert read(f"FROM m\nSYSTEM {text}\n")[1] == ("system", "", value)


def test_three_quotes_at_the_end_of_a_line_close_the_value_there() -> None:
    with pytest.raises(ModelfileError, match='line 3 of the Modelfile: no command \'more"""\''):
        parse_modelfile('FROM m\nSYSTEM """a"""\nmore"""\n')


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no FROM"),
        ("SYSTEM hello\n", "has no FROM"),
        ("FROM m\nSYSTEM\n", "line 2 .*SYSTEM is not followed by a space and a value"),
        ("FROM m\nBANANA x\n", "line 2 .*no command 'BANANA'"),
        ("FROM m\n\u3000\n", "line 2 .*no command"),
        ("FROM m\r\n\r\nSYS x\r\n", "line 3 .*no command 'SYS'"),
        ("FROM m\nPARAMETER  seed 1\n", "exactly one space"),
        ("FROM m\nPARAMETER seed\n", "PARAMETER seed is not followed"),
        ("FROM m\nPARAMETER Seed 1\n", "no parameter 'Seed'; did you mean seed"),
        ("FROM m\nPARAMETER tfs_z 1\n", "no parameter 'tfs_z'"),
        ("FROM m\nPARAMETER num_ctx 4096.0\n", "whole number, not '4096.0'"),
        ("FROM m\nPARAMETER num_ctx 9223372036854775808\n", "whole number"),
        ("FROM m\nPARAMETER top_p high\n", "a number, not 'high'"),
        ("FROM m\nPARAMETER top_p nan\n", "a number"),
        ("FROM m\nPARAMETER top_p 1e39\n", "a number"),
        ("FROM m\nPARAMETER use_mmap yes\n", "true or false"),
        ("FROM m\nMESSAGE User hi\n", "roles system, user, assistant"),
        ("FROM m\nMESSAGE tool hi\n", "roles system, user, assistant"),
        ('FROM m\nSYSTEM "never closed\nPARAMETER seed 1\n', "line 2 .*never closed"),
        ("FROM m\nREQUIRES newest\n", "version such as"),
    ],
)
def test_what_ollama_refuses_is_refused_with_the_line(text: str, reason: str) -> None:
    with pytest.raises(ModelfileError, match=reason):
        parse_modelfile(text)


def test_commands_are_read_in_any_case_and_the_last_of_a_single_one_counts() -> None:
    text = "\ufefffrom a\nFrom b\nsystem one\nSYSTEM two\nParameter top_k 1\nPARAMETER top_k 2\nPARAMETER mirostat x\n"
    modelfile = parse_modelfile(text)
    assert modelfile == Modelfile(("a", "b"), system="two", parameters=(("top_k", 2),))


@pytest.mark.parametrize(
    ("modelfile", "reason"),
    [
        (Modelfile(()), "needs a FROM"),
        (
            Modelfile(("m",), system="全角\u3000空格"),
            r"SYSTEM has U\+3000 \(IDEOGRAPHIC SPACE\).*quantkit ollama --create`, which sends it over",
        ),
        (Modelfile(("m",), parameters=(("stop", "\u200b"),)), r"PARAMETER stop has U\+200B.*HTTP API"),
        (Modelfile(("m",), licenses=("page\x0cbreak",)), r"LICENSE has U\+000C"),
        (Modelfile(("m",), system='"""\n'), "three quotes"),
        (Modelfile(("m",), system="\ud800"), "lone surrogate"),
        (Modelfile(("m",), template="\ud800"), "lone surrogate"),
        (Modelfile(("m",), parameters=(("mirostat", 1),)), "deprecated"),
        (Modelfile(("m",), parameters=(("heat", 1),)), "no parameter 'heat'"),
        (Modelfile(("m",), parameters=(("num_ctx", 4096.0),)), "whole number, not 4096.0"),
        (Modelfile(("m",), parameters=(("num_ctx", True),)), "whole number, not True"),
        (Modelfile(("m",), parameters=(("temperature", "0.5"),)), "a number, not '0.5'"),
        (Modelfile(("m",), parameters=(("temperature", float("nan")),)), "a number"),
        (Modelfile(("m",), parameters=(("use_mmap", 1),)), "true or false, not 1"),
        (Modelfile(("m",), parameters=(("seed", 1), ("seed", 2))), "given twice"),
        (Modelfile(("m",), messages=(("tool", "x"),)), "not 'tool'"),
        (Modelfile(("m",), requires="latest"), "version such as"),
    ],
)
def test_a_value_that_a_modelfile_cannot_hold_is_not_written(modelfile: Modelfile, reason: str) -> None:
    with pytest.raises(ModelfileError, match=reason):
        write_modelfile(modelfile)


@pytest.mark.parametrize(
    ("template", "written"),
    [
        ("问\u3000答", '问{{ "\\u3000" }}答'),
        ("\u3000\u00a0x", '{{ "\\u3000\\u00a0" }}x'),
        ("{\u3000}", '{{ "{\\u3000" }}}'),
        ("\U000f0000", '{{ "\\U000f0000" }}'),
        ('{{ if eq .Role "用\u3000户" }}x{{ end }}', '{{ if eq .Role "用\\u3000户" }}x{{ end }}'),
        ('{{ "}}\u3000" }}\u3000', '{{ "}}\\u3000" }}{{ "\\u3000" }}'),
        ("{{ '\u3000' }}", "{{ '\\u3000' }}"),
        ('"""\nx', '""{{ "\\"" }}\nx'),
        ("{{/* a }} comment */}}\u3000", '{{/* a }} comment */}}{{ "\\u3000" }}'),
    ],
)
def test_string_actions_write_what_the_parser_deletes(template: str, written: str) -> None:
    assert read_values(Modelfile(("m",), template=template))[1] == ("template", "", written)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ .Content\u00a0}}", r"U\+00A0 \(NO-BREAK SPACE\) in the action"),
        ("{{ `\u3000` }}", r"U\+3000.* in the action"),
        ("{{/* \u3000 */}}", "a comment of TEMPLATE"),
        ("{{- /* \u3000 */ -}}", "a comment of TEMPLATE"),
        ('{{ `"""\n` }}', "three quotes"),
    ],
)
def test_a_template_whose_actions_would_lose_something_is_refused(template: str, reason: str) -> None:
    with pytest.raises(ModelfileError, match=reason):
        write_modelfile(Modelfile(("m",), template=template))
