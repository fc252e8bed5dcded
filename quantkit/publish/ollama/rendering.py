"""Which template an Ollama server renders prompts with, by its version, and the check of what it stored.

Source: server/images.go and server/routes.go of ollama/ollama, commit fb30760 (shouldPreferChatTemplate,
shouldUseGoTemplate). From 0.30 on a server renders the GGUF's own Jinja template if the model has no TEMPLATE. It also
does so beside a TEMPLATE if the Jinja has tools or thinking that the TEMPLATE lacks. The templates that quantkit writes
have neither.
"""

from quantkit.errors import PublishError
from quantkit.publish.ollama.bundle import RAW_TEMPLATE, Bundle
from quantkit.publish.ollama.facts import Facts
from quantkit.publish.ollama.server import StoredModel
from quantkit.publish.ollama.template_index import MAX_DISTANCE

COMMENT_CHARACTERS = 2 * MAX_DISTANCE
"""A Jinja comment of so many characters takes a template out of reach of every built-in that was near it.

The lengths differ by less than MAX_DISTANCE before, so by more than MAX_DISTANCE after; the distance is at least that.
"""

IGNORED = "this server ignores TEMPLATE and renders the GGUF's own chat template, from which TEMPLATE was made"

_UNSTAMPED = "0.0.0"
"""The version of a server that was built from source without a version stamp."""


def renders_jinja(version: str) -> bool:
    """Whether a server of this version renders the GGUF's own template. A development build counts as new."""
    parts = version.split("-")[0].split(".")
    if version.split("-")[0] == _UNSTAMPED or not all(part.isdigit() for part in parts[:2]):
        return True
    return tuple(map(int, parts[:2])) >= (0, 30)


def check_stored(name: str, stored: StoredModel, facts: Facts, bundle: Bundle, built_in: str | None) -> str | None:
    """Compare what the server stored under `name` with what was sent.

    `built_in` is the name of the built-in template that the server reported to use, if it did. Returns a note if the
    server renders the GGUF's own template instead of an equal TEMPLATE.

    Raises:
        PublishError: prompts of the model would differ from the Modelfile's.
    """
    system = bundle.modelfile.system or ""
    if stored.system != system:
        raise PublishError(
            f"the Ollama server stored another system message for {name} than was sent: {stored.system[:80]!r};"
            f" remove the model with `ollama rm {name}`, then repeat the command"
        )
    sent, jinja = bundle.modelfile.template, facts.chat_template
    if sent is not None and _same(stored.template, sent):
        return None
    if sent is None and (not stored.template or _same(stored.template, RAW_TEMPLATE)):
        return None
    if jinja is not None and _same(stored.template, jinja):
        if sent is None or not bundle.replaces_jinja:
            return None if sent is None else IGNORED
        raise PublishError(
            f"the Ollama server ignores the chat template that was passed for {name}; it renders the GGUF's own, which"
            f" has tools or thinking; convert the model with --chat-template, then remove {name} with `ollama rm`"
        )
    if sent is None:
        raise PublishError(replaced(f"stored its built-in template{f' {built_in!r}' if built_in else ''}", name, facts))
    raise PublishError(
        f"the Ollama server stored another template for {name} than was sent, which begins {stored.template[:60]!r};"
        f" remove the model with `ollama rm {name}`, and report its version"
    )


def replaced(action: str, name: str, facts: Facts) -> str:
    """The sentence for a built-in template in place of the GGUF's own; `action`: the action of the server."""
    return (
        f"the Ollama server {action} for {name} in place of the chat template of {facts.files[0].name}, so prompts may"
        f" differ; add a Jinja comment of {COMMENT_CHARACTERS} characters to the chat template, convert with"
        " --chat-template FILE, and publish that GGUF"
    )


def _same(first: str, second: str) -> bool:
    return first.strip() == second.strip()
