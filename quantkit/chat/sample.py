"""A sample prompt of a chat template, to check quickly that the template is the right one."""

from collections.abc import Mapping
from dataclasses import dataclass

from quantkit.chat.contained import render_contained
from quantkit.chat.rendering import TemplateRefusal

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Hello!"}
ASSISTANT = {"role": "assistant", "content": "Hi, how can I help?"}
AGAIN = {"role": "user", "content": "What is 2+2?"}

# Some templates reject a system message, and some accept only one turn.
CONVERSATIONS = ((SYSTEM, USER, ASSISTANT, AGAIN), (USER, ASSISTANT, AGAIN), (USER,))


@dataclass(frozen=True)
class Sample:
    """A rendered sample: the roles of the conversation that the template accepted, and the prompt up to the answer."""

    roles: tuple[str, ...]
    text: str


def render_sample(
    template: str,
    *,
    bos_token: str | None = None,
    eos_token: str | None = None,
    special_tokens: Mapping[str, str] | None = None,
) -> Sample:
    """Render a conversation of system, user, assistant and user.

    If the template refuses it, the system message is left out, then the history.

    Raises:
        TemplateError: the template fails, or refuses a single question too.
    """
    first: TemplateRefusal | None = None
    for messages in CONVERSATIONS:
        try:
            text = render_contained(
                template, messages, bos_token=bos_token, eos_token=eos_token, special_tokens=dict(special_tokens or {})
            )
        except TemplateRefusal as refusal:
            first = first or refusal
            continue
        return Sample(tuple(message["role"] for message in messages), text)
    assert first is not None
    raise first
