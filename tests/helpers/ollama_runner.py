"""What a real Ollama does when a stored model is used: it loads it into a runner, and renders the prompt.

Nothing is generated. Go templates are rendered by Go itself (golang.py), Jinja by jinja2 as llama-server is told to.
A runner belongs to a weight file, not to a model (seen on 0.32.15): a model without a TEMPLATE gets what the runner
that is loaded already renders with. Options of loading are as in llm/llama_server.go and server/sched.go.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2.sandbox

from tests.helpers.golang import rendered_by_go

CHATML = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
"""What llama-server takes for a model without a template, or where Ollama renders the prompt itself."""
CONTEXTS = ((48 << 30, 262144), (24 << 30, 32768), (0, 4096))
"""num_ctx of a model that does not set it, by bytes of GPU memory."""

Message = Mapping[str, str]


@dataclass(frozen=True)
class Runner:
    """A loaded weight file; `jinja` is what it renders chats with. `warnings` are lines of the server's log."""

    num_ctx: int
    gpu_layers: int
    jinja: str
    warnings: tuple[str, ...] = ()


class LoadError(Exception):
    """The model does not fit."""


@dataclass(frozen=True)
class Host:
    """The machine of the server: bytes of GPU memory, and how many layers of any model fit into it."""

    gpu_bytes: int = 0
    gpu_layers: int = 0


def load(host: Host, layers: int, parameters: Mapping[str, Any], jinja: str) -> Runner:
    """Load a model of `layers` blocks. num_gpu -1 takes what fits; a number is obeyed, or the load fails.

    Raises LoadError.
    """
    num_ctx = parameters.get("num_ctx") or next(size for least, size in CONTEXTS if host.gpu_bytes >= least)
    wanted = parameters.get("num_gpu", -1)
    every = layers + 1
    if wanted < 0:
        return Runner(num_ctx, min(every, host.gpu_layers), jinja)
    if wanted and not host.gpu_bytes:
        return Runner(num_ctx, 0, jinja, ("no usable GPU found, num_gpu is ignored",))
    taken = min(wanted, every)
    if taken > host.gpu_layers:
        raise LoadError(f"unable to allocate buffer for {taken} layers; {host.gpu_layers} fit")
    return Runner(num_ctx, taken, jinja)


def rendered_go(template: str, messages: Sequence[Message]) -> str:
    """The prompt by a Go template. Skips the test where Go cannot be had."""
    return rendered_by_go([(template, [messages])])[0][0]


def rendered_jinja(template: str, messages: Sequence[Message], tokens: Mapping[str, str]) -> str:
    """The prompt by a Jinja template. `tokens`: bos_token and eos_token."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(messages=list(messages), add_generation_prompt=True, **tokens)
