"""Chat templates: rendering them as transformers does, and those of models that come without one.

`render` runs a template in this process, `render_contained` and `render_sample` a stranger's in a bounded one.
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
