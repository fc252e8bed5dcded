"""The parser of Go templates gives the verdict of Go's own, over composed, damaged and real templates."""

import random
from pathlib import Path

import pytest

from quantkit.publish.ollama.go_syntax import syntax_fault
from quantkit.publish.ollama.modelfile import parse_modelfile
from tests.helpers.golang import parse_errors

WORDS = r"""
{{ }} {{- -}} {{/* */}} {{- /*x*/ -}} {{/**/ }} .Prompt .System $ $x $y . $x.Role .Messages nil true false 0 1 -1
0x1F 1.5 1e3 1_000 09 'a' '\n' 'ab' "a" "\n" "\q" "\u3000" "open `raw` ( ) | := = , : ; % + - _ name len eq ne and or
not index slice print printf json currentDate toTypeScriptType nosuch if else end range with define block template
break continue 1i 1+2i 1+2 1e 0b12 0o17 9223372036854775807 18446744073709551616 "\x4" "\777" '\'' "\'" (.Messages)
(len .Messages) .a.b $.Messages.x (index .Messages 0).Role "x".y 1.y nil.x true.x text } { \ é 中 ​ # & !
"\ud800" "\U00110000" 0x1p-2 1.e5 .5 -0x_1 'é' '\u4e2d' "\U0010FFFF"
"""
PIECES = [*WORDS.split(), " ", " ", " ", "\n", "\t", "\r\n", '"', "'", "`", "\u3000", "\u200b", "\x00"]
ACTIONS = [
    *(
        "{{ if .System }}",
        "{{ else }}",
        "{{ else if .Prompt }}",
        "{{ end }}",
        "{{ end }}",
        "{{ end }}",
        "{{ .Content }}",
    ),
    *("{{ range .Messages }}", "{{ range $i, $m := .Messages }}", "{{ with .System }}", "{{ else with .Prompt }}"),
    *("{{ $x := 1 }}", "{{ $x }}", "{{ $x = 2 }}", "{{ $m.Role }}", "{{ break }}", "{{ continue }}", "{{- end -}}"),
    *(
        '{{ define "a" }}',
        '{{ template "a" . }}',
        '{{ block "a" . }}',
        '{{ template "a" }}',
        "{{ $i }}",
        "{{ nosuch }}",
    ),
    *(
        "{{/* c */}}",
        "{{ . | len | printf `%d` }}",
        "{{ 1 | len }}",
        "{{ len | 1 }}",
        "text",
        "\n",
        "{{ range $a, $b }}",
    ),
    *("{{ range $i, 1 }}", "{{ with $y := . }}", "{{ $y }}", "{{ else }}", "{{ if (eq .a `b`) }}", "{{ (1) | (len) }}"),
    *(
        '{{ eq .Role "user" }}',
        "{{ range $c, $d, $e := . }}",
        "{{ end x }}",
        "{{ else x }}",
        "{{ break x }}",
        "{{ .a . }}",
    ),
]
ROOT = Path(__file__).resolve().parents[2]


def compare(templates: list[str]) -> tuple[int, int]:
    """How many parse and how many do not; fails on the first whose verdict is not Go's."""
    refused = 0
    for template, error in zip(templates, parse_errors(templates), strict=True):
        fault = syntax_fault(template)
        assert bool(error) == (fault is not None), f"Go: {error or 'parses'}; ours: {fault}; {template!r}"
        if fault is not None:
            refused += 1
            assert 0 <= fault.at <= len(template) and fault.message and "\n" not in fault.message
    return len(templates) - refused, refused


def test_actions_of_random_pieces_get_the_verdict_of_go() -> None:
    chance = random.Random(11)
    drawn = ["{{" + "".join(chance.choices(PIECES, k=chance.randint(1, 7))) + "}}" for _ in range(12_000)]
    spaced = ["{{ " + " ".join(chance.choices(PIECES, k=chance.randint(1, 6))) + " }}" for _ in range(12_000)]
    parsed, refused = compare(drawn + spaced)
    assert parsed > 500 and refused > 500


def test_random_sequences_of_blocks_get_the_verdict_of_go() -> None:
    chance = random.Random(12)
    parsed, refused = compare(["".join(chance.choices(ACTIONS, k=chance.randint(1, 9))) for _ in range(20_000)])
    assert parsed > 500 and refused > 500


def real_templates() -> list[str]:
    made = [parse_modelfile(path.read_text("utf-8")).template for path in sorted((ROOT / "ollama").rglob("Modelfile"))]
    return [template for template in dict.fromkeys(made) if template]


def test_the_templates_of_this_project_parse() -> None:
    templates = real_templates()
    assert len(templates) >= 5
    assert compare(templates) == (len(templates), 0)


def test_a_real_template_with_one_damage_gets_the_verdict_of_go() -> None:
    chance = random.Random(13)
    damaged = []
    for template in real_templates():
        for _ in range(600):
            at = chance.randrange(len(template))
            length = chance.choice((0, 1, 1, 2, 5))
            damaged.append(template[:at] + chance.choice(("", "", *PIECES)) + template[at + length :])
    parsed, refused = compare(damaged)
    assert parsed > 500 and refused > 500


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ .Prompt }", "a single } does not close an action, }} does"),
        ("{{ if .System }}{{ .System }}", "an {{ end }} is missing"),
        ("{{ nosuch .Prompt }}", "the function 'nosuch' is not defined in Ollama"),
        ("{{ $x }}", "the variable '$x' is not defined"),
        ("{{ .Prompt }}{{ end }}", "{{ end }} has nothing to end"),
        ("{{ message['content'] }}", "cannot follow 'message'"),
        ("{{ (len . }}", "a ( is not closed"),
        ('{{ "a }}', "a string in double quotes is not closed"),
        ("{{ }}", "an action has no value"),
    ],
)
def test_the_message_names_the_fault(template: str, message: str) -> None:
    fault = syntax_fault(template)
    assert fault is not None and message in fault.message
    assert parse_errors([template]) != [""]


def test_a_template_nested_too_deeply_is_a_fault_and_no_crash() -> None:
    fault = syntax_fault("{{ " + "(" * 100_000 + " }}")
    assert fault is not None
    assert syntax_fault("{{ if . }}" * 50_000) is not None


def test_long_literals_take_no_time() -> None:
    digits = "1" * 50_000
    compare([f"{{{{ {text} }}}}" for text in (digits, f"0x{digits}", f"{digits}.5", f"0x{digits}p1x", f'"{digits}"')])
