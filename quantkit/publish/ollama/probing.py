"""What a chat template writes around the messages, found by rendering conversations of unique marks.

A conversation is written by its roles (`suau`: system, user, assistant, user). Its prompt is literal texts between the
messages. `Wording` holds those texts by place. A wording is compared with the template on long and odd conversations.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jinja2.meta
import jinja2.nodes

from quantkit.chat import TemplateRefusal, parse, render_all_contained
from quantkit.errors import TemplateError, TemplateRefused
from quantkit.units import listed

ROLES = {"s": "system", "u": "user", "a": "assistant"}
_PLAIN = ("u", "uau", "uauau")
_WITH_SYSTEM = ("su", "suau", "suauau")
_CONTINUED = ("ua", "uaua", "sua", "suaua")
_UNUSUAL = ("au", "aua", "sau", "uasu", "suasu", "usu", "us", "s", "uas", "uasua")
_LONG = ("uauauauau", "suauauauau", "uauaua", "suauaua")
_ODD = (
    "1 + 1 = 2?",
    "你好，世界！\n第二行",
    "two\n\nparagraphs, a\ttab and  two spaces",
    '{{ .Content }} {% if x %} }} {"a": [1]}',
    "\"double\" 'single' `back` \\n \\",
    "🙂 é ü <b>&amp;</b> 100 %",
    "- list\n- of\n- lines",
)
_MANY = 3
"""A template may count the messages to the end up to this number."""
_CONSTANTS = 60
"""At most so many strings of a template are tried in messages."""


class Place(NamedTuple):
    """The place of a literal: after a message of role `before` ("" at the start) and before one of role `role`.

    `role` is "" after the last message, at the generation prompt. `system`: whether there is a system message, for a
    template that does not write it in line. `left`: the messages from this one to the end, at most 3; 0 if the
    template does not count.
    """

    before: str
    role: str
    system: bool
    left: int


class Form(NamedTuple):
    """`folded`: the literals hold the system message, which is not in line. `counted`: `left` matters."""

    folded: bool
    counted: bool


@dataclass(frozen=True)
class Wording:
    """All that a template writes: the literal of each place, with `system_mark()` in place of the system message."""

    form: Form
    literals: Mapping[Place, str]
    limits: tuple[str, ...] = ()

    def prompt(self, roles: str, contents: Sequence[str]) -> str | None:
        """The prompt of a conversation; None if a place has no known literal."""
        system = contents[roles.index("s")] if "s" in roles else ""
        text = ""
        for place, index in places(roles, self.form, bool(system)):
            literal = self.literals.get(place)
            if literal is None:
                return None
            text += literal.replace(system_mark(), system) + (contents[index] if place.role else "")
        return text


def system_mark() -> str:
    """The mark that stands for a system message."""
    return _mark("s", 0)


def places(roles: str, form: Form, system: bool = True) -> Iterator[tuple[Place, int]]:
    """The places of a conversation, and the index of the message after each; nothing follows an answer at the end.

    Without `system`, the system message is empty, which a Go template's `.System` cannot tell from an absent one.
    """
    system = system and form.folded and "s" in roles
    before = ""
    for index, role in enumerate(roles):
        if form.folded and role == "s":
            continue
        yield Place(before, role, system, min(len(roles) - index, _MANY) if form.counted else 0), index
        before = role
    if before != "a":
        yield Place(before, "", system, 0), len(roles)


class Probe:
    """Renders conversations with a chat template in a contained process."""

    def __init__(self, jinja: str, options: Mapping[str, Any], bos: str) -> None:
        self._jinja, self._options, self._bos = jinja, options, bos

    def prompts(
        self, conversations: Sequence[tuple[str, Sequence[str]]], date: str = "1987-01-02"
    ) -> list[str | TemplateError]:
        """The prompt of each (roles, contents), without the leading `bos`; nothing follows an answer at the end."""
        # A macro of this name shadows the function, so the date is `date`.
        dated = f"{{% macro strftime_now(format) %}}{date}{{% endmacro +%}}{self._jinja}"
        requests = [
            {
                **self._options,
                "messages": [
                    {"role": ROLES[role], "content": content} for role, content in zip(roles, contents, strict=True)
                ],
                "add_generation_prompt": roles[-1] != "a",
            }
            for roles, contents in conversations
        ]
        answers = render_all_contained(dated, requests)
        return [
            answer if isinstance(answer, TemplateError) else self._without_end(answer, roles, contents)
            for answer, (roles, contents) in zip(answers, conversations, strict=True)
        ]

    def _without_end(self, text: str, roles: str, contents: Sequence[str]) -> str:
        text = text.removeprefix(self._bos)
        if roles[-1] == "a" and (at := text.rfind(contents[-1])) >= 0:
            return text[: at + len(contents[-1])]
        return text


def probe(jinja: str, options: Mapping[str, Any], bos: str) -> Wording:
    """The wording of a template; `options` are the arguments of chat.render besides messages.

    Raises:
        TemplateRefused: no wording writes what the template writes; the message has the reason.
        TemplateError: the template runs out of time or memory.
    """
    template = Probe(jinja, options, bos)
    shapes = [*_PLAIN, *_WITH_SYSTEM, *_CONTINUED]
    conversations = [(roles, _marks(roles)) for roles in shapes]
    answers = dict(zip(shapes, template.prompts(conversations), strict=True))
    for roles in _PLAIN:
        if isinstance(answer := answers[roles], TemplateError):
            raise TemplateRefused(f"no conversation of roles {_spelt(roles)}: {answer}") from answer
    if list(map(str, answers.values())) != list(map(str, template.prompts(conversations, date="2031-12-30"))):
        raise TemplateRefused("the template writes today's date, which a Go template of Ollama's cannot")
    prompts = {roles: answer for roles, answer in answers.items() if isinstance(answer, str)}
    wording = _simplest(prompts)
    _confirm(template, wording, prompts)
    return _with_limits(template, _with_unusual(template, wording), prompts, jinja)


def _simplest(prompts: Mapping[str, str]) -> Wording:
    """The wording of the simplest form that all prompts agree with."""
    reason = None
    for form in (Form(False, False), Form(False, True), Form(True, False), Form(True, True)):
        literals: dict[Place, str] = {}
        try:
            for roles, text in prompts.items():
                _learn(literals, roles, text, form)
        except _InconsistentError as error:
            reason = reason or str(error)
            continue
        return Wording(form, literals)
    raise TemplateRefused(f"the template is not made of fixed texts between the messages: {reason}")


class _InconsistentError(Exception):
    pass


def _learn(literals: dict[Place, str], roles: str, text: str, form: Form) -> None:
    """Add the literals of a conversation's prompt; raises _InconsistentError, and adds nothing, if one differs."""
    marks, at, new = _marks(roles), 0, {}
    for place, index in places(roles, form):
        end = text.find(marks[index], at) if place.role else len(text)
        if end < 0:
            raise _InconsistentError(f"message {index + 1} of {_spelt(roles)} is missing, altered or moved")
        literal = text[at:end]
        others = [mark for mark in marks if mark in literal and not (form.folded and mark == system_mark())]
        if others:
            raise _InconsistentError(f"message {marks.index(others[0]) + 1} of {_spelt(roles)} is moved or repeated")
        if literals.get(place, literal) != literal:
            before = literals[place]
            pairs = enumerate(zip(before, literal, strict=False))
            at = next((index for index, (a, b) in pairs if a != b), len(before))
            at = max(0, min(at, len(literal)) - 10)
            raise _InconsistentError(
                f"between {ROLES.get(place.before, 'the start')} and {ROLES.get(place.role, 'the end')} it writes"
                f" {before[at : at + 50]!r} in one conversation and {literal[at : at + 50]!r} in another"
            )
        new[place] = literal
        at = end + (len(marks[index]) if place.role else 0)
    literals.update(new)


def _with_unusual(template: Probe, wording: Wording) -> Wording:
    """The wording with the places of unusual orders of roles that the template accepts and writes alike."""
    literals, limits = dict(wording.literals), list(wording.limits)
    answers = template.prompts([(roles, _marks(roles)) for roles in _UNUSUAL])
    different, refused = [], False
    for roles, answer in zip(_UNUSUAL, answers, strict=True):
        late = roles.find("s") > 0
        if isinstance(answer, TemplateError):
            refused = refused or late
            continue
        try:
            if late and wording.form.folded:
                raise _InconsistentError
            _learn(literals, roles, answer, wording.form)
        except _InconsistentError:
            different.append(roles)
    if not any(place.system or place.role == "s" for place in wording.literals):
        limits.append("the template takes no system message at the start: one is left out")
    elif refused or any("s" in roles[1:] for roles in different):
        limits.append("a system message after the first turn is not as in the Jinja template")
    if any("s" not in roles[1:] for roles in different):
        limits.append("a conversation that an assistant begins is not as in the Jinja template")
    # An empty literal at the end is the same as none.
    literals = {at: text for at, text in literals.items() if at.role or at.before == "u" or (at.before and text)}
    return Wording(wording.form, literals, tuple(limits))


def _confirm(template: Probe, wording: Wording, prompts: Mapping[str, str]) -> None:
    """Refuse a wording that long conversations or odd contents contradict."""
    base = _base(prompts)
    shapes = [roles for roles in (*prompts, *_LONG) if "s" in base or "s" not in roles]
    odd = [(roles, [_ODD[(index + at) % len(_ODD)] for at in range(len(roles))]) for index, roles in enumerate(shapes)]
    odd += [(base, [content] * len(base)) for content in _ODD]
    for conversation, answer in zip(odd, template.prompts(odd), strict=True):
        if isinstance(answer, TemplateError):
            if conversation[0] in prompts or not isinstance(answer, TemplateRefusal):
                raise TemplateRefused(f"the template fails on some contents: {answer}") from answer
        elif wording.prompt(*conversation) != answer:
            raise TemplateRefused(
                f"what it writes depends on the contents or the number of messages ({_spelt(conversation[0])})"
            )


def _with_limits(template: Probe, wording: Wording, prompts: Mapping[str, str], jinja: str) -> Wording:
    """The wording, with a limit for each difference from the template that it cannot write."""
    limits, base = list(wording.limits), _base(prompts)

    def differing(content: str) -> list[str]:
        """The roles for which the template treats this content in another way."""
        roles = []
        cases = [(base, [content if role == one else "x" for role in base]) for one in dict.fromkeys(base)]
        for case, answer in zip(cases, template.prompts(cases), strict=True):
            if isinstance(answer, TemplateError) or wording.prompt(*case) != answer:
                roles.append(ROLES[base[case[1].index(content)]])
        return roles

    if trimmed := differing(" \n x \n "):
        limits.append(f"white space around a message is kept, and the Jinja template alters it ({', '.join(trimmed)})")
    if empty := differing(""):
        limits.append(f"an empty message is not as in the Jinja template ({', '.join(empty)})")
    tree = parse(jinja)
    cases, words = [], []
    for word in _constants(tree):
        for content in (f"y{word}z", f"{word}z", f"y{word}"):
            for one in dict.fromkeys(base):
                cases.append((base, [content if role == one else "x" for role in base]))
                words.append(word)
    altered = {}
    for case, word, answer in zip(cases, words, template.prompts(cases), strict=True):
        if isinstance(answer, TemplateError) or wording.prompt(*case) != answer:
            altered[word] = repr(word)
    if altered:
        some = ", ".join(list(altered.values())[:4]) + (" and others" if len(altered) > 4 else "")
        limits.append(f"a message that contains {some} is written as any other, and the Jinja template alters it")
    options = jinja2.meta.find_undeclared_variables(tree)
    if "tools" in options:
        limits.append("tools are left out")
    if thinking := sorted(options & {"enable_thinking", "thinking", "reasoning_effort"}):
        limits.append(f"{listed(thinking)} cannot be given")
    return Wording(wording.form, wording.literals, tuple(limits))


def _base(prompts: Mapping[str, str]) -> str:
    """The conversation in which contents are tried."""
    return "suau" if "suau" in prompts else "uau"


def _constants(tree: jinja2.nodes.Template) -> list[str]:
    """The strings that a template may look for in a message."""
    tests = (*tree.find_all(jinja2.nodes.Compare), *tree.find_all(jinja2.nodes.Call))
    constants = [node.value for test in tests for node in test.find_all(jinja2.nodes.Const)]
    texts = [value for value in constants if isinstance(value, str) and value == value.strip() != ""]
    return list(dict.fromkeys(texts))[:_CONSTANTS]


def _mark(role: str, index: int) -> str:
    return f"Qx{role}{index}Zk"


def _marks(roles: str) -> list[str]:
    return [_mark(role, index) for index, role in enumerate(roles)]


def _spelt(roles: str) -> str:
    return ", ".join(ROLES[role] for role in roles)
