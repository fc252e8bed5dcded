"""A template written into a Modelfile renders, by the real Go, as the original template."""

import random
from itertools import pairwise

from quantkit.publish.ollama.modelfile import Modelfile, write_modelfile
from tests.helpers.golang import rendered_by_go
from tests.publish.ollama_grammar import read

PIECES = [
    "\u3000",
    "\u00a0",
    "\u200b",
    "\ue000",
    "\U000f0000",
    "\x0c",
    "{",
    "}",
    '"',
    '"""',
    "\n",
    "  ",
    "\r\n",
    "x",
    "中",
]
PIECES += [
    '{{ "\u3000}}" }}',
    '{{- "a" -}}',
    '{{ "" -}}',
    '{{- " \u00a0\\" \\\\" }}',
    "{{/* }} */}}",
    "{{- /* x */ -}}",
]
PIECES += [
    "{{ `a\\` }}",
    "{{ range .Messages }}{{ .Content }}\u3000{{ end }}",
    '{{ if eq "\u3000" .System }}no{{ end }}',
]


def test_templates_with_characters_that_the_parser_deletes_render_unchanged() -> None:
    chance = random.Random(7)
    drawn = [chance.choices(PIECES, k=chance.randint(1, 8)) for _ in range(600)]
    # Two braces in a row begin an action, so they are not literal text.
    templates = ["".join(pieces) for pieces in drawn if not any(a == "{" == b[0] for a, b in pairwise(pieces))]
    conversations = [[{"role": "user", "content": "hi \u3000"}]]
    written = [read(write_modelfile(Modelfile(("m",), template=template)))[1][2] for template in templates]
    assert sum(old != new for old, new in zip(templates, written, strict=True)) > len(templates) / 2
    rendered = rendered_by_go([(template, conversations) for template in [*templates, *written]])
    for template, expected, prompts in zip(templates, rendered, rendered[len(templates) :], strict=False):
        assert prompts == expected, template
