"""Chat templates: rendering as in transformers, and built-in templates for models that ship without one.

`render` runs a template in this process. `render_contained` and `render_sample` run an untrusted template in a child
process with limited time and memory. What needs jinja2 is loaded when it is first used: the help of a command needs
the names of the built-in templates only.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from quantkit.chat.builtin import BUILT_IN, BuiltIn, built_in
from quantkit.chat.recognise import template_name
from quantkit.chat.suggest import Suggestion, suggest, suggestions

if TYPE_CHECKING:
    from quantkit.chat.contained import render_all_contained, render_contained
    from quantkit.chat.rendering import TemplateRefusal, parse, render
    from quantkit.chat.sample import Sample, render_sample

__all__ = [
    "BUILT_IN",
    "BuiltIn",
    "Sample",
    "Suggestion",
    "TemplateRefusal",
    "built_in",
    "parse",
    "render",
    "render_all_contained",
    "render_contained",
    "render_sample",
    "suggest",
    "suggestions",
    "template_name",
]

_MODULES = {
    "Sample": "sample",
    "TemplateRefusal": "rendering",
    "parse": "rendering",
    "render": "rendering",
    "render_all_contained": "contained",
    "render_contained": "contained",
    "render_sample": "sample",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'quantkit.chat' has no attribute {name!r}")
    return getattr(import_module(f"quantkit.chat.{_MODULES[name]}"), name)
