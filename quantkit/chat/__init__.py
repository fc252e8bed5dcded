"""Chat templates: rendering as in transformers, and built-in templates for models that ship without one.

`render` runs a template in this process. `render_contained` and `render_sample` run an untrusted template in a child
process with limited time and memory.
"""

from quantkit.chat.builtin import BUILT_IN, BuiltIn, built_in
from quantkit.chat.contained import render_all_contained, render_contained
from quantkit.chat.recognise import template_name
from quantkit.chat.render import TemplateRefusal, parse, render
from quantkit.chat.sample import Sample, render_sample
from quantkit.chat.suggest import Suggestion, suggest, suggestions

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
