"""Whether a TEMPLATE parses: the grammar of Go's text/template with Ollama's functions.

`ollama create` refuses a template that Go cannot parse. Source: Go's text/template/parse, parse.go (1.27), and the
function map in Ollama's template/template.go. A test compares the verdicts with those of the real Go.
"""

from typing import NamedTuple

from quantkit.publish.ollama.go_literals import is_number, is_string
from quantkit.publish.ollama.go_tokens import Token, tokens

FUNCTIONS = frozenset(
    (
        *("and", "call", "html", "index", "slice", "js", "len", "not", "or", "print", "printf", "println", "urlquery"),
        *("eq", "ge", "gt", "le", "lt", "ne"),
        *("json", "currentDate", "yesterdayDate", "toTypeScriptType"),
    )
)
"""Go's own, and Ollama's in the last line."""

_OPERANDS = frozenset(("bool", "character", "dot", "field", "name", "number", "nil", "string", "variable", "("))
_VALUES = frozenset(("bool", "dot", "nil", "number", "character", "string"))
_BLOCKS = ("if", "range", "with")
_END, _ELSE = "end", "else"


class SyntaxFault(NamedTuple):
    """Why a template does not parse, and where."""

    at: int
    message: str


def syntax_fault(template: str) -> SyntaxFault | None:
    """The first fault that Go finds in a template, or None if it parses."""
    try:
        _Parser(template).template()
    except _FaultError as error:
        return error.fault
    except RecursionError:
        return SyntaxFault(0, "actions or parentheses are nested too deeply")
    return None


class _FaultError(Exception):
    def __init__(self, at: int, message: str) -> None:
        super().__init__(message)
        self.fault = SyntaxFault(at, message)


class _Parser:
    """A reader of tokens. `variables` are those in scope; `ranges` is the depth of {{ range }}."""

    def __init__(self, template: str) -> None:
        self.tokens = list(tokens(template))
        self.at = 0
        self.variables = ["$"]
        self.ranges = 0
        self.defined: dict[str, bool] = {}

    def peek(self) -> Token:
        return self.tokens[min(self.at, len(self.tokens) - 1)]

    def next(self) -> Token:
        token = self.peek()
        if token.kind == "error":
            raise _FaultError(token.at, token.text)
        self.at += 1
        return token

    def skip_space(self) -> Token:
        """The next token that is not space, still to be read."""
        while self.peek().kind == "space":
            self.at += 1
        token = self.peek()
        if token.kind == "error":
            raise _FaultError(token.at, token.text)
        return token

    def next_word(self) -> Token:
        self.skip_space()
        return self.next()

    def unexpected(self, token: Token, context: str) -> _FaultError:
        if token.kind == "eof":
            return _FaultError(token.at, f"the template ends inside {context}: an {{{{ end }}}} is missing")
        if token.text == "}":
            return _FaultError(token.at, "a single } does not close an action, }} does")
        return _FaultError(token.at, f"{token.text!r} cannot stand in {context}")

    def template(self) -> None:
        while self.skip_text().kind != "eof":
            if self.peek().kind == "left":
                start = self.at
                self.next()
                if self.skip_space().kind == "define":
                    self.next()
                    self.definition()
                    continue
                self.at = start
            end = self.text_or_action()
            if end is not None:
                raise _FaultError(self.tokens[self.at - 1].at, f"{{{{ {end} }}}} has nothing to end")

    def skip_text(self) -> Token:
        if self.peek().kind == "error":
            self.next()
        return self.peek()

    def definition(self) -> None:
        name = self.quoted_name("define")
        token = self.next_word()
        if token.kind != "right":
            raise self.unexpected(token, "define")
        outer, self.variables, ranges, self.ranges = self.variables, ["$"], self.ranges, 0
        start = self.at
        end = self.items()
        if end != _END:
            raise _FaultError(self.tokens[self.at - 1].at, "{{ else }} has no {{ if }}")
        self.define(name, start)
        self.variables, self.ranges = outer, ranges

    def define(self, name: str, start: int) -> None:
        """Go takes a second definition of a name only if one of the two is empty."""
        body = self.tokens[start : self.at]
        depth_end = next((i for i in range(len(body) - 1, -1, -1) if body[i].kind == "left"), 0)
        full = any(token.kind != "text" or token.text.strip(" \t\r\n") for token in body[:depth_end])
        if full and self.defined.get(name):
            raise _FaultError(self.tokens[start].at, f"the template {name} is defined twice")
        self.defined[name] = self.defined.get(name, False) or full

    def items(self) -> str:
        """Read up to an {{ end }} or {{ else }}, and return which of the two."""
        while self.skip_text().kind != "eof":
            end = self.text_or_action()
            if end is not None:
                return end
        raise self.unexpected(self.peek(), "a block")

    def text_or_action(self) -> str | None:
        token = self.next()
        if token.kind == "text":
            return None
        if token.kind != "left":
            raise self.unexpected(token, "the text")
        return self.action()

    def action(self) -> str | None:
        token = self.next_word()
        if token.kind == _END:
            self.expect_right(_END)
            return _END
        if token.kind == _ELSE:
            if self.skip_space().kind not in ("if", "with"):
                self.expect_right(_ELSE)
            return _ELSE
        if token.kind in _BLOCKS:
            self.control(token.kind)
        elif token.kind in ("break", "continue"):
            self.expect_right(token.kind)
            if not self.ranges:
                raise _FaultError(token.at, f"{{{{ {token.kind} }}}} stands outside of {{{{ range }}}}")
        elif token.kind == "template":
            self.quoted_name("template")
            if self.skip_space().kind != "right":
                self.pipeline("template", "right")
            else:
                self.next()
        elif token.kind == "block":
            name = self.quoted_name("block")
            self.pipeline("block", "right")
            outer, self.variables, ranges, self.ranges = self.variables, ["$"], self.ranges, 0
            start = self.at
            if self.items() != _END:
                raise _FaultError(self.tokens[self.at - 1].at, "{{ else }} has no {{ if }}")
            self.define(name, start)
            self.variables, self.ranges = outer, ranges
        else:
            self.at -= 1
            self.pipeline("an action", "right")
        return None

    def control(self, kind: str) -> None:
        """An {{ if }}, {{ range }} or {{ with }} up to its {{ end }}."""
        scope = len(self.variables)
        self.pipeline(kind, "right")
        self.ranges += kind == "range"
        end = self.items()
        self.ranges -= kind == "range"
        if end == _ELSE:
            if kind != "range" and self.peek().kind == kind:
                self.next()
                self.control(kind)
            elif self.items() != _END:
                raise _FaultError(self.tokens[self.at - 1].at, f"a second {{{{ else }}}} of one {{{{ {kind} }}}}")
        del self.variables[scope:]

    def pipeline(self, context: str, end: str) -> None:
        self.declarations(context)
        commands = 0
        while True:
            token = self.skip_space()
            if token.kind == end:
                self.next()
                break
            if token.kind not in _OPERANDS:
                raise self.unexpected(self.next(), context)
            first = self.command()
            if commands and first in _VALUES:
                raise _FaultError(token.at, f"{token.text!r} cannot take the value of a pipe: it is not a function")
            commands += 1
        if not commands:
            raise _FaultError(token.at, f"{context} has no value")

    def declarations(self, context: str) -> None:
        """`$x :=`, `$x =` and, in a range, `$i, $x :=`."""
        declared = 0
        while self.skip_space().kind == "variable":
            start = self.at
            variable = self.next()
            following = self.skip_space()
            if following.kind in ("assign", "declare"):
                self.next()
                self.variables.append(variable.text)
                return
            if (following.kind, following.text) != ("other", ","):
                self.at = start
                return
            self.next()
            self.variables.append(variable.text)
            declared += 1
            if context != "range" or declared > 1:
                raise _FaultError(following.at, f"{context} declares too many variables")
            if self.skip_space().kind not in ("variable", "right", ")"):
                raise _FaultError(following.at, "a range can only declare variables")

    def command(self) -> str:
        """One command of a pipe; returns the kind of its first operand."""
        first = ""
        while True:
            self.skip_space()
            kind = self.operand()
            first = first or kind
            token = self.next()
            if token.kind == "space":
                continue
            if token.kind in ("right", ")"):
                self.at -= 1
            elif token.kind != "pipe":
                raise self.unexpected(token, "an argument")
            break
        if not first:
            raise _FaultError(token.at, "a command is empty")
        return first

    def operand(self) -> str:
        token = self.peek()
        kind = self.term()
        if kind and self.peek().kind == "field":
            while self.peek().kind == "field":
                self.next()
            if kind in _VALUES:
                raise _FaultError(token.at, f"{token.text!r} has no fields")
            return "chain"
        return kind

    def term(self) -> str:
        """The kind of the operand that was read, or an empty text if there is none."""
        token = self.skip_space()
        if token.kind not in _OPERANDS:
            return ""
        self.next()
        if token.kind == "name" and token.text not in FUNCTIONS:
            raise _FaultError(token.at, f"the function {token.text!r} is not defined in Ollama")
        if token.kind == "variable" and token.text not in self.variables:
            raise _FaultError(token.at, f"the variable {token.text!r} is not defined")
        if token.kind == "(":
            self.pipeline("parentheses", ")")
        if token.kind in ("number", "character") and not is_number(token.text):
            raise _FaultError(token.at, f"{token.text!r} is not a number")
        if token.kind == "string":
            _check_string(token)
        return token.kind

    def quoted_name(self, context: str) -> str:
        token = self.next_word()
        if token.kind != "string":
            raise self.unexpected(token, context)
        _check_string(token)
        return token.text

    def expect_right(self, context: str) -> None:
        token = self.next_word()
        if token.kind != "right":
            raise self.unexpected(token, context)


def _check_string(token: Token) -> None:
    if not is_string(token.text):
        raise _FaultError(token.at, f"{token.text[:60]} has an escape that Go does not know")
