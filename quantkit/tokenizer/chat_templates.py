"""The chat template of a checkpoint among the places that hold one, in transformers' order of precedence.

Order: chat_template.jinja with additional_chat_templates/, tokenizer_config.json, chat_template.json of a processor
(transformers, PreTrainedTokenizerBase.from_pretrained). llama.cpp's converter reads tokenizer_config.json first.
"""

from collections.abc import Mapping
from typing import Any

from quantkit.chat import parse
from quantkit.errors import TemplateError
from quantkit.units import listed

Template = str | list[dict[str, Any]]
"""One template, or named ones as objects with `name` and `template`."""


def places(
    jinja: str | None, named: Mapping[str, str], config: Mapping[str, Any], processor: Mapping[str, Any]
) -> tuple[tuple[str, Template], ...]:
    """(file, template) of every place that holds a template, the one to use first.

    `jinja` is the text of chat_template.jinja, `named` those of additional_chat_templates/, `config` is
    tokenizer_config.json and `processor` chat_template.json.
    """
    more = [{"name": name, "template": text} for name, text in named.items()]
    result: list[tuple[str, Template]] = []
    if jinja is not None:
        result.append(("chat_template.jinja", [{"name": "default", "template": jinja}, *more] if more else jinja))
    for file, source in (("tokenizer_config.json", config), ("chat_template.json", processor)):
        template = source.get("chat_template")
        if isinstance(template, str | list):
            result.append((file, template))
    if jinja is None and more:
        default = default_text(result[0][1]) if result else None
        first = [] if default is None else [{"name": "default", "template": default}]
        result.insert(0, ("additional_chat_templates/", [*first, *more]))
    return tuple(result)


def default_text(template: Template) -> str | None:
    """The text that a plain chat uses."""
    if isinstance(template, str):
        return template
    texts = (entry.get("template") for entry in template if isinstance(entry, dict) and entry.get("name") == "default")
    return next((text for text in texts if isinstance(text, str)), None)


def warnings(templates: tuple[tuple[str, Template], ...]) -> list[str]:
    """A sentence for each template in use that does not parse, and for places that disagree on the default one."""
    if not templates:
        return []
    file, template = templates[0]
    named = (
        [("", template)]
        if isinstance(template, str)
        else [(f" ('{entry.get('name')}')", entry.get("template")) for entry in template if isinstance(entry, dict)]
    )
    result = []
    for name, text in named:
        try:
            parse(text if isinstance(text, str) else "")
        except (TemplateError, RecursionError) as error:
            why = str(error) if isinstance(error, TemplateError) else "the chat template is nested too deeply"
            result.append(f"{file}{name}: {why}; chats with this model fail, pass --chat-template to replace it")
    default = default_text(template)
    others = [other for other, text in templates[1:] if default_text(text) not in (None, default)]
    if others and default is not None:
        result.append(
            f"{file} and {listed(others)} hold different chat templates; the one of {file} is used, as in transformers"
        )
    return result
