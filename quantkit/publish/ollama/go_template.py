"""A Jinja chat template as a Go template in Ollama's dialect, exact or refused.

`probing` finds out what the Jinja template writes; this module writes it as `{{ range .Messages }}`. Ollama gives a
template `.Messages`, with neighbours of one role joined, and `.System`, all system messages joined. If the conversation
ends with an answer, the model continues that answer, so nothing follows it (template/template.go).
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from quantkit.errors import TemplateRefused
from quantkit.publish.ollama.printable import is_printable
from quantkit.publish.ollama.probing import ROLES, Place, Wording, probe, system_mark

__all__ = ["GoTemplate", "TemplateRefused", "synthesize"]


@dataclass(frozen=True)
class GoTemplate:
    """`text` is for TEMPLATE, `stops` for PARAMETER stop; `limits` has a phrase for each difference from the Jinja."""

    text: str
    stops: tuple[str, ...]
    limits: tuple[str, ...]


def synthesize(
    jinja: str,
    *,
    bos_token: str,
    eos_token: str,
    special_tokens: Mapping[str, str] | None = None,
    adds_bos: bool,
) -> GoTemplate:
    """The Go template that renders what `jinja` renders, without the BOS at the start if the runtime adds one.

    `special_tokens` are further tokens that the template may name (`unk_token`).

    Raises:
        TemplateRefused: no Go template is exact, no stop ends only an answer, or the Jinja template itself fails; the
            message has the reason.
        TemplateError: the template runs out of time or memory.
    """
    options = {"bos_token": bos_token, "eos_token": eos_token, "special_tokens": dict(special_tokens or {})}
    wording = probe(jinja, options, bos_token if adds_bos else "")
    return GoTemplate(_go_text(wording), _stops(wording, bos_token, eos_token), wording.limits)


def _go_text(wording: Wording) -> str:
    counted = "{{ $left := len (slice $.Messages $i) }}" if wording.form.counted else ""
    text = '{{ $prev := "" }}{{ range $i, $_ := .Messages }}' + counted
    handled = [role for role in "sua" if any(place.role == role for place in wording.literals)]
    clauses = []
    for role in handled:
        here = {place: literal for place, literal in wording.literals.items() if place.role == role}
        before = {place.before for place in here}
        test = f'eq .Role "{ROLES[role]}"'
        if not {"", *handled} - {role} <= before:
            test = f"and ({test}) ({_is_one_of('$prev', before)})"
        clauses.append(f"if {test} }}}}{_choice(here)}{{{{ .Content }}}}{{{{ $prev = .Role }}}}")
    if handled != list("sua") or any(clause.startswith("if and") for clause in clauses):
        # If a message was left out, its neighbours may have one role: join them as Ollama joins messages.
        clauses.insert(0, "if eq .Role $prev }}\n\n{{ .Content }}")
    text += "".join(f"{{{{ {'else ' if number else ''}{clause}" for number, clause in enumerate(clauses))
    text += "{{ end }}{{ end }}"
    end = {place: literal for place, literal in wording.literals.items() if place.role == ""}
    return text + f"{{{{ if {_is_one_of('$prev', {place.before for place in end})} }}}}{_choice(end)}{{{{ end }}}}"


def _is_one_of(variable: str, roles: Iterable[str]) -> str:
    return f"eq {variable} " + " ".join(f'"{ROLES.get(role, "")}"' for role in sorted(roles))


def _choice(literals: Mapping[Place, str]) -> str:
    """The Go text that writes the literal of the current place, by the fewest features that distinguish the places."""
    features = list(Place._fields)
    for feature in ("role", "left", "system", "before"):
        fewer = [name for name in features if name != feature]
        if len({_values(place, fewer) for place in literals}) == len(
            {(_values(p, fewer), t) for p, t in literals.items()}
        ):
            features = fewer
    return _branches({_values(place, features): text for place, text in literals.items()}, features)


def _values(place: Place, features: Sequence[str]) -> tuple[object, ...]:
    return tuple(getattr(place, feature) for feature in features)


def _branches(literals: Mapping[tuple[object, ...], str], features: Sequence[str]) -> str:
    texts = list(dict.fromkeys(literals.values()))
    if len(texts) == 1:
        return _quoted(texts[0])
    tail = _shared_end([_ATOM.findall(text) for text in texts])
    head = _shared_end([_ATOM.findall(text.removesuffix(tail))[::-1] for text in texts], reverse=True)
    if head or tail:
        inner = {values: text[len(head) : len(text) - len(tail)] for values, text in literals.items()}
        return _quoted(head) + _branches(inner, features) + _quoted(tail)
    values_of: dict[str, list[object]] = {}
    for value in dict.fromkeys(values[0] for values in literals):
        below = {values[1:]: text for values, text in literals.items() if values[0] == value}
        values_of.setdefault(_branches(below, features[1:]), []).append(value)
    # The text of most values, or the empty text, comes last: it is the else.
    *tested, last = sorted(values_of, key=lambda text: (not text, len(values_of[text]), str(values_of[text])))
    text = ""
    for branch in tested:
        text += f"{{{{ {'else ' if text else ''}if {_test(features[0], values_of[branch])} }}}}{branch}"
    if not text:
        return last
    return text + (f"{{{{ else }}}}{last}" if last else "") + "{{ end }}"


def _shared_end(texts: Sequence[Sequence[str]], reverse: bool = False) -> str:
    """The end that all texts share, as text; with `reverse` the atoms are listed from the last to the first."""
    shared = 0
    while all(shared < len(text) for text in texts) and len({text[-1 - shared] for text in texts}) == 1:
        shared += 1
    atoms = list(texts[0][len(texts[0]) - shared :])
    return "".join(atoms[::-1] if reverse else atoms)


def _test(feature: str, values: Sequence[object]) -> str:
    if feature == "before":
        return _is_one_of("$prev", map(str, values))
    if feature == "system":
        return "$.System" if values[0] else "not $.System"
    exact = [str(value) for value in values if value != 3]
    tests = [f"eq $left {' '.join(exact)}"] if exact else []
    tests += ["ge $left 3"] if len(exact) < len(values) else []
    return tests[0] if len(tests) == 1 else f"or ({tests[0]}) ({tests[1]})"


_MARKER = re.compile(r"<[^<>\s]{1,60}>|\[\|[^\[\]]{1,60}\|\]|\[/?[A-Z_]{2,}\]")
_ATOM = re.compile(rf"{_MARKER.pattern}|\w+|.", re.DOTALL)
"""Markers and words stay whole; the mark of the system message is a word."""
_SPECIAL = re.compile(r"(\{{2,}|\{$|\"{3,})")


def _quoted(literal: str) -> str:
    """Literal text in a Go template, with the system message in place of its mark.

    Three kinds of text are written as a quoted string. Go would read the first as an action. Ollama's Modelfile reader
    would delete the second (runes that do not print). It would read the third as the end of the value.
    """
    return "{{ $.System }}".join(_text(part) for part in literal.split(system_mark()))


def _text(literal: str) -> str:
    parts = _SPECIAL.split(literal)
    for index, part in enumerate(parts):
        safe = part if index % 2 == 0 else f"{{{{ {json.dumps(part)} }}}}"
        parts[index] = "".join(
            rune if rune in "\n\t" or is_printable(rune) else f'{{{{ "\\U{ord(rune):08x}" }}}}' for rune in safe
        )
    return "".join(parts)


def _stops(wording: Wording, bos: str, eos: str) -> tuple[str, ...]:
    """The texts that end an answer: EOS, the marker after an answer, and the opening of the user's next turn.

    Raises TemplateRefused if the model writes that marker before its answer too, as Kimi K3 does after its reasoning.
    """
    stops = [eos] if eos else []
    between = [text for place, text in wording.literals.items() if (place.before, place.role) == ("a", "u")]
    for text in between:
        remaining = text.replace(system_mark(), "").strip()
        if eos and remaining.startswith(eos):
            remaining = remaining.removeprefix(eos).strip()
        elif first := _MARKER.match(remaining):
            if any(first[0] in opening for opening in _openings(wording)):
                raise TemplateRefused(f"the model writes {first[0]} before its answer too, and Ollama would end there")
            stops.append(first[0])
            remaining = remaining.removeprefix(first[0]).strip()
        # A BOS before [INST] does not open a turn; a BOS that is the marker of a turn, before a role's name, does.
        after = remaining.removeprefix(bos).strip() if bos else remaining
        if opening := _MARKER.match(after) or _MARKER.match(remaining):
            stops.append(opening[0])
        elif remaining:
            stops.append(remaining.splitlines()[0].strip())
    return tuple(dict.fromkeys(stops))


def _openings(wording: Wording) -> list[str]:
    """What stands before an answer in the history, and what of it a prompt leaves to the model."""
    prompts = {place._replace(role="a"): text for place, text in wording.literals.items() if place.role == ""}
    return [
        text.removeprefix(prompts[place])
        for place, text in wording.literals.items()
        if place in prompts and text.startswith(prompts[place])
    ]
